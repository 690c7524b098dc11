//! The port forward: external ports that lead to a guest.
//!
//! The `FORWARD` map is an array of two banks, of which one is in use. A bank is sorted by [`place`], and no two forwards of it
//! overlap, so the forward of an endpoint is found by halving ([`Search`]); a range of ports is one entry, however long. User
//! space fills the idle bank and then turns [`Active`] over in one store: packets see the old set or the new one, never a
//! mixture. An entry says itself which endpoints are its own, so a reader that is overtaken finds a forward or none, never a
//! wrong one.

use bytemuck::{Pod, Zeroable};

use crate::endpoint::{Address, Endpoint, Port};

/// Entries of one bank.
pub const BANK: u32 = 32_768;

/// Steps after which every search in a bank has ended: one more than the exponent of [`BANK`].
pub const STEPS: u32 = BANK.ilog2().saturating_add(1);

/// Where an external endpoint stands in the order of forwards: by protocol, then address, then port.
#[must_use]
pub const fn place(protocol: u8, external: Endpoint) -> u64 {
    let address = u32::from_be_bytes(external.address.octets());
    ((protocol as u64) << 48) | ((address as u64) << 16) | external.port.number() as u64
}

/// Value of the `FORWARD` map: external ports of one address, and the guest's ports that they lead to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Forward {
    /// [`place`] of its first external endpoint.
    pub first: u64,
    /// The guest.
    pub address: Address,
    /// The guest's port that the first external port leads to.
    pub port: Port,
    /// External ports after the first.
    pub span: u16,
    /// Stable number that user space gave it.
    pub id: u32,
    /// Interface index of the guest's bridge.
    pub bridge: u32,
    /// Second of `CLOCK_BOOTTIME` from which it invites nobody; 0 for never.
    pub expires: u32,
    /// [`ForwardFlags`] bits.
    pub flags: u32,
}

const _: () = assert!(size_of::<Forward>() == 32);

impl Forward {
    /// The guest's endpoint that the external endpoint at `place` leads to; none where it is not this forward's.
    #[must_use]
    pub const fn target(&self, place: u64) -> Option<Endpoint> {
        let offset = place.wrapping_sub(self.first);
        if offset > self.span as u64 {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most the span")]
        let port = self.port.number().wrapping_add(offset as u16);
        Some(Endpoint::new(self.address, Port::new(port)))
    }

    /// IP protocol number, and the first external endpoint: [`Forward::first`] taken apart.
    #[must_use]
    pub const fn external(&self) -> (u8, Endpoint) {
        let [_, protocol, a, b, c, d, high, low] = self.first.to_be_bytes();
        (protocol, Endpoint::new(Address::new([a, b, c, d]), Port::new(u16::from_be_bytes([high, low]))))
    }

    /// True when it invites nobody any more.
    #[must_use]
    pub const fn has_expired(&self, boot_seconds: u64) -> bool {
        self.expires != 0 && boot_seconds >= self.expires as u64
    }
}

/// Bits of [`Forward::flags`].
#[derive(Clone, Copy, Debug)]
pub struct ForwardFlags;

impl ForwardFlags {
    /// Only sources that the `FORWARD_SOURCE` map holds for it may use it.
    pub const LIMITED: u32 = 1;
}

/// The single value of the `FORWARD_ACTIVE` map: which bank is in use, and how many entries it has.
///
/// One word, so that it is never read half written.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Active(u32);

impl Active {
    const SECOND: u32 = 1 << 31;

    /// So many entries in the first or the second bank.
    #[must_use]
    pub const fn new(second: bool, count: u32) -> Self {
        let count = if count > BANK { BANK } else { count };
        Self(if second { count | Self::SECOND } else { count })
    }

    /// True when the second bank is in use.
    #[must_use]
    pub const fn is_second(self) -> bool {
        self.0 & Self::SECOND != 0
    }

    /// Entries in use.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.0 & !Self::SECOND
    }

    /// Index of the bank's first entry in the `FORWARD` map.
    #[must_use]
    pub const fn base(self) -> u32 {
        if self.is_second() { BANK } else { 0 }
    }
}

/// The search for the last entry of a sorted bank that begins at or before a place.
///
/// Entries below `low` begin at or before it, entries from `high` on after it.
#[derive(Clone, Copy, Debug)]
pub struct Search {
    low: u32,
    high: u32,
}

impl Search {
    /// A search among so many entries.
    #[must_use]
    pub const fn among(count: u32) -> Self {
        Self { low: 0, high: count }
    }

    /// The entry to look at next; none when the search has ended.
    #[must_use]
    pub const fn next(&self) -> Option<u32> {
        if self.low < self.high { Some(self.low.wrapping_add(self.high) >> 1) } else { None }
    }

    /// Goes on with what the entry `at` said: whether it begins at or before the place.
    pub const fn narrow(&mut self, at: u32, begins_before: bool) {
        if begins_before {
            self.low = at.wrapping_add(1);
        } else {
            self.high = at;
        }
    }

    /// The entry that was searched; none where even the first begins after the place.
    #[must_use]
    pub const fn found(&self) -> Option<u32> {
        self.low.checked_sub(1)
    }
}

/// Key of the `FORWARD_SOURCE` longest-prefix map, as `BPF_MAP_TYPE_LPM_TRIE` wants it: a source that may use a forward.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct SourceKey {
    /// Bits of the forward's number (all 32) and of the source's prefix: 32 to 64.
    pub prefix: u32,
    /// The forward and the source.
    pub source: Source,
}

/// A source that may use a forward.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Source {
    /// [`Forward::id`].
    pub forward: u32,
    /// First address of the prefix.
    pub address: Address,
}

impl SourceKey {
    /// Bits that come before the source's own.
    pub const FORWARD_BITS: u32 = 32;

    /// The sources of a prefix of so many bits.
    #[must_use]
    pub const fn new(forward: u32, address: Address, bits: u8) -> Self {
        let prefix = Self::FORWARD_BITS.saturating_add(bits as u32);
        Self { prefix, source: Source { forward, address } }
    }
}

/// Value of the `FORWARD_COUNT` map, keyed by [`Forward::id`]: what went through a forward.
///
/// Packets and bytes are those of conversations that have ended; those of live ones are in their sessions.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ForwardCount {
    /// Conversations opened.
    pub connections: u64,
    /// Packets turned away because their source may not use it.
    pub refused: u64,
    /// Packets to the guest.
    pub packets_in: u64,
    /// Bytes to the guest, as IP carries them.
    pub bytes_in: u64,
    /// Packets from the guest.
    pub packets_out: u64,
    /// Bytes from the guest.
    pub bytes_out: u64,
}

const _: () = assert!(size_of::<ForwardCount>() == 48);

#[cfg(test)]
#[expect(clippy::arithmetic_side_effects, reason = "small numbers of the tests' own making")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn forward(first: u64, span: u16) -> Forward {
        Forward { first, span, port: Port::new(8000), ..Zeroable::zeroed() }
    }

    #[test]
    fn places_are_ordered_by_protocol_address_and_port() {
        let at =
            |protocol, address, port| place(protocol, Endpoint::new(Address::new(address), Port::new(port)));
        let sorted = [
            at(6, [9, 255, 0, 1], 65_535),
            at(6, [10, 0, 0, 1], 0),
            at(6, [10, 0, 0, 1], 80),
            at(6, [10, 0, 0, 2], 1),
            at(17, [1, 1, 1, 1], 1),
        ];
        assert!(sorted.is_sorted());
    }

    #[test]
    fn a_place_is_taken_apart_again() {
        let external = Endpoint::new(Address::new([203, 0, 113, 2]), Port::new(8080));
        assert_eq!(forward(place(17, external), 0).external(), (17, external));
    }

    #[test]
    fn a_range_leads_port_by_port_and_no_further() {
        let range = forward(1000, 9);
        assert_eq!(range.target(999), None);
        assert_eq!(range.target(1000).map(|target| target.port.number()), Some(8000));
        assert_eq!(range.target(1009).map(|target| target.port.number()), Some(8009));
        assert_eq!(range.target(1010), None);
    }

    #[test]
    fn an_expired_forward_invites_nobody() {
        let mut forward = forward(0, 0);
        assert!(!forward.has_expired(u64::MAX));
        forward.expires = 100;
        assert_eq!([99, 100].map(|now| forward.has_expired(now)), [false, true]);
    }

    #[test]
    fn active_holds_bank_and_count() {
        assert_eq!(Active::default().count(), 0);
        let active = Active::new(true, 7);
        assert_eq!((active.is_second(), active.count(), active.base()), (true, 7, BANK));
        assert_eq!(Active::new(false, BANK).count(), BANK);
    }

    proptest! {
        #[test]
        fn searching_finds_what_a_scan_finds(spans in prop::collection::vec((1_u64..50, 0_u16..40), 0..200), wanted in 0_u64..10_000) {
            let mut forwards = Vec::new();
            let mut at = 0;
            for (gap, span) in spans {
                at += gap;
                forwards.push(forward(at, span));
                at += u64::from(span) + 1;
            }
            let mut search = Search::among(u32::try_from(forwards.len()).unwrap());
            let mut steps = 0;
            while let Some(next) = search.next() {
                steps += 1;
                prop_assert!(steps <= STEPS);
                search.narrow(next, forwards[next as usize].first <= wanted);
            }
            let found = search.found().filter(|at| forwards[*at as usize].target(wanted).is_some());
            let scanned = forwards.iter().position(|forward| forward.target(wanted).is_some());
            prop_assert_eq!(found.map(|at| at as usize), scanned);
        }
    }

    #[test]
    fn the_largest_bank_is_searched_in_the_stated_steps() {
        let mut search = Search::among(BANK);
        let mut steps = 0;
        while let Some(next) = search.next() {
            steps += 1;
            search.narrow(next, true);
        }
        assert_eq!(search.found(), Some(BANK - 1));
        assert!(steps <= STEPS, "{steps}");
    }
}
