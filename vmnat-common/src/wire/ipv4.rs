//! IPv4 (RFC 791).

use core::mem::offset_of;

use network_types::ip::Ipv4Hdr;

/// Bytes of the header without options.
pub const LEN: usize = Ipv4Hdr::LEN;

/// Most bytes of a header.
pub const MAX_LEN: usize = 60;

/// Offset of version and header length.
pub const VERSION_IHL: usize = offset_of!(Ipv4Hdr, vihl);

/// Offset of the total length.
pub const TOTAL_LENGTH: usize = offset_of!(Ipv4Hdr, tot_len);

/// Offset of the identification.
pub const IDENTIFICATION: usize = offset_of!(Ipv4Hdr, id);

/// Offset of flags and fragment offset.
pub const FRAGMENT: usize = offset_of!(Ipv4Hdr, frags);

/// Offset of the time to live; the protocol follows it.
pub const TTL: usize = offset_of!(Ipv4Hdr, ttl);

/// Offset of the protocol.
pub const PROTOCOL: usize = offset_of!(Ipv4Hdr, proto);

/// Offset of the header checksum.
pub const CHECKSUM: usize = offset_of!(Ipv4Hdr, check);

/// Offset of the source address.
pub const SOURCE: usize = offset_of!(Ipv4Hdr, src_addr);

/// Offset of the destination address.
pub const DESTINATION: usize = offset_of!(Ipv4Hdr, dst_addr);

/// The bytes of the header that version and header length give; none when the version is not 4 or the header is
/// shorter than [`LEN`].
#[must_use]
pub const fn header_length(version_ihl: u8) -> Option<usize> {
    let length = ((version_ihl & 0x0f) as usize) << 2;
    if version_ihl >> 4 == 4 && length >= LEN { Some(length) } else { None }
}

/// True when flags and fragment offset (host order) are those of a fragment: more to come, or not the first.
#[must_use]
pub const fn is_fragment(field: u16) -> bool {
    field & 0x3fff != 0
}

/// True when the offset in flags and fragment offset (host order) is not zero: a fragment without transport header.
#[must_use]
pub const fn is_later_fragment(field: u16) -> bool {
    field & 0x1fff != 0
}

/// True when flags and fragment offset (host order) forbid fragmenting.
#[must_use]
pub const fn must_not_fragment(field: u16) -> bool {
    field & 0x4000 != 0
}

/// TTL and protocol as one half-word in memory order, after one hop, and the difference to the checksum.
#[must_use]
pub const fn one_hop_less(ttl_protocol: u16) -> (u16, u16) {
    let [ttl, protocol] = ttl_protocol.to_ne_bytes();
    let new = u16::from_ne_bytes([ttl.wrapping_sub(1), protocol]);
    (new, crate::checksum::word_diff(ttl_protocol, new))
}

/// TTL and protocol as one half-word in memory order, with one hop more where the largest number allows, and the difference to
/// the checksum.
#[must_use]
pub const fn one_hop_more(ttl_protocol: u16) -> (u16, u16) {
    let [ttl, protocol] = ttl_protocol.to_ne_bytes();
    let new = u16::from_ne_bytes([ttl.saturating_add(1), protocol]);
    (new, crate::checksum::word_diff(ttl_protocol, new))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::checksum;

    proptest! {
        #[test]
        fn decoding_never_panics(byte in any::<u8>(), field in any::<u16>()) {
            if let Some(length) = header_length(byte) {
                prop_assert!((LEN..=MAX_LEN).contains(&length));
            }
            let _ = (is_fragment(field), must_not_fragment(field));
        }

        #[test]
        fn a_hop_keeps_the_checksum_right(mut header in proptest::collection::vec(any::<u8>(), 20), ttl in 1u8..) {
            header[TTL] = ttl;
            header[CHECKSUM..CHECKSUM + 2].fill(0);
            let sum = checksum::full(&header, 0).to_be();
            let (word, diff) = one_hop_less(u16::from_ne_bytes([header[TTL], header[PROTOCOL]]));
            header[TTL..TTL + 2].copy_from_slice(&word.to_ne_bytes());
            prop_assert_eq!(header[TTL], ttl.saturating_sub(1));
            header[CHECKSUM..CHECKSUM + 2].copy_from_slice(&checksum::update(sum, diff).to_ne_bytes());
            prop_assert_eq!(checksum::full(&header, 0), 0);
        }
    }

    #[test]
    fn a_hop_given_and_taken_changes_nothing() {
        for ttl in 1..=255_u8 {
            let word = u16::from_ne_bytes([ttl, 17]);
            let (more, diff) = one_hop_more(word);
            let (back, _) = one_hop_less(more);
            assert_eq!(more.to_ne_bytes()[0], ttl.saturating_add(1));
            assert_eq!(back == word, ttl < 255);
            assert_eq!(
                checksum::update(checksum::update(0x1234, diff), checksum::word_diff(more, word)),
                0x1234
            );
        }
    }

    #[test]
    fn fragments_are_known() {
        assert!(!is_fragment(0x4000) && !is_fragment(0) && !is_fragment(0x8000));
        assert!(is_fragment(0x2000) && is_fragment(0x0001) && is_fragment(0x20b9));
        assert!(is_later_fragment(0x0001) && is_later_fragment(0x20b9) && !is_later_fragment(0x6000));
        assert!(must_not_fragment(0x4000) && !must_not_fragment(0x2000));
    }

    #[test]
    fn only_version_4_with_a_whole_header_decodes() {
        assert_eq!(header_length(0x45), Some(20));
        assert_eq!(header_length(0x4f), Some(60));
        assert_eq!((header_length(0x44), header_length(0x40), header_length(0x65)), (None, None, None));
    }
}
