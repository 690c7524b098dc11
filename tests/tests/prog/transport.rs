//! Checksums of TCP and UDP where the change in place has to look twice.

use vmnat_common::{
    Outcome,
    checksum::{address_diff, is_same, pseudo_header, update},
    endpoint::Protocol,
};
use vmnat_tests::lab::frame::Packet;

use super::rig::{EXTERNAL, GUEST1, IntoAddress as _, PORT1, Rig, SERVER, from_guest1};

/// Where the checksum of a UDP datagram is, in a frame without options.
const CHECKSUM: usize = 40;

/// A datagram of guest 1, of all that differ in one word, whose checksum is as wanted.
fn datagram(wanted: impl Fn(u16) -> bool) -> Vec<u8> {
    (0..=u16::MAX)
        .map(|word| Packet::udp(from_guest1(SERVER), 5000, 7, &word.to_be_bytes()).bytes())
        .find(|frame| wanted(u16::from_ne_bytes([frame[CHECKSUM], frame[CHECKSUM + 1]])))
        .expect("one word in 65,536 gives any checksum")
}

#[test]
fn a_complete_checksum_that_looks_like_a_partial_one_stays_right() {
    let mut rig = Rig::new();
    let length = 8 + 2;
    let partial = pseudo_header(GUEST1.into_address(), SERVER.into_address(), Protocol::Udp.number(), length);
    let ran = rig.run("outbound_port", PORT1, &datagram(|sum| is_same(sum, partial)));
    assert_eq!(ran.outcome, Outcome::TranslatedOutbound);
    assert_eq!(ran.packet().source, EXTERNAL);
}

/// RFC 768: a checksum that comes out as zero is written as all ones, for zero says that there is none.
#[test]
fn a_checksum_that_becomes_zero_is_written_as_all_ones() {
    let mut rig = Rig::new();
    let diff = address_diff(GUEST1.into_address(), EXTERNAL.into_address());
    let ran = rig.run("outbound_port", PORT1, &datagram(|sum| sum != 0 && update(sum, diff) == 0));
    assert_eq!(ran.outcome, Outcome::TranslatedOutbound);
    assert_eq!(ran.packet().source, EXTERNAL);
    assert_eq!(ran.frame[CHECKSUM..CHECKSUM + 2], [0xff, 0xff]);
}
