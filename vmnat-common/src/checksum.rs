//! Checksum arithmetic: ones' complement sums and their differences (RFC 1071, RFC 1624).
//!
//! Differences are of words as they lie in memory, so they may be added to any checksum field of the packet
//! without a change of byte order (RFC 1071 section 2, byte order independence).

#![expect(clippy::arithmetic_side_effects, reason = "sums of a few 16- and 32-bit words never fill 64 bits")]

use crate::endpoint::{Address, Port};

/// Folds a sum to 16 bits.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "two folds leave 16 bits")]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + ((sum >> 32) & 0xffff) + (sum >> 48);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The ones' complement sum of two words.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "what two words carry over fits beside what is left")]
pub const fn sum(a: u16, b: u16) -> u16 {
    let sum = a as u32 + b as u32;
    let [low, high] = [sum & 0xffff, sum >> 16];
    (low + high) as u16
}

/// The difference that replacing `old` by `new` makes to a ones' complement sum.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "two folds leave 16 bits")]
pub const fn address_diff(old: Address, new: Address) -> u16 {
    // At most 0x1_ffff_fffe; computed for each packet, so no more steps than that takes.
    let sum = !old.to_wire() as u64 + new.to_wire() as u64;
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// The difference that replacing one port by another makes; zero when they are equal.
#[must_use]
pub const fn port_diff(old: Port, new: Port) -> u16 {
    if old.to_wire() == new.to_wire() { 0 } else { sum(!old.to_wire(), new.to_wire()) }
}

/// The difference that replacing one 16-bit word (in memory order) by another makes.
#[must_use]
pub const fn word_diff(old: u16, new: u16) -> u16 {
    sum(!old, new)
}

/// A checksum field (memory order) after the data under it changed by `diff`: RFC 1624 equation 3.
#[must_use]
pub const fn update(field: u16, diff: u16) -> u16 {
    !sum(!field, diff)
}

/// The sum of the pseudo-header that the checksums of TCP and UDP cover (RFC 9293 section 3.1): what a checksum field holds while
/// the rest is left to a device.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "two folds leave 16 bits")]
pub const fn pseudo_header(source: Address, destination: Address, protocol: u8, length: u16) -> u16 {
    let words = (protocol as u16).to_be() as u64 + length.to_be() as u64;
    let sum = source.to_wire() as u64 + destination.to_wire() as u64 + words;
    // 34 bits: 16, 16 and the rest.
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// True where two sums are the same number: 0 and 0xffff are one.
#[must_use]
pub const fn is_same(a: u16, b: u16) -> bool {
    a == b || (a ^ b == 0xffff && (a == 0 || b == 0))
}

/// The internet checksum of `bytes`, in host order, over an initial partial sum. For tests and user space.
#[must_use]
pub fn full(bytes: &[u8], initial: u64) -> u16 {
    let mut sum = initial;
    for pair in bytes.chunks(2) {
        let word = match *pair {
            [high, low] => u16::from_be_bytes([high, low]),
            [high] => u16::from_be_bytes([high, 0]),
            _ => 0,
        };
        sum = sum.wrapping_add(u64::from(word));
    }
    !fold(sum)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Equal as ones' complement numbers: 0 and 0xffff are one.
    fn same(a: u16, b: u16) -> bool {
        a == b || (a.min(b) == 0 && a.max(b) == 0xffff)
    }

    proptest! {
        #[test]
        fn incremental_equals_full(mut bytes in proptest::collection::vec(any::<u8>(), 24..200), new in any::<[u8; 4]>(), port in any::<u16>()) {
            let old = Address::new([bytes[12], bytes[13], bytes[14], bytes[15]]);
            let old_port = Port::new(u16::from_be_bytes([bytes[20], bytes[21]]));
            let before = full(&bytes, 0).to_be();
            bytes[12..16].copy_from_slice(&new);
            bytes[20..22].copy_from_slice(&port.to_be_bytes());
            let after = update(update(before, address_diff(old, Address::new(new))), port_diff(old_port, Port::new(port)));
            prop_assert!(same(u16::from_be(after), full(&bytes, 0)), "{:#x} {:#x}", u16::from_be(after), full(&bytes, 0));
        }

        #[test]
        fn fold_is_the_sum_modulo_ones_complement(a in any::<u64>()) {
            prop_assert_eq!(u64::from(fold(a)) % 0xffff, a % 0xffff);
        }
    }

    #[test]
    fn the_example_of_rfc_1624_holds() {
        // Section 4: a field of 0xdd2f whose word 0x5555 becomes 0x3285 must give 0x0000, not 0xffff.
        assert_eq!(update(0xdd2f, word_diff(0x5555, 0x3285)), 0x0000);
    }

    #[test]
    fn the_difference_of_addresses_is_folded_to_its_end() {
        let extremes = [0, 1, 0xffff, 0x1_0000, 0xffff_0000, 0xffff_fffe, u32::MAX];
        for (old, new) in extremes.into_iter().flat_map(|old| extremes.map(|new| (old, new))) {
            let folded = fold(u64::from(!old) + u64::from(new));
            assert_eq!(
                address_diff(Address::from_wire(old), Address::from_wire(new)),
                folded,
                "{old:x} {new:x}"
            );
        }
    }

    #[test]
    fn a_port_that_is_kept_makes_no_difference() {
        assert_eq!(port_diff(Port::new(0xffff), Port::new(0xffff)), 0);
    }
}
