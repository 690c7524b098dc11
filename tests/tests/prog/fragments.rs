//! Fragments: in order they are translated as they pass, out of order they go by the quiet room.

use vmnat_common::{Outcome, room};
use vmnat_tests::lab::frame::{Ends, Packet, checksum};

use super::rig::{
    BRIDGE_MAC, DROP, EXTERNAL, GUEST1, GUEST1_MAC, GUEST2_MAC, PASS, PORT1, PORT2, REDIRECT, ROOM_INNER,
    ROOM_OUTER, Ran, Rig, SERVER, UPLINK, from_guest1, from_guest2, from_world,
};

const MORE: u16 = 0x2000;

/// A datagram in parts of `size` bytes of its body, with right checksums, all with one identification.
pub fn parts(whole: &Packet, identification: u16, size: usize) -> Vec<Vec<u8>> {
    // The checksum covers the whole body, so it is taken from the whole datagram.
    let body = whole.bytes()[34..].to_vec();
    let last = body.chunks(size).count() - 1;
    let part = |(number, chunk): (usize, &[u8])| {
        let mut packet = whole.clone();
        packet.body = chunk.to_vec();
        packet.checksum_at = None;
        packet.fragment = u16::try_from(number * size / 8).unwrap() | if number < last { MORE } else { 0 };
        let mut frame = packet.bytes();
        frame[18..20].copy_from_slice(&identification.to_be_bytes());
        frame[24..26].copy_from_slice(&[0, 0]);
        let sum = checksum(&[&frame[14..34]]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame
    };
    body.chunks(size).enumerate().map(part).collect()
}

/// The datagram that these frames are parts of, and the identification that they share.
fn assembled(frames: &[Vec<u8>]) -> (Vec<u8>, u16) {
    let mut body = Vec::new();
    for frame in frames {
        assert_eq!(checksum(&[&frame[14..34]]), 0, "the header's checksum");
        let offset = usize::from(u16::from_be_bytes([frame[20], frame[21]]) & 0x1fff) * 8;
        body.resize(body.len().max(offset + frame.len() - 34), 0);
        body[offset..offset + frame.len() - 34].copy_from_slice(&frame[34..]);
    }
    let identification = |frame: &Vec<u8>| u16::from_be_bytes([frame[18], frame[19]]);
    assert!(frames.iter().all(|frame| identification(frame) == identification(&frames[0])));
    (body, identification(&frames[0]))
}

fn datagram(ends: Ends, from: u16, to: u16) -> Packet {
    let payload: Vec<u8> = (0..2500_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    Packet::udp(ends, from, to, &payload)
}

fn all(rig: &mut Rig, program: &'static str, port: u32, parts: &[Vec<u8>]) -> Vec<Ran> {
    parts.iter().map(|part| rig.run(program, port, part)).collect()
}

fn frames(ran: &[Ran]) -> Vec<Vec<u8>> {
    ran.iter().map(|ran| ran.frame.clone()).collect()
}

#[test]
fn fragments_in_order_are_translated_both_ways() {
    let mut rig = Rig::new();
    let sent = datagram(from_guest1(SERVER), 5000, 7);
    let ran = all(&mut rig, "outbound_port", PORT1, &parts(&sent, 0x4711, 1000));
    assert!(ran.iter().all(|ran| (ran.code, ran.outcome) == (REDIRECT, Outcome::TranslatedOutbound)));
    let mut expected = sent;
    expected.source = EXTERNAL;
    assert_eq!(
        assembled(&frames(&ran)),
        (expected.bytes()[34..].to_vec(), 0x4711),
        "one datagram, one translation"
    );
    let answer = datagram(from_world(SERVER), 7, 5000);
    let ran = all(&mut rig, "inbound", UPLINK, &parts(&answer, 99, 1000));
    assert!(ran.iter().all(|ran| (ran.code, ran.outcome) == (REDIRECT, Outcome::TranslatedInbound)));
    let mut expected = answer;
    expected.destination = GUEST1;
    assert_eq!(assembled(&frames(&ran)), (expected.bytes()[34..].to_vec(), 99));
    assert!(ran.iter().all(|ran| ran.frame[..6] == GUEST1_MAC));
    assert_eq!(rig.flows(), 2);
}

#[test]
fn tcp_and_echo_in_fragments_are_translated_too() {
    let mut rig = Rig::new();
    let mut segment = Packet::tcp(from_guest1(SERVER), 5000, 80, 1, 0x02);
    segment.body.extend([7; 2000]);
    let echo = Packet::echo(from_guest1(SERVER), 9, 1, &[8; 2000]);
    for (sent, identification) in [(segment, 1), (echo, 2)] {
        let ran = all(&mut rig, "outbound_port", PORT1, &parts(&sent, identification, 1000));
        assert!(ran.iter().all(|ran| ran.outcome == Outcome::TranslatedOutbound));
        let mut expected = sent;
        expected.source = EXTERNAL;
        assert_eq!(assembled(&frames(&ran)).0, expected.bytes()[34..]);
    }
}

/// RFC 6864: what two guests send with one identification to one remote cannot be told apart there, unless it is changed.
#[test]
fn one_identification_of_two_guests_never_mixes() {
    let mut rig = Rig::new();
    let one = parts(&datagram(from_guest1(SERVER), 5000, 7), 7, 1000);
    let other = parts(&datagram(from_guest2(SERVER), 6000, 7), 7, 1000);
    let mut left = (Vec::new(), Vec::new());
    for (first, second) in one.iter().zip(&other) {
        left.0.push(rig.run("outbound_port", PORT1, first).frame);
        left.1.push(rig.run("outbound_port", PORT2, second).frame);
    }
    let ((_, first), (body, second)) = (assembled(&left.0), assembled(&left.1));
    assert_eq!(first, 7, "the first keeps its own");
    assert_ne!(second, 7);
    let mut expected = datagram(from_guest2(SERVER), 6000, 7);
    expected.source = EXTERNAL;
    assert_eq!(body, expected.bytes()[34..]);
}

#[test]
fn the_hosts_own_fragments_pass_untouched() {
    let mut rig = Rig::new();
    rig.room();
    for part in parts(&datagram(from_world(SERVER), 53, 4000), 5, 1000) {
        let ran = rig.run("inbound", UPLINK, &part);
        assert_eq!((ran.code, ran.frame), (PASS, part));
        assert!(matches!(ran.outcome, Outcome::NoFlow | Outcome::InboundFragment));
    }
}

#[test]
fn without_a_room_a_headless_fragment_ends_here() {
    let mut rig = Rig::new();
    let sent = parts(&datagram(from_guest1(SERVER), 5000, 7), 7, 1000);
    let ran = rig.run("outbound_port", PORT1, &sent[1]);
    assert_eq!((ran.code, ran.outcome), (DROP, Outcome::Fragment));
    let inbound = parts(&datagram(from_world(SERVER), 7, 5000), 7, 1000);
    let ran = rig.run("inbound", UPLINK, &inbound[1]);
    assert_eq!((ran.code, ran.outcome), (PASS, Outcome::InboundFragment));
    assert_eq!(rig.flows(), 0);
}

/// 1. the last part comes first, so all go into the room; 2. what comes out in order is translated, in a session that it opens.
#[test]
fn a_datagram_out_of_order_goes_by_the_room_as_a_whole() {
    let mut rig = Rig::new();
    rig.room();
    let sent = datagram(from_guest1(SERVER), 5000, 7);
    let mut reversed = parts(&sent, 7, 1000);
    reversed.reverse();
    let ran = all(&mut rig, "outbound_port", PORT1, &reversed);
    for ran in &ran {
        assert_eq!((ran.code, ran.outcome), (REDIRECT, Outcome::QuietRoom));
        assert_eq!((&ran.frame[..6], ran.frame[22]), (&room::INNER_MAC.bytes()[..], 65));
    }
    assert_eq!(rig.flows(), 0);
    // The room takes a hop and gives them back in order.
    let ordered: Vec<_> =
        parts(&sent, 7, 1000).into_iter().map(|part| from_room(part, room::OUTER_MAC.bytes())).collect();
    let ran = all(&mut rig, "room_outward", ROOM_OUTER, &ordered);
    assert!(ran.iter().all(|ran| (ran.code, ran.outcome) == (REDIRECT, Outcome::TranslatedOutbound)));
    let mut expected = sent;
    expected.source = EXTERNAL;
    assert_eq!(assembled(&frames(&ran)).0, expected.bytes()[34..]);
    assert!(ran.iter().all(|ran| ran.frame[22] == 63), "one hop");
    // The guest's next packet rides the session that was opened for it.
    let next = Packet::udp(from_guest1(SERVER), 5000, 7, b"next").bytes();
    assert_eq!(rig.run("outbound_port", PORT1, &next).packet().ports(), Some((5000, 7)));
    assert_eq!(rig.flows(), 2);
}

pub fn from_room(mut frame: Vec<u8>, mac: [u8; 6]) -> Vec<u8> {
    frame[..6].copy_from_slice(&mac);
    frame[6..12].copy_from_slice(&mac);
    frame
}

/// It went into the room before it was known whose it is; out of it it goes to nobody without a hop left.
#[test]
fn a_datagram_whose_last_hop_was_the_host_reaches_no_guest() {
    let mut rig = Rig::new();
    rig.room();
    rig.run("outbound_port", PORT1, &Packet::udp(from_guest1(SERVER), 5000, 7, b"q").bytes());
    let mut answer = datagram(from_world(SERVER), 7, 5000);
    for (hops, outcome) in [(1, Outcome::InboundTtlExpired), (2, Outcome::TranslatedInbound)] {
        answer.ttl = hops;
        let frame = from_room(answer.bytes(), room::INNER_MAC.bytes());
        assert_eq!(rig.run("room_inward", ROOM_INNER, &frame).outcome, outcome);
    }
}

/// The same from the world: for a guest it is translated behind the room, the host's own is given back to the uplink, and passes.
#[test]
fn the_worlds_datagrams_out_of_order_find_their_way() {
    let mut rig = Rig::new();
    rig.room();
    rig.run("outbound_port", PORT1, &Packet::udp(from_guest1(SERVER), 5000, 7, b"q").bytes());
    for (port, outcome) in [(5000, Outcome::TranslatedInbound), (4000, Outcome::QuietRoom)] {
        let answer = datagram(from_world(SERVER), 7, port);
        let mut reversed = parts(&answer, port, 1000);
        reversed.reverse();
        let ran = all(&mut rig, "inbound", UPLINK, &reversed);
        assert!(ran.iter().all(|ran| (ran.code, ran.outcome) == (REDIRECT, Outcome::QuietRoom)));
        let ordered: Vec<_> = parts(&answer, port, 1000)
            .into_iter()
            .map(|part| from_room(part, room::INNER_MAC.bytes()))
            .collect();
        let ran = all(&mut rig, "room_inward", ROOM_INNER, &ordered);
        assert!(ran.iter().all(|ran| (ran.code, ran.outcome) == (REDIRECT, outcome)), "{:?}", ran[0].outcome);
        if outcome == Outcome::TranslatedInbound {
            let mut expected = answer;
            expected.destination = GUEST1;
            assert_eq!(assembled(&frames(&ran)).0, expected.bytes()[34..]);
        }
    }
}

#[test]
fn what_outgrows_the_uplink_and_may_be_cut_goes_by_the_room() {
    let mut rig = Rig::new();
    rig.room();
    rig.uplink(|uplink| uplink.mtu = 1000);
    let mut sent = datagram(from_guest1(SERVER), 5000, 7);
    let frame = sent.bytes();
    assert_eq!(rig.run("outbound_port", PORT1, &frame).outcome, Outcome::TooBig, "the kernel answers");
    sent.fragment = 0;
    let ran = rig.run("outbound_port", PORT1, &sent.bytes());
    assert_eq!((ran.code, ran.outcome), (REDIRECT, Outcome::QuietRoom));
    assert_eq!(ran.packet().ttl, 65, "one for the room");
    // What was cut comes out as fragments of the same session.
    let cut: Vec<_> =
        parts(&sent, 0x1234, 960).into_iter().map(|part| from_room(part, room::OUTER_MAC.bytes())).collect();
    let ran = all(&mut rig, "room_outward", ROOM_OUTER, &cut);
    assert!(ran.iter().all(|ran| ran.outcome == Outcome::TranslatedOutbound));
    sent.source = EXTERNAL;
    assert_eq!(assembled(&frames(&ran)).0, sent.bytes()[34..]);
}

/// What the world sends with its last hop, or larger than the guest's network carries, is answered by the room, from the external
/// address, about the packet as it was sent.
#[test]
fn the_room_answers_the_world_under_the_external_address() {
    let mut rig = Rig::new();
    rig.room();
    rig.run("outbound_port", PORT1, &Packet::udp(from_guest1(SERVER), 5000, 7, b"q").bytes());
    let mut spent = Packet::udp(from_world(SERVER), 7, 5000, b"last hop");
    spent.ttl = 1;
    let into = rig.run("inbound", UPLINK, &spent.bytes());
    assert_eq!((into.code, into.outcome, into.packet().ttl), (REDIRECT, Outcome::QuietRoom, 1));
    assert_eq!(into.packet().destination, EXTERNAL, "the quote shows what was sent");
    let error = |kind, code, quoted: &[u8], to| {
        let ends = Ends {
            from_mac: room::OUTER_MAC.bytes(),
            to_mac: room::OUTER_MAC.bytes(),
            source: room::ADDRESS.octets(),
            destination: to,
        };
        Packet::new(ends, 1, [&[kind, code, 0, 0, 0, 0, 0, 0], quoted].concat(), Some(2)).bytes()
    };
    let told = rig.run("room_outward", ROOM_OUTER, &error(11, 0, &into.frame[14..], SERVER));
    assert_eq!((told.code, told.outcome), (REDIRECT, Outcome::QuietRoom));
    let packet = told.packet();
    assert_eq!((packet.source, packet.destination, packet.icmp()), (EXTERNAL, SERVER, Some((11, 0))));
    assert_eq!(packet.body[8..][..20], into.frame[14..34]);
    // To a guest it speaks as its gateway.
    let refused = Packet::udp(from_guest1(SERVER), 5001, 7, b"q").bytes();
    let told = rig.run("room_inward", ROOM_INNER, &error(3, 13, &refused[14..], GUEST1));
    assert_eq!((told.outcome, told.packet().source), (Outcome::QuietRoom, [192, 168, 122, 1]));
    assert_eq!((&told.frame[..6], &told.frame[6..12]), (&GUEST1_MAC[..], &BRIDGE_MAC[..]));
    // About nothing of a guest's it says nothing.
    let stray = rig.run("room_outward", ROOM_OUTER, &error(11, 0, &refused[14..], SERVER));
    assert_eq!((stray.code, stray.outcome), (DROP, Outcome::ErrorWithoutFlow));
}

#[test]
fn a_first_fragment_too_short_for_its_ports_ends_here() {
    let mut rig = Rig::new();
    rig.room();
    let mut tiny = Packet::tcp(from_guest1(SERVER), 5000, 80, 1, 0x02);
    tiny.body.truncate(8);
    tiny.checksum_at = None;
    tiny.fragment = MORE;
    let ran = rig.run("outbound_port", PORT1, &tiny.bytes());
    assert_eq!((ran.code, ran.outcome), (DROP, Outcome::Truncated));
}

#[test]
fn a_siblings_or_foreign_source_does_not_get_into_the_room() {
    let mut rig = Rig::new();
    rig.room();
    rig.lease(GUEST1, GUEST1_MAC, PORT1);
    let as_guest1 = Ends { from_mac: GUEST2_MAC, ..from_guest1(SERVER) };
    let ran = rig.run("outbound_port", PORT2, &parts(&datagram(as_guest1, 5000, 7), 7, 1000)[1]);
    assert_eq!((ran.code, ran.outcome), (DROP, Outcome::SpoofedSource));
    let foreign = Ends { source: [8, 8, 8, 8], ..from_guest2(SERVER) };
    let ran = rig.run("outbound_port", PORT2, &parts(&datagram(foreign, 5000, 7), 7, 1000)[1]);
    assert_eq!((ran.code, ran.outcome), (DROP, Outcome::ForeignSource));
}
