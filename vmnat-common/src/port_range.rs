//! The port rule: which external port an internal endpoint is offered, and in which order.
//!
//! The pool is disjoint from what the host may use: user space clears the bit of every port in
//! `ip_local_port_range`, in `ip_local_reserved_ports`, of listening sockets and of port forwards. A candidate keeps
//! the parity and the class (below 1024 or not) of the guest's port (RFC 4787 REQ-3a and REQ-4). First the guest's
//! own port, then some that depend only on the host's secret and the internal endpoint, so that it returns after a
//! loss of state, also where the first ones are the host's; then unpredictable ones (RFC 7857 section 9). The destination is never part of it (RFC 4787 REQ-1).

use crate::endpoint::{Endpoint, Port, Protocol};

/// 64-bit words of the `PORT_POOL` map: one bit a port, TCP's 65536, then UDP's, then SCTP's.
pub const POOL_WORDS: u32 = 3072;

/// Candidates that are tried before the pool counts as full.
pub const PROBES: u32 = 32;

/// Candidates that depend on secret and internal endpoint alone. The host's own range is nearly half of all ports, so one would
/// often be none.
const DETERMINED: u32 = 8;

/// First port that is not privileged.
pub const FIRST_UNPRIVILEGED: u16 = 1024;

/// The word and the bit of a port in the `PORT_POOL` map; none for protocols without ports, whose whole
/// range is free.
#[must_use]
pub const fn pool_bit(protocol: Protocol, port: u16) -> Option<(u32, u64)> {
    match pool_base(protocol.number()) {
        NO_POOL => None,
        base => Some(bit_of(base, port)),
    }
}

/// First word of a protocol's ports in the `PORT_POOL` map; [`NO_POOL`] for one whose whole range is free. By number, because a
/// verifier that meets an enumeration walks every one of its ways.
#[must_use]
pub const fn pool_base(protocol: u8) -> u32 {
    if protocol == Protocol::Tcp.number() {
        0
    } else if protocol == Protocol::Udp.number() {
        1024
    } else if protocol == Protocol::Sctp.number() {
        2048
    } else {
        NO_POOL
    }
}

/// See [`pool_base`].
pub const NO_POOL: u32 = u32::MAX;

/// The word and the bit of a port, counted from a protocol's first word.
#[must_use]
pub const fn bit_of(base: u32, port: u16) -> (u32, u64) {
    (base | (port >> 6) as u32, 1 << (port & 63))
}

/// Entries of the `PORT_OWNER` map: TCP's ports, and UDP's. The protocols that keep their ports have no mappings.
pub const OWNERS: u32 = 2 * 65_536;

/// The place of a port in the `PORT_OWNER` map; [`OWNERS`] or more for a protocol that has none there.
#[must_use]
pub const fn owner_index(protocol: u8, port: u16) -> u32 {
    match pool_base(protocol) {
        NO_POOL => OWNERS,
        base => (base << 6) | port as u32,
    }
}

/// A range of ports, both ends included, at least two wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// The privileged ports that may be offered to a guest that uses one itself.
    pub const PRIVILEGED: Self = Self { first: 1, last: FIRST_UNPRIVILEGED - 1 };

    /// Every number, for ICMP identifiers and ports that are kept.
    pub const ALL: Self = Self { first: 0, last: u16::MAX };

    /// A range; the unprivileged ports when `last` does not lie above `first`.
    #[must_use]
    pub const fn new(first: u16, last: u16) -> Self {
        if last > first { Self { first, last } } else { Self { first: FIRST_UNPRIVILEGED, last: u16::MAX } }
    }

    /// The range that a guest's port may be mapped to, of a protocol with this [`pool_base`]: its class, within the pool.
    #[must_use]
    pub const fn for_port(base: u32, wanted: u16, pool: Self) -> Self {
        if base == NO_POOL {
            Self::ALL
        } else if wanted < FIRST_UNPRIVILEGED {
            Self::PRIVILEGED
        } else {
            pool
        }
    }

    /// True when the port lies in it.
    #[must_use]
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    /// The port of this range that a random draw means, with the parity of `wanted`.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the remainder is below 65536")]
    #[expect(clippy::arithmetic_side_effects, reason = "last lies above first, so the span is 2 to 65536")]
    pub const fn pick(self, draw: u32, wanted: u16) -> u16 {
        let span = (self.last - self.first) as u32 + 1;
        let port = self.first.wrapping_add((draw % span) as u16);
        if port & 1 == wanted & 1 {
            port
        } else if port < self.last {
            port.wrapping_add(1)
        } else {
            port.wrapping_sub(1)
        }
    }
}

/// A number that depends on the secret and the internal endpoint alone.
#[must_use]
pub const fn endpoint_hash(secret: [u32; 2], protocol: u8, internal: Endpoint) -> u32 {
    let port = ((internal.port.to_wire() as u32) << 8) | protocol as u32;
    let mut h = secret[0] ^ internal.address.to_wire();
    h = mix(h);
    h ^= port.wrapping_add(secret[1]);
    mix(h)
}

/// The finalizer of `MurmurHash3`: every input bit flips every output bit with probability near one half.
const fn mix(mut h: u32) -> u32 {
    h ^= h >> 16;
    h = h.wrapping_mul(0x85eb_ca6b);
    h ^= h >> 13;
    h = h.wrapping_mul(0xc2b2_ae35);
    h ^ (h >> 16)
}

/// The candidate of the given attempt (0 to [`PROBES`]): the guest's port, hashed ones, then `random` ones.
#[must_use]
pub const fn candidate(attempt: u32, range: PortRange, wanted: Port, hash: u32, random: u32) -> Port {
    let number = wanted.number();
    match attempt {
        0 => wanted,
        1..=DETERMINED => Port::new(range.pick(mix(hash.wrapping_add(attempt)), number)),
        _ => Port::new(range.pick(random, number)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::endpoint::Address;

    proptest! {
        #[test]
        fn search_stays_in_range_and_keeps_parity(first in 1024u16..60_000, span in 2u16..5_000, draw in any::<u32>(), wanted in any::<u16>()) {
            let range = PortRange::new(first, first.saturating_add(span));
            let port = range.pick(draw, wanted);
            prop_assert!(range.contains(port));
            prop_assert_eq!(port & 1, wanted & 1);
        }

        #[test]
        fn class_is_kept(wanted in 1u16..=u16::MAX, draw in any::<u32>(), attempt in 0u32..4) {
            let pool = PortRange::new(1024, 32_767);
            let range = PortRange::for_port(pool_base(17), wanted, pool);
            let port = candidate(attempt, range, Port::new(wanted), draw, draw).number();
            prop_assert_eq!(port < 1024, wanted < 1024);
        }

        #[test]
        fn the_hash_does_not_know_the_destination_but_the_secret(secret in any::<[u32; 2]>(), other in any::<[u32; 2]>(), port in any::<u16>()) {
            prop_assume!(secret != other);
            let internal = Endpoint::new(Address::new([10, 0, 0, 1]), Port::new(port));
            prop_assert_eq!(endpoint_hash(secret, 6, internal), endpoint_hash(secret, 6, internal));
            prop_assert_ne!(endpoint_hash(secret, 6, internal), endpoint_hash(secret, 17, internal));
        }
    }

    #[test]
    fn search_visits_every_port_of_the_parity() {
        let range = PortRange::new(1024, 2047);
        for wanted in [4000, 4001] {
            let mut seen: Vec<u16> = (0..2048).map(|draw| range.pick(draw, wanted)).collect();
            seen.sort_unstable();
            seen.dedup();
            let expected: Vec<u16> = (1024..2048).filter(|port| port & 1 == wanted & 1).collect();
            assert_eq!(seen, expected);
        }
    }

    #[test]
    fn pool_bits_of_the_protocols_are_disjoint() {
        assert_eq!(pool_bit(Protocol::Tcp, 0), Some((0, 1)));
        assert_eq!(pool_bit(Protocol::Tcp, 65_535), Some((1023, 1 << 63)));
        assert_eq!(pool_bit(Protocol::Udp, 64), Some((1025, 1)));
        assert_eq!(pool_bit(Protocol::Udp, 65_535), Some((2047, 1 << 63)));
        assert_eq!(pool_bit(Protocol::Sctp, 65_535), Some((POOL_WORDS - 1, 1 << 63)));
        assert_eq!(pool_bit(Protocol::Icmp, 7), None);
    }
}
