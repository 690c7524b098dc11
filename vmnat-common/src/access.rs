//! Access lists: what guests may reach, and who may call them.
//!
//! User space resolves every precedence: the list of a prefix holds what of its own rules and of all wider prefixes is in force there, as
//! ranges of places that do not overlap, in order. So the kernel half looks up one prefix and searches one list, when a flow is
//! opened and when it is checked again.

use bytemuck::{Pod, Zeroable};

use crate::endpoint::Address;

/// Ranges in each of the two banks of `ACCESS_RANGE`.
pub const BANK: u32 = 16_384;

/// Which way the call goes.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Way {
    /// A guest calls the address.
    To = 0,
    /// The address calls a guest.
    From = 1,
}

/// The bridge whose guests are meant, and the way: all guests of a bridge share a list.
#[must_use]
pub const fn scope(bridge: u32, way: Way) -> u32 {
    bridge << 1 | way as u32
}

/// Where a protocol and a port stand in the order of ranges. Protocols without ports have one for all.
#[must_use]
pub const fn place(protocol: u8, port: u16) -> u32 {
    (protocol as u32) << 16 | port as u32
}

/// The last place of all.
pub const LAST: u32 = place(u8::MAX, u16::MAX);

/// Key of the `ACCESS` longest-prefix map, as `BPF_MAP_TYPE_LPM_TRIE` wants it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct AccessKey {
    /// Bits of the scope (all 32) and of the prefix: 32 to 64.
    pub prefix: u32,
    /// Scope and prefix.
    pub peer: Peer,
}

/// Who is called, or calls.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct Peer {
    /// See [`scope`].
    pub scope: u32,
    /// First address of the prefix.
    pub address: Address,
}

impl AccessKey {
    /// Bits that come before the prefix's own.
    pub const SCOPE_BITS: u32 = 32;

    /// The key of a prefix of so many bits.
    #[must_use]
    pub const fn new(scope: u32, address: Address, bits: u8) -> Self {
        Self { prefix: Self::SCOPE_BITS.saturating_add(bits as u32), peer: Peer { scope, address } }
    }
}

/// Value of the `ACCESS` map: where the list of a prefix is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct AccessList {
    /// Index of its first range in `ACCESS_RANGE`.
    pub first: u32,
    /// Number of its ranges.
    pub count: u32,
}

/// Value of the `ACCESS_RANGE` map: places with one verdict.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct AccessRange {
    /// The first place.
    pub first: u32,
    /// The last place.
    pub last: u32,
    /// A [`Verdict`] as a number.
    pub verdict: u32,
}

/// What the lists say of a call.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Nothing: what is usual applies.
    Silent = 0,
    /// It is allowed, by a rule.
    Allowed = 1,
    /// It is denied.
    Denied = 2,
}

impl Verdict {
    /// The verdict of a number.
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Allowed,
            2 => Self::Denied,
            _ => Self::Silent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_ordered_by_protocol_and_port() {
        assert!(place(6, u16::MAX) < place(17, 0) && place(17, 53) < place(17, 54));
        assert_eq!(LAST, 0x00ff_ffff);
        assert_ne!(scope(3, Way::To), scope(3, Way::From));
        assert_ne!(scope(3, Way::From), scope(4, Way::To));
    }

    #[test]
    fn numbers_are_verdicts() {
        for verdict in [Verdict::Silent, Verdict::Allowed, Verdict::Denied] {
            assert_eq!(Verdict::from_number(verdict as u32), verdict);
        }
    }
}
