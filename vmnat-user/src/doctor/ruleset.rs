//! The rules of netfilter that a guest's packet meets, as the kernel holds them: `nf_tables` (which iptables-nft and
//! ebtables-nft write too) and the older `ip_tables`, in one form.
//!
//! They are asked from the kernel itself, so no program need be installed. Tables of `ip_tables` are read only where
//! `/proc/net/ip_tables_names` lists them: to ask for any other would make it, for good.

mod decode;
mod evaluate;
mod expression;
mod legacy;
mod raw;
mod run;
mod text;
mod xt;

use std::{collections::HashMap, fmt};

use self::xt::Match;
pub use self::{
    evaluate::{Decision, Fate, Hook, Packet, Sender, Station, Walk},
    raw::{Raw, Trouble},
};

/// Family of rules, by the kernel's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Family(pub u8);

impl Family {
    /// IPv4 and IPv6 together.
    pub const INET: Self = Self(1);
    /// IPv4.
    pub const IPV4: Self = Self(2);
    /// A device's own ingress or egress.
    pub const NETDEV: Self = Self(5);
    /// Frames of bridges.
    pub const BRIDGE: Self = Self(7);
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::INET => "inet",
            Self::IPV4 => "ip",
            Self(3) => "arp",
            Self::NETDEV => "netdev",
            Self::BRIDGE => "bridge",
            Self(10) => "ip6",
            Self(_) => "other",
        })
    }
}

/// Who holds a rule in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// `nf_tables`.
    Nft,
    /// `ip_tables`, of iptables-legacy.
    Legacy,
}

/// Where a chain or a set is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Which of the two.
    pub source: Source,
    /// Family.
    pub family: Family,
    /// Table.
    pub table: String,
    /// Its own name.
    pub name: String,
}

impl Place {
    /// Another chain or set of the same table.
    #[must_use]
    pub fn beside(&self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self.clone() }
    }

    /// True where iptables wrote it: the old one, or today's on `nf_tables`.
    #[must_use]
    pub fn is_of_iptables(&self) -> bool {
        const TABLES: [&str; 5] = ["filter", "nat", "mangle", "raw", "security"];
        self.source == Source::Legacy
            || (self.family == Family::IPV4 && TABLES.contains(&self.table.as_str()))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, family, table, name } = self;
        match source {
            Source::Legacy => write!(f, "chain {name} of table {table} (iptables-legacy)"),
            Source::Nft if self.is_of_iptables() => write!(f, "chain {name} of table {table} (iptables-nft)"),
            Source::Nft => write!(f, "chain {name} of table {family} {table} (nftables)"),
        }
    }
}

/// What hangs a chain on a hook of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// `NF_INET_PRE_ROUTING` and the like.
    pub hook: u32,
    /// Priority: the lowest comes first.
    pub priority: i32,
    /// Its policy is drop.
    pub drops: bool,
    /// It changes addresses (type `nat`).
    pub is_nat: bool,
    /// The devices that it is bound to; none: every one.
    pub devices: Vec<String>,
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Where it is.
    pub place: Place,
    /// Its hook, of a base chain.
    pub base: Option<Base>,
    /// Its rules in order.
    pub rules: Vec<Rule>,
}

/// A rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Its number in `nf_tables`, by which it is deleted.
    pub handle: u64,
    /// What it does, in order.
    pub steps: Vec<Step>,
    /// Packets that it has counted.
    pub packets: Option<u64>,
}

/// The end of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The packet is gone.
    Drop,
    /// It passes this base chain.
    Accept,
    /// The next rule.
    Continue,
    /// Back to the caller.
    Return,
    /// To another chain, and back.
    Jump(String),
    /// To another chain, and not back.
    Goto(String),
    /// To a program.
    Queue,
}

/// What is put into a register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// About the packet: interfaces, mark, protocol (`NFT_META_*`).
    Meta(u32),
    /// Bytes of a header.
    Header {
        /// 0 link, 1 network, 2 transport.
        base: u32,
        /// Where.
        offset: u32,
        /// How many.
        length: u32,
    },
    /// About its connection (`NFT_CT_*`).
    Connection(u32),
    /// What the routing table says (`NFT_FIB_RESULT_*`), of source (1) or destination (2).
    Route {
        /// What is asked.
        result: u32,
        /// About which.
        flags: u32,
    },
    /// What this cannot tell.
    Unknown(String),
}

/// A register, by its first byte.
pub type Register = usize;

/// A step of a rule; most compare, and the first that does not hold ends the rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Puts a field into a register.
    Load(Field, Register),
    /// Gives the packet's mark a value.
    SetMark(Register),
    /// Puts a constant into a register.
    Constant(Register, Vec<u8>),
    /// Register to register: and, then exclusive or; none where bits are shifted.
    Mask {
        /// From.
        from: Register,
        /// To.
        to: Register,
        /// Bits that stay.
        mask: Vec<u8>,
        /// Bits that turn.
        xor: Vec<u8>,
    },
    /// Register to register: turns the bytes of each number.
    Swap {
        /// From.
        from: Register,
        /// To.
        to: Register,
        /// How many bytes.
        length: usize,
        /// Bytes of a number.
        size: usize,
    },
    /// Compares a register: 0 equal, 1 not, 2 less, 3 at most, 4 more, 5 at least.
    Compare(Register, u32, Vec<u8>),
    /// Compares a register with both ends.
    Within {
        /// The register.
        from: Register,
        /// It must be outside.
        is_outside: bool,
        /// First.
        low: Vec<u8>,
        /// Last.
        high: Vec<u8>,
    },
    /// Looks a register up in a set, or in a map.
    LookUp {
        /// The set.
        set: String,
        /// The register.
        from: Register,
        /// Where a map's value goes; 0 is the verdict.
        to: Option<Register>,
        /// It must not be there.
        is_absent: bool,
    },
    /// Ends the rule.
    End(Verdict),
    /// Drops the packet and tells the sender.
    Reject,
    /// Changes addresses, and lets the packet pass: `masquerade`, `snat`, `dnat`.
    Translate(String),
    /// A condition of iptables.
    Match(Match),
    /// No condition: counters, logs.
    Pass(String),
    /// Something that changes what cannot be followed, such as a mark.
    Blur(String),
    /// A condition that this cannot judge.
    Unknown(String),
}

/// An element of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    /// First key.
    pub key: Vec<u8>,
    /// Last key, of a range of several fields.
    pub last: Option<Vec<u8>>,
    /// It ends the range before it.
    pub is_end: bool,
    /// It stands for all that no other has.
    pub is_rest: bool,
    /// A map's value.
    pub value: Option<Value>,
}

/// A map's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A verdict.
    Verdict(Verdict),
    /// Bytes.
    Bytes(Vec<u8>),
}

/// A set, or a map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    /// Its elements are the borders of ranges.
    pub is_ranges: bool,
    /// Several fields make one key.
    pub is_concatenated: bool,
    /// The elements.
    pub elements: Vec<Element>,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Chains in the kernel's order.
    pub chains: Vec<Chain>,
    /// Sets by their place.
    pub sets: HashMap<Place, Set>,
    by_place: HashMap<Place, usize>,
}

impl Ruleset {
    /// Understands what the kernel said.
    #[must_use]
    pub fn decode(raw: &Raw) -> Self {
        let mut ruleset = Self::default();
        let mut rules = Vec::new();
        for (kind, body) in raw.messages() {
            match kind {
                raw::CHAIN => ruleset.chains.extend(decode::chain(body)),
                raw::RULE => rules.extend(decode::rule(body)),
                raw::SET => {
                    if let Some((place, set)) = decode::set(body) {
                        ruleset.sets.entry(place).or_insert(set);
                    }
                }
                raw::ELEMENTS => {
                    if let Some((place, elements)) = decode::elements(body) {
                        ruleset.sets.entry(place).or_default().elements.extend(elements);
                    }
                }
                raw::LEGACY => ruleset.chains.extend(legacy::table(body)),
                _ => {}
            }
        }
        for (number, chain) in ruleset.chains.iter().enumerate() {
            ruleset.by_place.entry(chain.place.clone()).or_insert(number);
        }
        for (place, rule) in rules {
            let number = ruleset.by_place.get(&place);
            if let Some(chain) = number.and_then(|number| ruleset.chains.get_mut(*number)) {
                chain.rules.push(rule);
            }
        }
        ruleset
    }

    /// The chain at a place.
    #[must_use]
    pub fn chain(&self, place: &Place) -> Option<&Chain> {
        self.chains.get(*self.by_place.get(place)?)
    }

    /// The names of all chains that belong to a family of names, such as `DOCKER`.
    pub fn chains_of<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Chain> {
        self.chains.iter().filter(move |chain| chain.place.name.starts_with(prefix))
    }

    /// What every rule has counted, by chain and place in it.
    #[must_use]
    pub fn counts(&self) -> HashMap<(Place, usize), u64> {
        let rules = self.chains.iter().flat_map(|chain| {
            let rules = chain.rules.iter().enumerate();
            rules.filter_map(|(number, rule)| Some(((chain.place.clone(), number), rule.packets?)))
        });
        rules.collect()
    }

    /// Chains of one table as a whole, for tests.
    #[cfg(any(test, fuzzing))]
    #[must_use]
    pub fn of(chains: Vec<Chain>, sets: HashMap<Place, Set>) -> Self {
        let by_place =
            chains.iter().enumerate().map(|(number, chain)| (chain.place.clone(), number)).collect();
        Self { chains, sets, by_place }
    }
}
