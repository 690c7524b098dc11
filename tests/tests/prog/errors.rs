//! ICMP errors about a guest's flow, both ways.

use vmnat_common::Outcome;
use vmnat_tests::lab::frame::{Ends, Ipv4, Packet, checksum};

use super::rig::{
    BRIDGE_MAC, DROP, EXTERNAL, GUEST1, GUEST1_MAC, GUEST2_MAC, OTHER_SERVER, PASS, PORT1, PORT2, REDIRECT,
    Ran, Rig, SERVER, UPLINK, from_guest1, from_world, question,
};

/// A router in the path.
const ROUTER: [u8; 4] = [192, 0, 2, 77];

/// The packet as it left: what an error of the world quotes.
fn left(rig: &mut Rig, packet: &Packet) -> Vec<u8> {
    let ran = rig.run("outbound_port", PORT1, &packet.bytes());
    assert_eq!(ran.outcome, Outcome::TranslatedOutbound);
    ran.frame[14..].to_vec()
}

/// An ICMP error that quotes the first `length` bytes of `quoted`.
pub fn error(ends: Ends, kind: u8, code: u8, quoted: &[u8], length: usize) -> Packet {
    let body = [&[kind, code, 0, 0, 0, 0, 0, 0], &quoted[..length]].concat();
    Packet::new(ends, 1, body, Some(2))
}

/// The quoted packet, whose header checksum must be right.
fn quote(ran: &Ran) -> Vec<u8> {
    let quote = ran.packet().body[8..].to_vec();
    let header = usize::from(quote[0] & 0xf) * 4;
    assert_eq!(checksum(&[&quote[..header]]), 0, "the quoted header's checksum");
    quote
}

/// The quoted packet as one of its own: also its transport checksum must be right.
pub fn whole_quote(ran: &Ran) -> Ipv4 {
    let frame = [&[0; 12], &[0x08, 0x00][..], &quote(ran)].concat();
    let packet = Ipv4::parse(&frame).expect("a whole packet");
    assert!(packet.body_is_sound, "the quoted transport checksum");
    packet
}

#[test]
fn an_error_of_the_path_reaches_the_guest_with_its_own_packet_quoted() {
    let mut rig = Rig::new();
    let sent = question();
    let quoted = left(&mut rig, &sent);
    for (kind, code) in [(3, 0), (3, 1), (3, 3), (3, 4), (3, 13), (11, 0), (11, 1), (12, 0)] {
        let packet = error(from_world(ROUTER), kind, code, &quoted, quoted.len());
        let ran = rig.run("inbound", UPLINK, &packet.bytes());
        assert_eq!((ran.code, ran.outcome), (REDIRECT, Outcome::ErrorInbound));
        let outer = ran.packet();
        assert_eq!((outer.source, outer.destination, outer.icmp()), (ROUTER, GUEST1, Some((kind, code))));
        assert_eq!((&ran.frame[..6], &ran.frame[6..12], outer.ttl), (&GUEST1_MAC[..], &BRIDGE_MAC[..], 63));
        let inner = whole_quote(&ran);
        assert_eq!((inner.source, inner.destination, inner.ports()), (GUEST1, SERVER, Some((5000, 7))));
    }
    let flows = rig.tables.flow.entries().unwrap();
    assert!(
        flows.iter().all(|(key, session)| session.packets == u32::from(key.side == 0)),
        "errors refresh nothing"
    );
}

#[test]
fn a_quote_of_eight_bytes_is_enough() {
    let mut rig = Rig::new();
    // Guest 2 has the port first, so guest 1's is changed and the quote must be changed back.
    let other = Ends { from_mac: GUEST2_MAC, source: [192, 168, 122, 11], ..from_guest1(SERVER) };
    rig.run("outbound_port", PORT2, &Packet::tcp(other, 5000, 80, 1, 2).bytes());
    let quoted = left(&mut rig, &Packet::tcp(from_guest1(SERVER), 5000, 80, 1, 2));
    assert_ne!(quoted[20..22], 5000_u16.to_be_bytes());
    let ran = rig.run("inbound", UPLINK, &error(from_world(ROUTER), 3, 1, &quoted, 28).bytes());
    assert_eq!(ran.outcome, Outcome::ErrorInbound);
    let inner = quote(&ran);
    assert_eq!((&inner[12..16], &inner[20..22], inner.len()), (&GUEST1[..], &5000_u16.to_be_bytes()[..], 28));
    let whole = error(from_world(ROUTER), 3, 1, &quoted, quoted.len());
    let ran = rig.run("inbound", UPLINK, &whole.bytes());
    assert_eq!(whole_quote(&ran).ports(), Some((5000, 80)));
}

#[test]
fn an_error_about_a_ping_finds_the_guest_by_the_identifier() {
    let mut rig = Rig::new();
    let quoted = left(&mut rig, &Packet::echo(from_guest1(SERVER), 77, 1, b"ping"));
    let ran = rig.run("inbound", UPLINK, &error(from_world(ROUTER), 11, 0, &quoted, quoted.len()).bytes());
    assert_eq!((ran.outcome, ran.packet().destination), (Outcome::ErrorInbound, GUEST1));
    assert_eq!(whole_quote(&ran).body[4..6], 77_u16.to_be_bytes());
}

#[test]
fn options_in_the_quote_are_stepped_over() {
    let mut rig = Rig::new();
    let mut quoted = left(&mut rig, &question());
    quoted[0] = 0x46;
    quoted.splice(20..20, [1, 1, 1, 0]);
    let length = u16::try_from(quoted.len()).unwrap().to_be_bytes();
    quoted[2..4].copy_from_slice(&length);
    quoted[10..12].fill(0);
    let sum = checksum(&[&quoted[..24]]).to_be_bytes();
    quoted[10..12].copy_from_slice(&sum);
    let ran = rig.run("inbound", UPLINK, &error(from_world(ROUTER), 3, 3, &quoted, quoted.len()).bytes());
    assert_eq!((ran.outcome, whole_quote(&ran).source), (Outcome::ErrorInbound, GUEST1));
}

#[test]
fn errors_about_nothing_of_a_guests_are_the_hosts() {
    let mut rig = Rig::new();
    let quoted = left(&mut rig, &question());
    let mut passes = |quoted: &[u8], length| {
        let packet = error(from_world(ROUTER), 3, 3, quoted, length).bytes();
        let ran = rig.run("inbound", UPLINK, &packet);
        assert_eq!((ran.outcome, ran.code, &ran.frame), (Outcome::NoFlow, PASS, &packet));
    };
    let mut of_the_host = quoted.clone();
    of_the_host[21] ^= 1;
    passes(&of_the_host, of_the_host.len());
    let mut fragment = quoted.clone();
    fragment[7] = 9;
    passes(&fragment, fragment.len());
    let mut tunnel = quoted.clone();
    tunnel[9] = 47;
    passes(&tunnel, tunnel.len());
    for length in [0, 1, 19, 20, 23] {
        passes(&quoted, length);
    }
}

/// Any router may report an error, but no router outside has an address of a guest's network.
#[test]
fn an_error_with_a_guests_source_does_not_come_in() {
    let mut rig = Rig::new();
    let quoted = left(&mut rig, &question());
    for forged in [[192, 168, 122, 1], [192, 168, 122, 11], [192, 168, 123, 9]] {
        let packet = error(from_world(forged), 3, 1, &quoted, quoted.len());
        let ran = rig.run("inbound", UPLINK, &packet.bytes());
        assert_eq!((ran.outcome, ran.code), (Outcome::PrivateSource, DROP));
    }
}

#[test]
fn an_error_of_a_guest_leaves_with_the_external_tuple_quoted() {
    let mut rig = Rig::new();
    rig.run("outbound_port", PORT1, &question().bytes());
    let answer = rig.run("inbound", UPLINK, &Packet::udp(from_world(SERVER), 7, 5000, b"answer").bytes());
    let packet = error(from_guest1(SERVER), 3, 3, &answer.frame[14..], answer.frame.len() - 14);
    let ran = rig.run("outbound_port", PORT1, &packet.bytes());
    assert_eq!((ran.code, ran.outcome), (REDIRECT, Outcome::ErrorOutbound));
    let outer = ran.packet();
    assert_eq!((outer.source, outer.destination, outer.icmp()), (EXTERNAL, SERVER, Some((3, 3))));
    let inner = whole_quote(&ran);
    assert_eq!((inner.source, inner.destination, inner.ports()), (SERVER, EXTERNAL, Some((7, 5000))));
}

#[test]
fn a_guest_cannot_send_errors_about_anothers_flow_or_to_others() {
    let mut rig = Rig::new();
    rig.run("outbound_port", PORT1, &question().bytes());
    let answer = rig.run("inbound", UPLINK, &Packet::udp(from_world(SERVER), 7, 5000, b"answer").bytes());
    let quoted = &answer.frame[14..];
    let sibling = Ends { from_mac: GUEST2_MAC, source: [192, 168, 122, 11], ..from_guest1(SERVER) };
    let ran = rig.run("outbound_port", PORT2, &error(sibling, 3, 3, quoted, quoted.len()).bytes());
    assert_eq!((ran.outcome, ran.code), (Outcome::ErrorWithoutFlow, DROP));
    let elsewhere = error(from_guest1(OTHER_SERVER), 3, 3, quoted, quoted.len());
    let ran = rig.run("outbound_port", PORT1, &elsewhere.bytes());
    assert_eq!((ran.outcome, ran.code), (Outcome::ErrorWithoutFlow, DROP));
    let ran = rig.run("outbound_port", PORT1, &error(from_guest1(SERVER), 3, 3, quoted, 19).bytes());
    assert_eq!((ran.outcome, ran.code), (Outcome::ErrorWithoutFlow, DROP));
}

#[test]
fn an_error_with_a_damaged_header_in_its_quote_is_not_a_guests() {
    let mut rig = Rig::new();
    let mut quoted = left(&mut rig, &question());
    quoted[8] ^= 1;
    let packet = error(from_world(ROUTER), 3, 1, &quoted, quoted.len()).bytes();
    let ran = rig.run("inbound", UPLINK, &packet);
    assert_eq!((ran.code, ran.outcome), (PASS, Outcome::NoFlow));
}
