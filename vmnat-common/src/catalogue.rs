//! Declares a list once: the enum, its names, its sentences, and the list of all.

/// Makes an enum of `u32` whose variants carry a kind, a name and a sentence.
///
/// The name is the counter's, the metric label's and the word in listings; the sentence is what documents and
/// `vmnat counters` print. Both stand beside the variant, so they cannot drift from it.
macro_rules! catalogue {
    (
        $(#[$attribute:meta])*
        pub enum $name:ident of $kind:ident {
            $($variant:ident = $group:ident, $text:literal, $sentence:literal;)+
        }
    ) => {
        $(#[$attribute])*
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $(#[doc = $sentence] $variant,)+
        }

        impl $name {
            /// Every entry, in order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The number of entries.
            #[expect(clippy::cast_possible_truncation, reason = "the list is short")]
            pub const COUNT: u32 = Self::ALL.len() as u32;

            /// The entry's index in the counters' map.
            #[must_use]
            pub const fn index(self) -> u32 {
                self as u32
            }

            /// The name: a fact in snake case.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// What happened, in one sentence.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence,)+ }
            }

            /// What became of the packet.
            #[must_use]
            pub const fn kind(self) -> $kind {
                match self { $(Self::$variant => $kind::$group,)+ }
            }

            /// The entry of that name.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|entry| entry.name() == name)
            }
        }
    };
}

pub(crate) use catalogue;
