//! What a packet of the world becomes.

use vmnat_common::Outcome;
use vmnat_tests::lab::frame::Packet;

use super::rig::{
    BRIDGE_MAC, DROP, EXTERNAL, GUEST1, GUEST1_MAC, GUEST2, GUEST2_MAC, IntoAddress as _, OTHER_SERVER, PASS,
    PORT1, PORT2, REDIRECT, Rig, SERVER, UPLINK, from_guest1, from_guest2, from_world, question,
};

const PROGRAM: &str = "inbound";
const SYN: u8 = 0x02;
const RST: u8 = 0x04;

fn answer() -> Packet {
    Packet::udp(from_world(SERVER), 7, 5000, b"answer")
}

fn passes(rig: &mut Rig, packet: &[u8], outcome: Outcome) {
    let ran = rig.run(PROGRAM, UPLINK, packet);
    assert_eq!((ran.outcome, ran.code), (outcome, PASS));
    assert_eq!(ran.frame, packet, "the host's own is not touched");
}

fn drops(rig: &mut Rig, packet: &[u8], outcome: Outcome) {
    let ran = rig.run(PROGRAM, UPLINK, packet);
    assert_eq!((ran.outcome, ran.code), (outcome, DROP));
}

#[test]
fn reply_reaches_the_guest_that_asked() {
    let mut rig = Rig::new();
    rig.run("outbound_port", PORT1, &question().bytes());
    let second = rig.run("outbound_port", PORT2, &Packet::udp(from_guest2(SERVER), 5000, 7, b"").bytes());
    let second_port = second.packet().ports().unwrap().0;
    for (port, guest, mac) in [(5000, GUEST1, GUEST1_MAC), (second_port, GUEST2, GUEST2_MAC)] {
        let ran = rig.run(PROGRAM, UPLINK, &Packet::udp(from_world(SERVER), 7, port, b"answer").bytes());
        assert_eq!((ran.code, ran.outcome), (REDIRECT, Outcome::TranslatedInbound));
        let packet = ran.packet();
        assert_eq!((packet.source, packet.destination, packet.ports()), (SERVER, guest, Some((7, 5000))));
        assert_eq!((packet.ttl, packet.from_mac, &ran.frame[..6]), (63, BRIDGE_MAC, &mac[..]));
    }
}

#[test]
fn tcp_and_echo_answers_reach_the_guest() {
    let mut rig = Rig::new();
    rig.run("outbound_port", PORT1, &Packet::tcp(from_guest1(SERVER), 5000, 80, 1, SYN).bytes());
    let ran = rig.run(PROGRAM, UPLINK, &Packet::tcp(from_world(SERVER), 80, 5000, 1, SYN | 0x10).bytes());
    assert_eq!((ran.outcome, ran.packet().destination), (Outcome::TranslatedInbound, GUEST1));
    rig.run("outbound_port", PORT1, &Packet::echo(from_guest1(SERVER), 9, 1, b"ping").bytes());
    let mut reply = Packet::echo(from_world(SERVER), 9, 1, b"ping");
    reply.body[0] = 0;
    let ran = rig.run(PROGRAM, UPLINK, &reply.bytes());
    assert_eq!((ran.outcome, ran.packet().destination), (Outcome::TranslatedInbound, GUEST1));
}

#[test]
fn strangers_are_not_let_in_on_a_mapping() {
    let mut rig = Rig::new();
    rig.run("outbound_port", PORT1, &question().bytes());
    passes(&mut rig, &Packet::udp(from_world(OTHER_SERVER), 7, 5000, b"").bytes(), Outcome::NoFlow);
    passes(&mut rig, &Packet::udp(from_world(SERVER), 8, 5000, b"").bytes(), Outcome::NoFlow);
    assert_eq!(rig.flows(), 2);
}

#[test]
fn the_hosts_own_passes_untouched() {
    let mut rig = Rig::new();
    passes(&mut rig, &answer().bytes(), Outcome::NoFlow);
    passes(&mut rig, &Packet::echo(from_world(SERVER), 9, 1, b"ping").bytes(), Outcome::NoFlow);
    passes(&mut rig, &Packet::new(from_world(SERVER), 47, vec![0; 20], None).bytes(), Outcome::NoFlow);
    let mut fragment = answer().bytes();
    fragment[20..22].copy_from_slice(&[0x20, 0xb9]);
    passes(&mut rig, &fragment, Outcome::InboundFragment);
    let mut arp = answer().bytes();
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    passes(&mut rig, &arp, Outcome::NotIpv4);
    let mut v6 = Packet::udp(from_world(SERVER), 7, 5000, &[0; 40]).bytes();
    v6[12..14].copy_from_slice(&[0x86, 0xdd]);
    passes(&mut rig, &v6, Outcome::NotIpv4);
}

#[test]
fn guests_cannot_be_addressed_or_played_from_outside() {
    let mut rig = Rig::new();
    let mut direct = answer();
    direct.destination = GUEST1;
    drops(&mut rig, &direct.bytes(), Outcome::PrivateDestination);
    let mut forged = answer();
    forged.source = GUEST2;
    drops(&mut rig, &forged.bytes(), Outcome::PrivateSource);
}

#[test]
fn an_answer_without_a_hop_left_ends_here() {
    let mut rig = Rig::new();
    rig.run("outbound_port", PORT1, &question().bytes());
    let mut packet = answer();
    packet.ttl = 1;
    drops(&mut rig, &packet.bytes(), Outcome::InboundTtlExpired);
}

#[test]
fn an_answer_larger_than_the_guests_network_is_refused() {
    let mut rig = Rig::new();
    rig.run("outbound_port", PORT1, &question().bytes());
    drops(&mut rig, &Packet::udp(from_world(SERVER), 7, 5000, &[0; 1473]).bytes(), Outcome::InboundTooBig);
    let fits = rig.run(PROGRAM, UPLINK, &Packet::udp(from_world(SERVER), 7, 5000, &[0; 1472]).bytes());
    assert_eq!(fits.outcome, Outcome::TranslatedInbound);
}

#[test]
fn a_port_forward_opens_a_session_and_its_answers_leave_by_the_forwarded_port() {
    let mut rig = Rig::new();
    let id = rig.forward(6, 8080, GUEST1, 80);
    rig.lease(GUEST1, GUEST1_MAC, PORT1);
    let ran = rig.run(PROGRAM, UPLINK, &Packet::tcp(from_world(OTHER_SERVER), 3333, 8080, 1, SYN).bytes());
    assert_eq!((ran.code, ran.outcome), (REDIRECT, Outcome::TranslatedInbound));
    let packet = ran.packet();
    assert_eq!((packet.source, packet.destination), (OTHER_SERVER, GUEST1), "the client's address is kept");
    assert_eq!((packet.ports(), &ran.frame[..6]), (Some((3333, 80)), &GUEST1_MAC[..]));
    let back = rig.run(
        "outbound_port",
        PORT1,
        &Packet::tcp(from_guest1(OTHER_SERVER), 80, 3333, 1, SYN | 0x10).bytes(),
    );
    let packet = back.packet();
    assert_eq!((packet.source, packet.ports()), (EXTERNAL, Some((8080, 3333))));
    assert_eq!((rig.flows(), rig.mappings()), (2, 0));
    assert_eq!(rig.tables.forward_count.get(&id).unwrap().unwrap().connections, 1);
}

#[test]
fn a_port_forward_to_a_guest_without_a_lease_goes_by_the_neighbour_table() {
    let mut rig = Rig::new();
    rig.forward(17, 53, GUEST1, 53);
    let ran = rig.run(PROGRAM, UPLINK, &Packet::udp(from_world(SERVER), 4444, 53, b"").bytes());
    assert_eq!((ran.code, ran.packet().destination), (REDIRECT, GUEST1));
    let back = rig.run("outbound_port", PORT1, &Packet::udp(from_guest1(SERVER), 53, 4444, b"").bytes());
    assert_eq!((back.outcome, back.packet().source), (Outcome::TranslatedOutbound, EXTERNAL));
    let lease = rig.tables.lease.get(&GUEST1.into_address()).unwrap();
    assert_eq!(lease.map(|lease| lease.port), Some(PORT1), "the answer taught where the guest lives");
}

#[test]
fn a_port_forward_invites_no_nonsense() {
    let mut rig = Rig::new();
    rig.forward(6, 8080, GUEST1, 80);
    drops(&mut rig, &Packet::tcp(from_world(SERVER), 1, 8080, 1, RST).bytes(), Outcome::ResetWithoutFlow);
    drops(&mut rig, &Packet::tcp(from_world(SERVER), 1, 8080, 1, 0).bytes(), Outcome::BadTcpFlags);
    passes(&mut rig, &Packet::udp(from_world(SERVER), 1, 8080, b"").bytes(), Outcome::NoFlow);
    assert_eq!(rig.flows(), 0);
}
