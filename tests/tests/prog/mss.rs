//! The largest segment that a handshake announces.

use vmnat_common::Outcome;
use vmnat_tests::lab::frame::Packet;

use super::rig::{PORT1, Ran, Rig, SERVER, UPLINK, from_guest1, from_world};

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// A segment with options, filled up to words.
fn segment(packet: &Packet, options: &[u8]) -> Packet {
    let mut packet = packet.clone();
    packet.body.extend(options);
    packet.body.resize(packet.body.len().next_multiple_of(4), 0);
    packet.body[12] = u8::try_from(packet.body.len() / 4).unwrap() << 4;
    packet
}

/// The options as they arrived; their checksum was added up by `Ran::packet`.
fn options(ran: &Ran) -> Vec<u8> {
    assert!(matches!(ran.outcome, Outcome::TranslatedOutbound | Outcome::TranslatedInbound));
    ran.packet().body[20..].to_vec()
}

fn announced(mss: u16) -> Vec<u8> {
    [&[2, 4], &mss.to_be_bytes()[..]].concat()
}

#[test]
fn a_handshake_announces_what_fits_the_narrower_side_both_ways() {
    let mut rig = Rig::new();
    rig.uplink(|uplink| uplink.mtu = 1400);
    let syn = segment(&Packet::tcp(from_guest1(SERVER), 5000, 80, 1, SYN), &announced(1460));
    assert_eq!(options(&rig.run("outbound_port", PORT1, &syn.bytes())), announced(1360));
    let answer = segment(&Packet::tcp(from_world(SERVER), 80, 5000, 1, SYN | ACK), &announced(1460));
    assert_eq!(options(&rig.run("inbound", UPLINK, &answer.bytes())), announced(1360));
}

#[test]
fn what_fits_stays_as_it_is() {
    let mut rig = Rig::new();
    for mss in [536, 1459, 1460] {
        let syn = segment(&Packet::tcp(from_guest1(SERVER), 5000 + mss, 80, 1, SYN), &announced(mss));
        assert_eq!(options(&rig.run("outbound_port", PORT1, &syn.bytes())), announced(mss));
    }
}

/// Behind other options and at an odd place; not in a segment without SYN; not what only looks like it.
#[test]
fn the_option_is_found_where_it_is_and_nowhere_else() {
    let mut rig = Rig::new();
    rig.uplink(|uplink| uplink.mtu = 1000);
    let mut port = 5000;
    let mut sent = |rig: &mut Rig, flags, list: &[u8]| {
        port += 1;
        let packet = segment(&Packet::tcp(from_guest1(SERVER), port, 80, 1, flags), list);
        options(&rig.run("outbound_port", PORT1, &packet.bytes()))
    };
    let timestamps = [8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
    let behind = [&[1, 1][..], &timestamps, &announced(1460)].concat();
    assert_eq!(sent(&mut rig, SYN, &behind), [&[1, 1][..], &timestamps, &announced(960)].concat());
    let odd = [&[1][..], &announced(1460), &[4, 2, 0]].concat();
    assert_eq!(sent(&mut rig, SYN, &odd), [&[1][..], &announced(960), &[4, 2, 0]].concat());
    assert_eq!(sent(&mut rig, ACK, &announced(1460)), announced(1460), "no handshake");
    let ended = [&[0][..], &announced(1460), &[0, 0, 0]].concat();
    assert_eq!(sent(&mut rig, SYN, &ended), ended, "behind the end of the list");
    for broken in
        [&[8, 0, 2, 4, 5, 180, 0, 0][..], &[8, 1, 2, 4, 5, 180, 0, 0], &[2, 3, 5, 180], &[1, 1, 2, 4]]
    {
        assert_eq!(sent(&mut rig, SYN, broken), broken);
    }
}
