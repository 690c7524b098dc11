//! From a guest to an external endpoint that leads to a guest.

use vmnat_common::{Outcome, flow::Side, reap::Mode};
use vmnat_tests::lab::frame::{Ends, Packet};

use super::{
    errors::{error, whole_quote},
    rig::{
        BRIDGE_MAC, DROP, EXTERNAL, GUEST1, GUEST1_MAC, GUEST2, GUEST2_MAC, PASS, PORT1, PORT2, REDIRECT,
        Rig, from_guest1, from_guest2,
    },
};

const PROGRAM: &str = "outbound_port";
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// A rig with a forward of TCP and UDP port 8080 to guest 1's port 80, and both guests' leases.
fn rig() -> Rig {
    let rig = Rig::new();
    rig.forward(6, 8080, GUEST1, 80);
    rig.forward(17, 8080, GUEST1, 80);
    rig.lease(GUEST1, GUEST1_MAC, PORT1);
    rig.lease(GUEST2, GUEST2_MAC, PORT2);
    rig
}

/// Guest 2 calls with this packet; returns the external port under which guest 1 sees it.
fn called(rig: &mut Rig, packet: &Packet) -> u16 {
    let ran = rig.run(PROGRAM, PORT2, &packet.bytes());
    assert_eq!((ran.code, ran.outcome), (REDIRECT, Outcome::Hairpin));
    let packet = ran.packet();
    assert_eq!((packet.source, packet.destination, packet.ttl), (EXTERNAL, GUEST1, 63));
    assert_eq!((&ran.frame[..6], &ran.frame[6..12]), (&GUEST1_MAC[..], &BRIDGE_MAC[..]));
    let (from, to) = packet.ports().unwrap();
    assert_eq!(to, 80);
    from
}

#[test]
fn a_sibling_is_seen_under_its_external_endpoint_and_answered_under_the_forwards() {
    let mut rig = rig();
    // A foreign claim on the sibling's own port, so that both ports change.
    rig.run(PROGRAM, PORT1, &Packet::tcp(from_guest1([198, 51, 100, 10]), 5000, 80, 1, SYN).bytes());
    for (request, answer) in [
        (
            Packet::tcp(from_guest2(EXTERNAL), 5000, 8080, 1, SYN),
            Packet::tcp(from_guest1(EXTERNAL), 80, 0, 1, SYN | ACK),
        ),
        (
            Packet::udp(from_guest2(EXTERNAL), 5000, 8080, b"request"),
            Packet::udp(from_guest1(EXTERNAL), 80, 0, b"answer"),
        ),
    ] {
        let external = called(&mut rig, &request);
        assert_eq!(called(&mut rig, &request), external, "further packets take the same way");
        let mut answer = answer;
        answer.body[2..4].copy_from_slice(&external.to_be_bytes());
        let ran = rig.run(PROGRAM, PORT1, &answer.bytes());
        assert_eq!((ran.code, ran.outcome), (REDIRECT, Outcome::Hairpin));
        let packet = ran.packet();
        assert_eq!((packet.source, packet.destination, packet.ttl), (EXTERNAL, GUEST2, 63));
        assert_eq!(packet.ports(), Some((8080, 5000)));
        assert_eq!((&ran.frame[..6], &ran.frame[6..12]), (&GUEST2_MAC[..], &BRIDGE_MAC[..]));
    }
    assert_eq!(rig.flows(), 2 + 4 + 4, "a hairpin is two sessions");
}

#[test]
fn a_guest_calls_itself() {
    let mut rig = rig();
    let ran = rig.run(PROGRAM, PORT1, &Packet::udp(from_guest1(EXTERNAL), 5000, 8080, b"x").bytes());
    let packet = ran.packet();
    assert_eq!((ran.outcome, packet.source, packet.destination), (Outcome::Hairpin, EXTERNAL, GUEST1));
    let external = packet.ports().unwrap().0;
    let back = rig.run(PROGRAM, PORT1, &Packet::udp(from_guest1(EXTERNAL), 80, external, b"y").bytes());
    assert_eq!((back.outcome, back.packet().ports()), (Outcome::Hairpin, Some((8080, 5000))));
}

#[test]
fn the_way_is_checked_again_every_few_seconds() {
    let mut rig = rig();
    let request = Packet::udp(from_guest2(EXTERNAL), 5000, 8080, b"x");
    let external = called(&mut rig, &request);
    rig.settings(|settings| settings.generation += 1);
    assert_eq!(called(&mut rig, &request), external);
    rig.settings(|settings| settings.generation += 1);
    let answer = Packet::udp(from_guest1(EXTERNAL), 80, external, b"y");
    assert_eq!(rig.run(PROGRAM, PORT1, &answer.bytes()).outcome, Outcome::Hairpin);
    assert_eq!(rig.flows(), 4);
}

#[test]
fn a_removed_forward_lets_live_conversations_go_on_and_opens_no_other() {
    let mut rig = rig();
    let request = Packet::udp(from_guest2(EXTERNAL), 5000, 8080, b"x");
    called(&mut rig, &request);
    rig.set_forwards(Vec::new());
    called(&mut rig, &request);
    let another = Packet::udp(from_guest2(EXTERNAL), 5001, 8080, b"x").bytes();
    let ran = rig.run(PROGRAM, PORT2, &another);
    assert_eq!((ran.code, ran.outcome), (PASS, Outcome::ToHost), "the host's own again");
    assert_eq!(ran.frame, another);
}

#[test]
fn a_conversation_that_was_ended_becomes_the_hosts() {
    let mut rig = rig();
    let request = Packet::udp(from_guest2(EXTERNAL), 5000, 8080, b"x");
    called(&mut rig, &request);
    let is_receivers =
        |key: &vmnat_common::flow::FlowKey| key.side == Side::Guest as u8 && key.source.octets() == GUEST1;
    let keys: Vec<_> = rig.tables.flow.entries().unwrap().into_iter().map(|(key, _)| key).collect();
    let receivers: Vec<_> = keys.into_iter().filter(is_receivers).collect();
    rig.tables.reap(Mode::Remove, &receivers).unwrap();
    rig.set_forwards(Vec::new());
    let ran = rig.run(PROGRAM, PORT2, &request.bytes());
    assert_eq!((ran.code, ran.outcome, ran.frame), (PASS, Outcome::ToHost, request.bytes()));
}

#[test]
fn spoofers_and_spent_packets_do_not_turn_round() {
    let mut rig = rig();
    let as_guest1 = Ends { from_mac: GUEST2_MAC, ..from_guest1(EXTERNAL) };
    let ran = rig.run(PROGRAM, PORT2, &Packet::udp(as_guest1, 5000, 8080, b"x").bytes());
    assert_eq!((ran.code, ran.outcome), (DROP, Outcome::SpoofedSource));
    let foreign = Ends { source: [8, 8, 8, 8], ..from_guest2(EXTERNAL) };
    let ran = rig.run(PROGRAM, PORT2, &Packet::udp(foreign, 5000, 8080, b"x").bytes());
    assert_eq!((ran.code, ran.outcome), (DROP, Outcome::ForeignSource));
    let request = Packet::udp(from_guest2(EXTERNAL), 5000, 8080, b"x");
    called(&mut rig, &request);
    let spent = Packet { ttl: 1, ..request };
    let ran = rig.run(PROGRAM, PORT2, &spent.bytes());
    assert_eq!((ran.code, ran.outcome), (DROP, Outcome::InboundTtlExpired));
    let reset = Packet::tcp(from_guest2(EXTERNAL), 5002, 8080, 1, 0x04);
    assert_eq!(rig.run(PROGRAM, PORT2, &reset.bytes()).outcome, Outcome::ResetWithoutFlow);
}

/// RFC 5508 REQ-7: 1. guest 2 calls; 2. guest 1 answers with port unreachable; 3. guest 2 gets it about its own packet, from the
/// external address.
#[test]
fn an_error_turns_round_too() {
    let mut rig = rig();
    let request = Packet::udp(from_guest2(EXTERNAL), 5000, 8080, b"request");
    let received = rig.run(PROGRAM, PORT2, &request.bytes()).frame[14..].to_vec();
    for length in [received.len(), 28] {
        let report = error(from_guest1(EXTERNAL), 3, 3, &received, length);
        let ran = rig.run(PROGRAM, PORT1, &report.bytes());
        assert_eq!((ran.code, ran.outcome), (REDIRECT, Outcome::Hairpin));
        let outer = ran.packet();
        assert_eq!((outer.source, outer.destination, outer.icmp()), (EXTERNAL, GUEST2, Some((3, 3))));
        assert_eq!((&ran.frame[..6], outer.ttl), (&GUEST2_MAC[..], 63));
        if length == received.len() {
            let inner = whole_quote(&ran);
            assert_eq!((inner.source, inner.destination), (GUEST2, EXTERNAL));
            assert_eq!(inner.ports(), Some((5000, 8080)));
        }
    }
    // What is about the guest's own conversation with the host is the host's.
    let about_host =
        error(from_guest1(EXTERNAL), 3, 3, &[&received[..20], &[0, 53, 0, 53, 0, 8, 0, 0]].concat(), 28);
    let ran = rig.run(PROGRAM, PORT1, &about_host.bytes());
    assert_eq!((ran.code, ran.outcome), (PASS, Outcome::ToHost));
}

/// The half that leads on may be missing where the table was full: the host gets the guest's error as it was sent.
#[test]
fn an_error_that_cannot_turn_round_passes_as_it_is() {
    let mut rig = rig();
    let request = Packet::udp(from_guest2(EXTERNAL), 5000, 8080, b"request");
    let received = rig.run(PROGRAM, PORT2, &request.bytes()).frame[14..].to_vec();
    let flows = rig.tables.flow.entries().unwrap();
    let onward = flows
        .iter()
        .map(|(key, _)| key)
        .find(|key| key.side == Side::Uplink as u8 && key.source_port.number() == 8080);
    assert!(rig.tables.flow.remove(onward.expect("the half that leads on")).unwrap());
    let report = error(from_guest1(EXTERNAL), 3, 3, &received, received.len()).bytes();
    let ran = rig.run(PROGRAM, PORT1, &report);
    assert_eq!((ran.code, ran.outcome, ran.frame), (PASS, Outcome::ToHost, report));
}
