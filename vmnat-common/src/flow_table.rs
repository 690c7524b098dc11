//! The flow table: open addressing in two arrays, so that a packet finds its flow with one wait for memory.
//!
//! `FLOW` is an array of [`Entry`]s, in groups of [`GROUP`]. `FLOW_GROUP` has a word a group: a byte a slot, which is [`FREE`],
//! [`RESERVED`] or the entry's fingerprint (eight bits of its hash), and in the topmost byte how many entries went past this group because
//! it was full. A search takes the groups in the order of its [`Way`] and ends at the first that nobody went past. A word
//! of each flow is two bytes or three, so the words stay in the processor's caches when the entries no longer do; and most entries are in the slot of their group that their hash
//! tells ([`Hash::home`]), so that the processor asks for the entry before it has the word. A search waits for memory once, where a hash of the
//! kernel waits for its bucket and then for its element.
//!
//! Nobody waits for anybody: a slot is reserved by one exchange of the word, filled, and published by another; who takes an entry out
//! reserves its slot, looks whether it is still that entry's, and frees it. Two that insert one key at once both look again after they
//! have published; who sees the other takes its own back. A reader may hold an entry while it goes and its slot is used anew, as with every table whose entries are reused at
//! once. Who fills a slot takes the key away first, writes the session, and the key last: whoever finds a key finds its own session, and one whose
//! flow is removed in that very instant may have the next one's for one packet.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a hash is made of what is left over; slots and words are few enough"
)]

use bytemuck::{Pod, Zeroable};

use crate::{flow::FlowKey, session::Session};

/// Slots of a group.
pub const GROUP: u32 = 7;

/// Groups that a key may be in. With two thirds of the slots in use about one group of five is full, and no key finds all of its
/// groups full.
pub const PROBES: u32 = 16;

/// Words of a [`Line`].
pub const LINE: u32 = 8;

/// A slot that is free.
pub const FREE: u8 = 0;

/// A slot that is being filled.
pub const RESERVED: u8 = 1;

/// As many entries at most go past a group; one that would be another is refused. Far from where the count would overflow, as those
/// who insert at once look first and count then.
const MOST_PAST: u64 = 128;

/// One entry that goes past a group, in its word.
pub const ONE_PAST: u64 = 1 << 56;

const LOW_BITS: u64 = 0x0001_0101_0101_0101;
const HIGH_BITS: u64 = LOW_BITS << 7;

/// A key and its session, as they lie in `FLOW`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Entry {
    /// The tuple.
    pub key: FlowKey,
    /// What becomes of its packets.
    pub session: Session,
}

const _: () = assert!(size_of::<Entry>() == 64);

/// The words of a key that stands for none: while a slot is filled. No packet's tuple has them, nor the sentinel's.
pub const NO_KEY: [u64; 2] = [0, 0];

/// A value of `FLOW_GROUP`: the words of eight groups; the first line is the table's [`Head`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Line {
    /// A word a group.
    pub words: [u64; LINE as usize],
}

/// The first line of `FLOW_GROUP`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Head {
    /// Secret of the hash: nobody shall choose keys that meet in one group.
    pub seed: [u64; 2],
    /// Zero.
    pub reserved: [u64; 6],
}

const _: () = assert!(size_of::<Head>() == size_of::<Line>());

/// How many groups a table for so many entries has: two thirds of its slots are in use when it has them all.
#[must_use]
pub const fn groups_for(entries: u32) -> u32 {
    let slots = entries as u64 * 3 / 2;
    // Whole lines: a table of another size has another number of them, so that none is taken for the other's.
    let groups = slots.div_ceil(GROUP as u64).next_multiple_of(LINE as u64);
    // The slots are numbered in 32 bits.
    let most = ((u32::MAX / GROUP - LINE) / LINE * LINE) as u64;
    if groups > most { most as u32 } else { groups as u32 }
}

/// How many lines so many groups take, with the head.
#[must_use]
pub const fn lines_for(groups: u32) -> u32 {
    groups.div_ceil(LINE) + 1
}

/// The hash of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hash(u64);

impl Hash {
    /// Of a key's two words, with the table's secret.
    #[inline]
    #[must_use]
    pub const fn of(key: [u64; 2], seed: [u64; 2]) -> Self {
        // Odd constants of splitmix64's finalizer.
        const ONE: u64 = 0xbf58_476d_1ce4_e5b9;
        const OTHER: u64 = 0x94d0_49bb_1331_11eb;
        let mut hash = (key[0] ^ seed[0]).wrapping_mul(ONE);
        hash ^= hash >> 32;
        hash = (hash ^ key[1] ^ seed[1]).wrapping_mul(OTHER);
        hash ^= hash >> 29;
        hash = hash.wrapping_mul(ONE);
        Self(hash ^ hash >> 32)
    }

    /// What stands in the group's word for an entry of this hash.
    #[inline]
    #[must_use]
    pub const fn fingerprint(self) -> u8 {
        let byte = self.0 as u8;
        if byte <= RESERVED { byte + 2 } else { byte }
    }

    /// The slot that an entry of this hash has in its group, if that is free: where a search looks while it still waits for the word.
    #[inline]
    #[must_use]
    pub const fn home(self) -> u32 {
        ((self.0 >> 8 & 0xff) as u32 * GROUP) >> 8
    }

    /// Where the search for it begins.
    #[inline]
    #[must_use]
    pub const fn way(self) -> Way {
        // A quarter of the table and up to an eighth more: in a small one, too, it comes to three groups before it meets one again.
        Way { at: (self.0 >> 32) as u32, step: ((self.0 as u32 >> 3) + (1 << 30)) | 1 }
    }
}

/// A place on the way of a search, as a fraction of the table: which group it is, depends on how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    at: u32,
    step: u32,
}

impl Way {
    /// The group at this place, of so many.
    #[inline]
    #[must_use]
    pub const fn group(self, groups: u32) -> u32 {
        ((self.at as u64 * groups as u64) >> 32) as u32
    }

    /// The next place.
    #[inline]
    #[must_use]
    pub const fn next(self) -> Self {
        Self { at: self.at.wrapping_add(self.step), step: self.step }
    }
}

/// The line of a group, and its word there.
#[inline]
#[must_use]
pub const fn place(group: u32) -> (u32, usize) {
    (group / LINE + 1, (group % LINE) as usize)
}

/// One bit for each slot of a word whose byte is this one: the byte's highest. Above a slot that has the byte there may be one that
/// has not.
#[inline]
#[must_use]
pub const fn slots_with(word: u64, byte: u8) -> u64 {
    let differing = word ^ LOW_BITS.wrapping_mul(byte as u64);
    differing.wrapping_sub(LOW_BITS) & !differing & HIGH_BITS
}

/// The lowest slot of [`slots_with`]; there is one.
#[inline]
#[must_use]
pub const fn lowest(slots: u64) -> u32 {
    // The bit is the lowest of byte i, so the product's highest byte is byte 7 - i of the constant, which is i.
    let bit = (slots & slots.wrapping_neg()) >> 7;
    (bit.wrapping_mul(0x0001_0203_0405_0607) >> 56) as u32
}

/// The slot that an entry gets in a group with this word: its home, or the lowest that is free.
#[inline]
#[must_use]
pub const fn vacancy(word: u64, home: u32) -> Option<u32> {
    let free = slots_with(word, FREE);
    if byte_of(word, home) == FREE {
        Some(home)
    } else if free == 0 {
        None
    } else {
        Some(lowest(free))
    }
}

/// The byte of a slot.
#[inline]
#[must_use]
pub const fn byte_of(word: u64, slot: u32) -> u8 {
    (word >> (slot * 8)) as u8
}

/// The word with another byte for a slot.
#[inline]
#[must_use]
pub const fn with_byte(word: u64, slot: u32, byte: u8) -> u64 {
    word & !(0xff << (slot * 8)) | (byte as u64) << (slot * 8)
}

/// True when some entry went past the group.
#[inline]
#[must_use]
pub const fn is_passed(word: u64) -> bool {
    word >= ONE_PAST
}

/// True when another entry may go past.
#[inline]
#[must_use]
pub const fn may_pass(word: u64) -> bool {
    word >> 56 < MOST_PAST
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn the_lowest_slot_that_has_a_byte_is_found() {
        for slot in 0..GROUP {
            for byte in [FREE, RESERVED, 2, 0x80, 0xff] {
                // Whatever the other slots and the count of passes are, as long as they have other bytes.
                let others = [0x0511_2233_4455_6677_u64, u64::MAX >> 1 << 1].map(|others| {
                    (0..GROUP).fold(others, |word, other| {
                        if byte_of(word, other) == byte { with_byte(word, other, 0x7e) } else { word }
                    })
                });
                for word in others {
                    assert_eq!(slots_with(word, byte), 0, "{word:x} {byte}");
                    let word = with_byte(word, slot, byte);
                    assert_eq!(lowest(slots_with(word, byte)), slot, "{word:x} {byte}");
                    assert_eq!(byte_of(word, slot), byte);
                    let both = with_byte(word, GROUP - 1, byte);
                    assert_eq!(lowest(slots_with(both, byte)), slot);
                    assert_ne!(slots_with(both, byte) & 0x80 << ((GROUP - 1) * 8), 0);
                }
            }
        }
    }

    #[test]
    fn an_entry_is_at_home_unless_somebody_is_there() {
        let full = u64::MAX >> 8;
        for home in 0..GROUP {
            assert_eq!(vacancy(0, home), Some(home));
            assert_eq!(vacancy(full, home), None);
            for other in (0..GROUP).filter(|other| *other != home) {
                assert_eq!(vacancy(with_byte(0, other, 7), home), Some(home));
                assert_eq!(vacancy(with_byte(full, other, FREE), home), Some(other));
            }
            assert_eq!(vacancy(with_byte(0, home, RESERVED), home), Some(u32::from(home == 0)));
        }
        let mut homes = [0; GROUP as usize];
        for key in keys().take(7_000) {
            homes[Hash::of(key, [3, 4]).home() as usize] += 1;
        }
        assert!(homes.iter().all(|count| (850..1_150).contains(count)), "{homes:?}");
    }

    #[test]
    fn no_key_that_is_put_in_is_none() {
        assert_ne!(bytemuck::cast::<_, [u64; 2]>(FlowKey::SENTINEL), NO_KEY);
        let nothing = crate::Endpoint::default();
        for protocol in 1..=u8::MAX {
            for side in [crate::flow::Side::Guest, crate::flow::Side::Uplink, crate::flow::Side::Across] {
                assert_ne!(
                    bytemuck::cast::<_, [u64; 2]>(FlowKey::new(protocol, side, nothing, nothing)),
                    NO_KEY
                );
            }
        }
    }

    #[test]
    fn passes_are_counted_beside_the_slots_until_one_is_refused() {
        let full = with_byte(u64::MAX >> 8, 3, 9);
        let mut word = full;
        assert!(!is_passed(word));
        let mut passed = 0;
        while may_pass(word) {
            word += ONE_PAST;
            passed += 1;
            assert!(is_passed(word) && slots_with(word, 9) == slots_with(full, 9));
        }
        // Those who look at once may each count one more.
        assert_eq!(passed, 128);
        assert_eq!(word - passed * ONE_PAST, full);
    }

    #[test]
    fn sizes_leave_a_third_of_the_slots_free_and_are_numbered_in_32_bits() {
        for entries in [0, 1, 2, 2_048, 524_288, 2_000_000, u32::MAX] {
            let groups = groups_for(entries);
            let slots = u64::from(groups) * u64::from(GROUP);
            assert!(slots < u64::from(u32::MAX) - 8, "{entries}");
            assert!(slots >= u64::from(entries) * 3 / 2 || entries > 1 << 31, "{entries}: {slots}");
            let lines = u64::from(lines_for(groups));
            assert!(lines * u64::from(LINE) >= u64::from(groups) + u64::from(LINE));
        }
        assert_eq!((place(0), place(7), place(8)), ((1, 0), (1, 7), (2, 0)));
    }

    /// Keys as one guest makes them that scans: all but some bits are the same.
    fn keys() -> impl Iterator<Item = [u64; 2]> {
        (0..100_000_u64).map(|number| [0xc0a8_7a0a_c612_0001 ^ number << 40, 0x1100_0035_1400 ^ number >> 12])
    }

    #[test]
    fn keys_that_are_alike_spread_over_groups_and_fingerprints() {
        for seed in [[0, 0], [7, 9], [0x1234_5678_9abc_def0, u64::MAX]] {
            let groups = groups_for(100_000);
            let (mut filled, mut prints) = (HashMap::<u32, u32>::new(), HashMap::<u8, u32>::new());
            for key in keys() {
                let hash = Hash::of(key, seed);
                assert!(hash.fingerprint() > RESERVED);
                let group = hash.way().group(groups);
                assert!(group < groups);
                *filled.entry(group).or_default() += 1;
                *prints.entry(hash.fingerprint()).or_default() += 1;
            }
            // As chance has it (a mean of 4.7 and 394): nobody far off.
            assert!(filled.values().all(|count| *count < 25), "{seed:x?}: {:?}", filled.values().max());
            assert!(filled.len() > groups as usize * 97 / 100, "{seed:x?}: {} of {groups}", filled.len());
            // Two values share what would have been a free slot's and a reserved one's.
            assert!(prints.len() == 254 && prints.values().all(|count| (250..1_100).contains(count)));
        }
    }

    #[test]
    fn ways_visit_other_groups_and_depend_on_the_secret() {
        let groups = groups_for(2_048);
        let way = |key, seed| {
            let start = Hash::of(key, seed).way();
            let ways = std::iter::successors(Some(start), |way| Some(way.next())).take(PROBES as usize);
            ways.map(|way| way.group(groups)).collect::<Vec<_>>()
        };
        let mut same = 0;
        for key in keys().take(2_000) {
            let visited: std::collections::HashSet<_> = way(key, [1, 2]).into_iter().collect();
            assert!(visited.len() >= 3, "{visited:?}");
            same += usize::from(way(key, [1, 2])[0] == way(key, [1, 3])[0]);
        }
        assert!(same < 40, "{same} of 2,000 begin where they do with another secret");
    }
}
