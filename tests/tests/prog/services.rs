//! Which packets to a guest's gateway go past the host's INPUT rules, and which never do.

use vmnat_common::{
    Outcome, Port,
    service::{ServiceKey, ServiceWay},
};
use vmnat_tests::lab::frame::{Ends, Packet};

use super::rig::*;

const UDP: u8 = 17;

const INNER_MAC: [u8; 6] = [0x02, 0x76, 0x6d, 0x6e, 0, 1];
const OTHER_GATEWAY: [u8; 4] = [192, 168, 123, 1];

/// Names of the guests' own gateway are open over UDP.
fn rig(way: ServiceWay) -> Rig {
    let rig = Rig::new();
    rig.service(UDP, 53, way);
    rig.lease(GUEST1, GUEST1_MAC, PORT1);
    rig
}

fn question() -> Packet {
    Packet::udp(from_guest1(GATEWAY), 5000, 53, b"question")
}

#[test]
fn an_allowed_question_comes_in_by_the_loopback_with_no_macs_and_is_else_unchanged() {
    let mut rig = rig(ServiceWay::Host);
    let frame = question().bytes();
    for (program, interface) in [("outbound_port", PORT1), ("outbound_bridge", BRIDGE)] {
        let ran = rig.run(program, interface, &frame);
        assert_eq!((ran.code, ran.outcome), (REDIRECT, Outcome::GatewayService), "{program}");
        assert_eq!(ran.frame[..12], [0; 12]);
        assert_eq!(ran.frame[12..], frame[12..]);
    }
    assert_eq!((rig.flows(), rig.mappings()), (0, 0));
}

#[test]
fn what_is_not_allowed_is_left_to_the_host() {
    let mut rig = rig(ServiceWay::Host);
    let mut later = question();
    later.fragment = 8;
    let mut first = question();
    first.fragment = 0x2000;
    for (what, packet) in [
        ("another port", Packet::udp(from_guest1(GATEWAY), 5000, 22, b"x")),
        ("another protocol", Packet::tcp(from_guest1(GATEWAY), 5000, 53, 1, 2)),
        ("another bridge's gateway", Packet::udp(from_guest1(OTHER_GATEWAY), 5000, 53, b"x")),
        ("a first fragment", first),
        ("a later fragment", later),
    ] {
        let ran = rig.run("outbound_port", PORT1, &packet.bytes());
        assert_eq!(ran.code, PASS, "{what}: {:?}", ran.outcome);
        assert_eq!(ran.outcome, Outcome::ToHost, "{what}");
    }
}

#[test]
fn another_networks_gateway_is_open_to_its_own_guests_alone() {
    let mut rig = rig(ServiceWay::Host);
    let key = ServiceKey::new(OTHER_BRIDGE, OTHER_GATEWAY.into_address(), UDP, Port::new(53));
    rig.tables.service.set(&key, &ServiceWay::Host.value()).unwrap();
    let frame = Packet::udp(from_guest1(OTHER_GATEWAY), 5000, 53, b"x").bytes();
    let ran = rig.run("outbound_port", PORT1, &frame);
    assert_eq!((ran.code, ran.outcome), (PASS, Outcome::ToHost));
}

#[test]
fn a_source_that_is_no_guests_or_another_guests_gets_no_service() {
    let mut rig = rig(ServiceWay::Host);
    let from = |source, from_mac| {
        let ends = Ends { from_mac, to_mac: BRIDGE_MAC, source, destination: GATEWAY };
        Packet::udp(ends, 5000, 53, b"question").bytes()
    };
    for (source, mac, outcome) in [
        ([10, 1, 1, 1], GUEST1_MAC, Outcome::ForeignSource),
        (OTHER_GATEWAY, GUEST1_MAC, Outcome::ForeignSource),
        (GATEWAY, GUEST1_MAC, Outcome::SpoofedSource),
        (GUEST1, GUEST2_MAC, Outcome::SpoofedSource),
    ] {
        let ran = rig.run("outbound_port", PORT2, &from(source, mac));
        assert_eq!((ran.code, ran.outcome), (DROP, outcome), "{source:?}");
    }
}

#[test]
fn where_nobody_listens_the_question_goes_to_the_relay() {
    let mut rig = rig(ServiceWay::HostOrRelay);
    let frame = question().bytes();
    let ran = rig.run("outbound_port", PORT1, &frame);
    assert_eq!(ran.frame[..12], [0; 12], "there is no room yet");
    rig.room();
    let ran = rig.run("outbound_port", PORT1, &frame);
    assert_eq!((ran.code, ran.outcome), (REDIRECT, Outcome::GatewayService));
    assert_eq!((&ran.frame[..6], &ran.frame[6..12]), (&INNER_MAC[..], &BRIDGE_MAC[..]));
    assert_eq!(ran.frame[12..], frame[12..]);
    let server = std::net::UdpSocket::bind("0.0.0.0:53").unwrap();
    assert_eq!(rig.run("outbound_port", PORT1, &frame).frame[..12], [0; 12], "somebody listens");
    rig.service(UDP, 53, ServiceWay::Relay);
    assert_eq!(rig.run("outbound_port", PORT1, &frame).frame[..6], INNER_MAC);
    drop(server);
}

#[test]
fn the_relays_answer_goes_to_its_guest_and_nothing_else_that_looks_like_it() {
    let mut rig = rig(ServiceWay::HostOrRelay);
    rig.room();
    let answer = |destination, port| {
        let ends = Ends { from_mac: [2; 6], to_mac: [2; 6], source: GATEWAY, destination };
        Packet::udp(ends, port, 5000, b"answer").bytes()
    };
    let ran = rig.run("room_inward", ROOM_INNER, &answer(GUEST1, 53));
    assert_eq!((ran.code, ran.outcome), (REDIRECT, Outcome::GatewayService));
    assert_eq!((&ran.frame[..6], &ran.frame[6..12]), (&GUEST1_MAC[..], &BRIDGE_MAC[..]));
    for (destination, port) in [(GUEST1, 54), (EXTERNAL, 53), ([192, 168, 123, 9], 53)] {
        let ran = rig.run("room_inward", ROOM_INNER, &answer(destination, port));
        assert_eq!(ran.code, DROP, "{destination:?}:{port} {:?}", ran.outcome);
    }
    rig.service(UDP, 53, ServiceWay::Host);
    assert_eq!(rig.run("room_inward", ROOM_INNER, &answer(GUEST1, 53)).code, DROP);
}
