//! Who may answer to a mapping, from the world and from guests.

use vmnat_common::{Outcome, flow::Side, reap::Mode};
use vmnat_tests::lab::frame::Packet;

use super::rig::{
    EXTERNAL, GUEST1, GUEST1_MAC, GUEST2, GUEST2_MAC, OTHER_SERVER, PASS, PORT1, PORT2, REDIRECT, Rig,
    UPLINK, from_guest1, from_guest2, from_world, question,
};

const SYN: u8 = 0x02;

fn rig() -> Rig {
    let rig = Rig::new();
    rig.lease(GUEST1, GUEST1_MAC, PORT1);
    rig.lease(GUEST2, GUEST2_MAC, PORT2);
    rig
}

fn stranger(port: u16) -> Vec<u8> {
    Packet::udp(from_world(OTHER_SERVER), 9999, port, b"hello").bytes()
}

#[test]
fn strangers_reach_a_mapping_that_is_open_to_all() {
    let mut rig = rig();
    rig.open_to_all();
    rig.run("outbound_port", PORT1, &question().bytes());
    let ran = rig.run("inbound", UPLINK, &stranger(5000));
    assert_eq!((ran.code, ran.outcome), (REDIRECT, Outcome::TranslatedInbound));
    assert_eq!((ran.packet().destination, ran.packet().ports()), (GUEST1, Some((9999, 5000))));
    let answer = Packet::udp(from_guest1(OTHER_SERVER), 5000, 9999, b"hello back").bytes();
    let back = rig.run("outbound_port", PORT1, &answer);
    assert_eq!((back.packet().source, back.packet().ports()), (EXTERNAL, Some((5000, 9999))));
    // A port that nobody has mapped is the host's.
    assert_eq!(rig.run("inbound", UPLINK, &stranger(5001)).code, PASS);
    assert_eq!((rig.flows(), rig.mappings()), (4, 2));
}

#[test]
fn what_a_stranger_opened_counts_on_the_mapping() {
    let mut rig = rig();
    rig.open_to_all();
    rig.run("outbound_port", PORT1, &question().bytes());
    rig.run("inbound", UPLINK, &stranger(5000));
    let flows = |rig: &Rig| {
        let entries = rig.tables.mapping.entries().unwrap();
        entries.iter().map(|(_, mapping)| mapping.flows).max().unwrap()
    };
    assert_eq!(flows(&rig), 2);
    let guests = rig.tables.flow.entries().unwrap().into_iter().map(|(key, _)| key);
    let guests: Vec<_> = guests.filter(|key| key.side == Side::Guest as u8).collect();
    rig.tables.reap(Mode::Remove, &guests).unwrap();
    assert_eq!((flows(&rig), rig.flows()), (0, 0));
}

#[test]
fn a_socket_of_the_host_goes_before_an_open_mapping() {
    let mut rig = rig();
    rig.open_to_all();
    rig.run("outbound_port", PORT1, &question().bytes());
    let _socket = std::net::UdpSocket::bind("0.0.0.0:5000").unwrap();
    assert_eq!(rig.run("inbound", UPLINK, &stranger(5000)).outcome, Outcome::NoFlow);
}

/// Guest 2 calls the external endpoint that guest 1 has: let in only where guest 1 has called guest 2's.
#[test]
fn siblings_are_filtered_as_the_world_is() {
    let mut rig = rig();
    rig.run("outbound_port", PORT1, &question().bytes());
    let call = Packet::udp(from_guest2(EXTERNAL), 6000, 5000, b"call").bytes();
    let ran = rig.run("outbound_port", PORT2, &call);
    assert_eq!((ran.code, ran.outcome, &ran.frame), (PASS, Outcome::ToHost, &call));
    // Guest 1 answers the external endpoint of guest 2, as after an exchange of addresses by a third party.
    let answer = Packet::udp(from_guest1(EXTERNAL), 5000, 6000, b"answer").bytes();
    let ran = rig.run("outbound_port", PORT1, &answer);
    assert_eq!((ran.code, ran.outcome), (REDIRECT, Outcome::Hairpin));
    let packet = ran.packet();
    assert_eq!((packet.source, packet.destination, packet.ports()), (EXTERNAL, GUEST2, Some((5000, 6000))));
    let ran = rig.run("outbound_port", PORT2, &call);
    assert_eq!((ran.outcome, ran.packet().destination), (Outcome::Hairpin, GUEST1));
    assert_eq!(ran.packet().ports(), Some((6000, 5000)));
}

#[test]
fn siblings_reach_a_mapping_that_is_open_to_all() {
    let mut rig = rig();
    rig.open_to_all();
    rig.run("outbound_port", PORT1, &question().bytes());
    let ran = rig.run("outbound_port", PORT2, &Packet::udp(from_guest2(EXTERNAL), 6000, 5000, b"x").bytes());
    assert_eq!((ran.outcome, ran.packet().destination), (Outcome::Hairpin, GUEST1));
    assert_eq!((ran.packet().source, ran.packet().ports()), (EXTERNAL, Some((6000, 5000))));
    let syn = Packet::tcp(from_guest2(EXTERNAL), 6000, 5000, 1, SYN).bytes();
    assert_eq!(rig.run("outbound_port", PORT2, &syn).code, PASS, "the mapping is UDP's");
}

/// What coturn's and vovida's clients try: a socket calls its own external endpoint.
#[test]
fn a_socket_reaches_itself_by_its_own_mapping() {
    let mut rig = rig();
    rig.run("outbound_port", PORT1, &question().bytes());
    let ran = rig.run("outbound_port", PORT1, &Packet::udp(from_guest1(EXTERNAL), 5000, 5000, b"x").bytes());
    assert_eq!((ran.outcome, ran.packet().destination), (Outcome::Hairpin, GUEST1));
    assert_eq!((ran.packet().source, ran.packet().ports()), (EXTERNAL, Some((5000, 5000))));
}

/// The same from another socket of the guest: nobody is filtered from himself, and siblings still are.
#[test]
fn a_guest_reaches_its_own_mappings() {
    let mut rig = rig();
    rig.run("outbound_port", PORT1, &question().bytes());
    let ran = rig.run("outbound_port", PORT1, &Packet::udp(from_guest1(EXTERNAL), 6000, 5000, b"x").bytes());
    assert_eq!((ran.outcome, ran.packet().destination), (Outcome::Hairpin, GUEST1));
    assert_eq!((ran.packet().source, ran.packet().ports()), (EXTERNAL, Some((6000, 5000))));
    let sibling = Packet::udp(from_guest2(EXTERNAL), 6000, 5000, b"x").bytes();
    assert_eq!(rig.run("outbound_port", PORT2, &sibling).outcome, Outcome::ToHost);
}

#[test]
fn a_socket_of_the_host_goes_before_a_siblings_call_too() {
    let mut rig = rig();
    rig.open_to_all();
    rig.run("outbound_port", PORT1, &question().bytes());
    let _socket = std::net::UdpSocket::bind("0.0.0.0:5000").unwrap();
    let call = Packet::udp(from_guest2(EXTERNAL), 6000, 5000, b"x").bytes();
    let ran = rig.run("outbound_port", PORT2, &call);
    assert_eq!((ran.code, ran.outcome, ran.frame), (PASS, Outcome::ToHost, call));
}
