//! Port forwards: which packet they invite, and what they count.

use std::{collections::BTreeMap, net::UdpSocket};

use vmnat_common::{
    Endpoint, Outcome, Port,
    flow::Side,
    forward::{Forward, ForwardCount, ForwardFlags, SourceKey, place},
    reap::Mode,
};
use vmnat_tests::lab::frame::Packet;

use super::rig::{
    BRIDGE, DROP, EXTERNAL, GUEST1, GUEST2, IntoAddress as _, OTHER_SERVER, PASS, PORT1, REDIRECT, Ran, Rig,
    SERVER, UPLINK, from_guest1, from_guest2, from_world,
};

const PROGRAM: &str = "inbound";
const SYN: u8 = 0x02;
const UDP: u8 = 17;
const SCTP: u8 = 132;

fn datagram(rig: &mut Rig, port: u16) -> Ran {
    rig.run(PROGRAM, UPLINK, &Packet::udp(from_world(SERVER), 4000, port, b"x").bytes())
}

fn counted(rig: &Rig, id: u32) -> ForwardCount {
    rig.tables.forward_count.get(&id).unwrap().unwrap()
}

fn forward(id: u32, port: u16, span: u16) -> Forward {
    let external = Endpoint::new(EXTERNAL.into_address(), Port::new(port));
    let (first, address) = (place(UDP, external), GUEST1.into_address());
    Forward { first, address, port: Port::new(port), span, id, bridge: BRIDGE, expires: 0, flags: 0 }
}

#[test]
fn a_range_leads_port_by_port_and_no_further() {
    let mut rig = Rig::new();
    rig.forward_range(UDP, 30_000..=39_999, GUEST1, 10_000);
    assert_eq!(rig.tables.forwards().unwrap().len(), 1, "one entry");
    for (port, leads_to) in [(30_000, 10_000), (34_567, 14_567), (39_999, 19_999)] {
        let ran = datagram(&mut rig, port);
        assert_eq!((ran.code, ran.packet().destination), (REDIRECT, GUEST1));
        assert_eq!(ran.packet().ports(), Some((4000, leads_to)));
        let answer = Packet::udp(from_guest1(SERVER), leads_to, 4000, b"y");
        let back = rig.run("outbound_port", PORT1, &answer.bytes());
        assert_eq!((back.packet().source, back.packet().ports()), (EXTERNAL, Some((port, 4000))));
    }
    for port in [29_999, 40_000] {
        let ran = datagram(&mut rig, port);
        assert_eq!((ran.code, ran.outcome), (PASS, Outcome::NoFlow));
    }
}

#[test]
fn each_of_many_forwards_is_found_and_nothing_between_them() {
    let mut rig = Rig::new();
    let ports: BTreeMap<u16, u16> = (0..100).map(|n| (1000 + n * 131, n % 7)).collect();
    let forwards = (1..).zip(&ports).map(|(id, (port, span))| forward(id, *port, *span)).collect();
    rig.set_forwards(forwards);
    for (port, span) in &ports {
        for (at, outcome) in [
            (port - 1, Outcome::NoFlow),
            (*port, Outcome::TranslatedInbound),
            (port + span, Outcome::TranslatedInbound),
            (port + span + 1, Outcome::NoFlow),
        ] {
            assert_eq!(datagram(&mut rig, at).outcome, outcome, "port {at}");
        }
    }
}

#[test]
fn the_set_is_replaced_in_one_step_and_live_flows_stay() {
    let mut rig = Rig::new();
    for round in 0..5_u16 {
        rig.set_forwards(vec![forward(1, 100 + round, 0), forward(2, 200 + round, 0)]);
        assert_eq!(datagram(&mut rig, 100 + round).outcome, Outcome::TranslatedInbound);
        assert_eq!(rig.tables.forwards().unwrap().len(), 2);
    }
    rig.set_forwards(Vec::new());
    assert_eq!(datagram(&mut rig, 204).outcome, Outcome::NoFlow);
    assert_eq!(datagram(&mut rig, 104).outcome, Outcome::TranslatedInbound, "a live flow");
}

#[test]
fn only_listed_sources_are_let_in_where_there_is_a_list() {
    let mut rig = Rig::new();
    rig.set_forwards(vec![Forward { flags: ForwardFlags::LIMITED, ..forward(7, 53, 0) }, forward(8, 54, 0)]);
    rig.tables.forward_source.set(&SourceKey::new(7, [198, 51, 100, 8].into_address(), 30), &1).unwrap();
    rig.tables.forward_source.set(&SourceKey::new(8, [0; 4].into_address(), 0), &1).unwrap();
    // 198.51.100.8/30 has .10 and not .20.
    assert_eq!(datagram(&mut rig, 53).outcome, Outcome::TranslatedInbound);
    let other = Packet::udp(from_world(OTHER_SERVER), 4000, 53, b"x").bytes();
    for _ in 0..3 {
        let ran = rig.run(PROGRAM, UPLINK, &other);
        assert_eq!((ran.code, ran.outcome), (DROP, Outcome::RefusedSource));
    }
    let count = counted(&rig, 7);
    assert_eq!((count.connections, count.refused, counted(&rig, 8).refused), (1, 3, 0));
    // A sibling is known by its own address.
    let sibling = Packet::udp(from_guest2(EXTERNAL), 4000, 53, b"x").bytes();
    assert_eq!(rig.run("outbound_port", 12, &sibling).outcome, Outcome::RefusedSource);
}

#[test]
fn an_expired_forward_invites_nobody() {
    let mut rig = Rig::new();
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).unwrap().tv_sec();
    let at = |seconds: i64| u32::try_from(now + seconds).unwrap();
    rig.set_forwards(vec![
        Forward { expires: at(-1), ..forward(1, 53, 0) },
        Forward { expires: at(60), ..forward(2, 54, 0) },
    ]);
    assert_eq!(datagram(&mut rig, 53).outcome, Outcome::NoFlow);
    assert_eq!(datagram(&mut rig, 54).outcome, Outcome::TranslatedInbound);
}

#[test]
fn what_the_host_converses_about_stays_the_hosts() {
    let mut rig = Rig::new();
    rig.forward_range(UDP, 8000..=8001, GUEST1, 80);
    let waiting = UdpSocket::bind("0.0.0.0:8000").unwrap();
    assert_eq!(datagram(&mut rig, 8000).outcome, Outcome::TranslatedInbound, "a socket that was stolen from");
    let conversing = UdpSocket::bind("0.0.0.0:8001").unwrap();
    conversing.connect("198.51.100.10:4000").unwrap();
    assert_eq!(datagram(&mut rig, 8001).outcome, Outcome::NoFlow);
    let another = Packet::udp(from_world(SERVER), 4001, 8001, b"x").bytes();
    assert_eq!(rig.run(PROGRAM, UPLINK, &another).outcome, Outcome::TranslatedInbound);
    drop((waiting, conversing));
}

#[test]
fn what_went_through_a_conversation_is_counted_when_it_ends() {
    let mut rig = Rig::new();
    let id = rig.forward(UDP, 53, GUEST1, 53);
    for _ in 0..3 {
        datagram(&mut rig, 53);
    }
    let answer = Packet::udp(from_guest1(SERVER), 53, 4000, b"answer").bytes();
    rig.run("outbound_port", PORT1, &answer);
    assert_eq!((counted(&rig, id).connections, counted(&rig, id).packets_in), (1, 0));
    let entries = rig.tables.flow.entries().unwrap();
    let (guests, uplinks): (Vec<_>, Vec<_>) =
        entries.into_iter().partition(|(key, _)| key.side == Side::Guest as u8);
    assert_eq!(uplinks[0].1.forward(), id, "a live conversation says whose it is");
    rig.tables.reap(Mode::Remove, &[guests[0].0]).unwrap();
    let count = counted(&rig, id);
    assert_eq!((count.packets_in, count.packets_out), (3, 1));
    assert_eq!((count.bytes_in, count.bytes_out), (3 * 29, 34));
}

#[test]
fn sctp_is_forwarded_by_address_with_ports_and_checksum_untouched() {
    let mut rig = Rig::new();
    rig.forward(SCTP, 5000, GUEST1, 5000);
    let body = [&[0x0f, 0xa0, 0x13, 0x88, 1, 2, 3, 4, 0xca, 0xfe, 0xba, 0xbe][..], b"init"].concat();
    let ran = rig.run(PROGRAM, UPLINK, &Packet::new(from_world(SERVER), SCTP, body.clone(), None).bytes());
    let packet = ran.packet();
    assert_eq!((ran.outcome, packet.destination, &packet.body), (Outcome::TranslatedInbound, GUEST1, &body));
    let answer = [&[0x13, 0x88, 0x0f, 0xa0, 1, 2, 3, 4, 0xca, 0xfe, 0xba, 0xbe][..], b"ack"].concat();
    let packet = Packet::new(from_guest1(SERVER), SCTP, answer.clone(), None).bytes();
    let back = rig.run("outbound_port", PORT1, &packet);
    assert_eq!((back.outcome, back.packet().source), (Outcome::TranslatedOutbound, EXTERNAL));
    assert_eq!(back.packet().body, answer);
}

#[test]
fn sctp_leaves_with_its_port_or_not_at_all() {
    let mut rig = Rig::new();
    let body = vec![0x0f, 0xa0, 0x13, 0x88, 1, 2, 3, 4, 5, 6, 7, 8];
    let first = Packet::new(from_guest1(SERVER), SCTP, body.clone(), None).bytes();
    let ran = rig.run("outbound_port", PORT1, &first);
    assert_eq!((ran.packet().source, &ran.packet().body), (EXTERNAL, &body));
    let second = rig.run("outbound_port", 12, &Packet::new(from_guest2(SERVER), SCTP, body, None).bytes());
    assert_eq!((second.code, second.outcome), (DROP, Outcome::FlowConflict));
}

#[test]
fn a_forward_of_the_hosts_loopback_is_not_for_frames() {
    let mut rig = Rig::new();
    let loopback = [127, 0, 0, 1];
    let external = Endpoint::new(loopback.into_address(), Port::new(53));
    rig.set_forwards(vec![Forward { first: place(UDP, external), ..forward(1, 53, 0) }]);
    let mut packet = Packet::udp(from_world(SERVER), 4000, 53, b"x");
    packet.destination = loopback;
    assert_eq!(rig.run(PROGRAM, UPLINK, &packet.bytes()).code, PASS);
    let sibling = Packet::udp(from_guest2(loopback), 4000, 53, b"x").bytes();
    assert_ne!(rig.run("outbound_port", 12, &sibling).outcome, Outcome::Hairpin);
    assert_eq!(rig.flows(), 0);
    assert_ne!(GUEST2, loopback);
}

#[test]
fn a_handshake_through_a_range_is_one_connection() {
    let mut rig = Rig::new();
    let id = rig.forward_range(6, 8000..=8999, GUEST1, 8000);
    for _ in 0..3 {
        rig.run(PROGRAM, UPLINK, &Packet::tcp(from_world(SERVER), 4000, 8500, 1, SYN).bytes());
    }
    assert_eq!((counted(&rig, id).connections, rig.flows()), (1, 2));
}
