//! What a guest's packet becomes.

use vmnat_common::{Address, Outcome, bridge::BridgePortFlags, port_range::POOL_WORDS, settings::Settings};
use vmnat_tests::lab::frame::{Ends, Packet};

use super::rig::{
    BRIDGE, DROP, EXTERNAL, FLOWS, GATEWAY, GUEST1, GUEST1_MAC, GUEST2, GUEST2_MAC, IntoAddress as _,
    OTHER_SERVER, PASS, PORT1, PORT2, REDIRECT, Ran, Rig, SERVER, UPLINK, from_guest1, from_guest2,
    from_world, question,
};

const PROGRAM: &str = "outbound_port";
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const RST: u8 = 0x04;
const FIN: u8 = 0x01;

/// The packet must end so, unchanged where it is passed, and leave no flow.
fn ends_as(rig: &mut Rig, packet: &[u8], outcome: Outcome, code: i32) {
    let ran = rig.run(PROGRAM, PORT1, packet);
    assert_eq!((ran.outcome, ran.code), (outcome, code));
    assert_eq!(ran.frame, packet, "a packet that is not forwarded is not changed");
    assert_eq!((rig.flows(), rig.mappings()), (0, 0), "and opens nothing");
}

/// An ARP request for the gateway.
fn arp(mac: [u8; 6], address: [u8; 4]) -> Vec<u8> {
    let mut frame = [[0xff; 6], mac].as_flattened().to_vec();
    frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(address);
    frame.extend([0; 6]);
    frame.extend(GATEWAY);
    frame
}

fn external_port(ran: &Ran) -> u16 {
    assert_eq!((ran.code, ran.outcome), (REDIRECT, Outcome::TranslatedOutbound));
    let packet = ran.packet();
    assert_eq!(packet.source, EXTERNAL);
    packet.ports().unwrap().0
}

#[test]
fn udp_leaves_with_the_external_source_and_one_hop_less() {
    let mut rig = Rig::new();
    let ran = rig.run(PROGRAM, PORT1, &question().bytes());
    let port = external_port(&ran);
    let packet = ran.packet();
    assert_eq!((packet.destination, packet.ttl, &packet.body[8..]), (SERVER, 63, &b"question"[..]));
    assert_eq!(packet.ports(), Some((port, 7)));
    assert_eq!(port, 5000, "a free port of the pool is kept");
    assert_eq!((rig.flows(), rig.mappings()), (2, 2));
}

#[test]
fn tcp_leaves_with_the_external_source() {
    let mut rig = Rig::new();
    let ran = rig.run(PROGRAM, PORT1, &Packet::tcp(from_guest1(SERVER), 40_001, 80, 1, SYN).bytes());
    assert_eq!(external_port(&ran), 40_001);
    assert_eq!((rig.flows(), rig.mappings()), (2, 2));
}

#[test]
fn echo_leaves_with_the_external_source_and_its_identifier() {
    let mut rig = Rig::new();
    let ran = rig.run(PROGRAM, PORT1, &Packet::echo(from_guest1(SERVER), 77, 1, b"ping").bytes());
    assert_eq!((ran.code, ran.outcome), (REDIRECT, Outcome::TranslatedOutbound));
    let packet = ran.packet();
    assert_eq!((packet.source, packet.icmp()), (EXTERNAL, Some((8, 0))));
    assert_eq!(packet.body[4..6], 77_u16.to_be_bytes());
}

#[test]
fn two_guests_with_one_echo_identifier_get_two() {
    let mut rig = Rig::new();
    let one = rig.run(PROGRAM, PORT1, &Packet::echo(from_guest1(SERVER), 1, 1, b"ping").bytes());
    let two = rig.run(PROGRAM, PORT2, &Packet::echo(from_guest2(SERVER), 1, 1, b"ping").bytes());
    assert_ne!(one.packet().body[4..6], two.packet().body[4..6]);
}

#[test]
fn a_further_packet_rides_the_same_session() {
    let mut rig = Rig::new();
    let first = external_port(&rig.run(PROGRAM, PORT1, &question().bytes()));
    let second = external_port(&rig.run(PROGRAM, PORT1, &question().bytes()));
    assert_eq!(first, second);
    assert_eq!((rig.flows(), rig.mappings()), (2, 2));
    let flows = rig.tables.flow.entries().unwrap();
    let packets: Vec<_> = flows.iter().map(|(_, session)| session.packets).collect();
    assert!(packets.contains(&2) && packets.contains(&0), "each direction counts its own: {packets:?}");
}

/// What opens a flow is counted with it, unless it then went nowhere.
#[test]
fn the_first_packet_is_counted_once_and_one_that_is_too_large_is_not() {
    for (size, counted) in [(100_u16, 1), (1500, 0)] {
        let mut rig = Rig::new();
        rig.run(PROGRAM, PORT1, &Packet::udp(from_guest1(SERVER), 5000, 7, &vec![0; size.into()]).bytes());
        let flows = rig.tables.flow.entries().unwrap();
        let counts: Vec<_> =
            flows.iter().map(|(key, session)| (key.side, session.packets, session.bytes)).collect();
        let bytes = counted * (u32::from(size) + 28);
        assert!(counts.contains(&(0, counted, bytes)) && counts.contains(&(1, 0, 0)), "{size}: {counts:?}");
    }
}

#[test]
fn mapping_does_not_depend_on_the_destination() {
    let mut rig = Rig::new();
    let changed = Packet::udp(from_guest2(SERVER), 5000, 7, b"");
    external_port(&rig.run(PROGRAM, PORT2, &changed.bytes()));
    let ports: Vec<u16> = [(SERVER, 7), (SERVER, 8), (OTHER_SERVER, 7)]
        .map(|(to, port)| {
            external_port(&rig.run(PROGRAM, PORT1, &Packet::udp(from_guest1(to), 5000, port, b"").bytes()))
        })
        .to_vec();
    assert!(ports.iter().all(|port| *port == ports[0] && *port != 5000), "{ports:?}");
    assert_eq!((rig.flows(), rig.mappings()), (8, 4));
}

#[test]
fn a_changed_port_keeps_parity_and_class() {
    let mut rig = Rig::new();
    for source in [600_u16, 601, 20_000, 20_001] {
        external_port(&rig.run(PROGRAM, PORT2, &Packet::udp(from_guest2(SERVER), source, 7, b"").bytes()));
        let port = external_port(&rig.run(
            PROGRAM,
            PORT1,
            &Packet::udp(from_guest1(SERVER), source, 7, b"").bytes(),
        ));
        assert_ne!(port, source);
        assert_eq!((port % 2, port < 1024), (source % 2, source < 1024), "{source} became {port}");
    }
}

#[test]
fn a_port_outside_the_pool_is_never_given() {
    let mut rig = Rig::new();
    for word in 0..POOL_WORDS {
        let bits = if word == 1024 + 40_000 / 64 { u64::MAX } else { 0 };
        rig.tables.port_pool.set(&word, &bits).unwrap();
    }
    rig.settings(|settings| (settings.pool_first, settings.pool_last) = (40_000, 40_063));
    for source in 5000..5004 {
        let port = external_port(&rig.run(
            PROGRAM,
            PORT1,
            &Packet::udp(from_guest1(SERVER), source, 7, b"").bytes(),
        ));
        assert!((40_000..40_064).contains(&port), "{port}");
    }
}

#[test]
fn a_port_that_a_socket_of_the_host_holds_is_not_given() {
    let mut rig = Rig::new();
    let _socket = std::net::UdpSocket::bind("0.0.0.0:5000").unwrap();
    let port = external_port(&rig.run(PROGRAM, PORT1, &question().bytes()));
    assert_ne!(port, 5000);
    let _listener = std::net::TcpListener::bind("0.0.0.0:5000").unwrap();
    let ran = rig.run(PROGRAM, PORT1, &Packet::tcp(from_guest1(SERVER), 5000, 80, 1, SYN).bytes());
    assert_ne!(external_port(&ran), 5000);
}

#[test]
fn without_a_free_port_the_flow_is_refused() {
    let mut rig = Rig::new();
    for word in 0..POOL_WORDS {
        rig.tables.port_pool.set(&word, &0).unwrap();
    }
    ends_as(&mut rig, &question().bytes(), Outcome::PortsExhausted, DROP);
}

#[test]
fn a_full_pool_shares_ports_towards_other_remotes_only() {
    let mut rig = Rig::new();
    rig.settings(|settings| (settings.pool_first, settings.pool_last) = (5000, 5001));
    let run = |rig: &mut Rig, port, packet: Packet| rig.run(PROGRAM, port, &packet.bytes());
    let first = run(&mut rig, PORT1, question());
    assert_eq!(external_port(&first), 5000);
    let shared = run(&mut rig, PORT2, Packet::udp(from_guest2(OTHER_SERVER), 5000, 7, b""));
    assert_eq!(external_port(&shared), 5000);
    let refused = run(&mut rig, PORT2, Packet::udp(from_guest2(SERVER), 5000, 7, b""));
    assert_eq!((refused.code, refused.outcome), (DROP, Outcome::PortsExhausted));
}

#[test]
fn a_full_table_refuses_new_flows_and_keeps_the_old() {
    let mut rig = Rig::new();
    let mut opened = 0;
    let refused = loop {
        let ran = rig.run(PROGRAM, PORT1, &Packet::udp(from_guest1(SERVER), 2000 + opened, 7, b"").bytes());
        if ran.outcome != Outcome::TranslatedOutbound {
            break ran;
        }
        opened += 1;
    };
    assert_eq!((refused.code, refused.outcome), (DROP, Outcome::FlowTableFull));
    assert!(u32::from(opened) >= FLOWS - 2, "{opened} flows fit");
    let old = rig.run(PROGRAM, PORT1, &Packet::udp(from_guest1(SERVER), 2000, 7, b"").bytes());
    assert_eq!(external_port(&old), 2000);
}

#[test]
fn a_sibling_cannot_ride_a_live_tuple_or_open_another() {
    let mut rig = Rig::new();
    external_port(&rig.run(PROGRAM, PORT1, &question().bytes()));
    for from_mac in [GUEST2_MAC, GUEST1_MAC] {
        for source_port in [5000, 5001] {
            let ends = Ends { from_mac, ..from_guest1(SERVER) };
            let ran = rig.run(PROGRAM, PORT2, &Packet::udp(ends, source_port, 7, b"").bytes());
            assert_eq!((ran.code, ran.outcome), (DROP, Outcome::SpoofedSource));
        }
    }
    external_port(&rig.run(PROGRAM, PORT1, &question().bytes()));
}

#[test]
fn a_guest_keeps_its_flow_when_its_port_is_another_after_the_old_one_has_gone() {
    let mut rig = Rig::new();
    let first = external_port(&rig.run(PROGRAM, PORT1, &question().bytes()));
    rig.tables.bridge_port.remove(&PORT1).unwrap();
    let second = external_port(&rig.run(PROGRAM, PORT2, &question().bytes()));
    assert_eq!((first, rig.flows()), (second, 2));
    let lease = rig.tables.lease.get(&GUEST1.into_address()).unwrap().unwrap();
    assert_eq!(lease.port, PORT2);
}

#[test]
fn a_guest_keeps_its_flow_when_arp_says_that_it_has_moved() {
    let mut rig = Rig::new();
    let first = external_port(&rig.run(PROGRAM, PORT1, &question().bytes()));
    rig.run(PROGRAM, PORT2, &arp(GUEST1_MAC, GUEST1));
    let second = external_port(&rig.run(PROGRAM, PORT2, &question().bytes()));
    assert_eq!((first, rig.flows()), (second, 2));
}

#[test]
fn an_address_changes_hands_when_the_neighbour_table_says_so() {
    let mut rig = Rig::new();
    rig.lease(GUEST1, GUEST2_MAC, PORT2);
    // The topology's neighbour table gives the address to guest 1's MAC.
    external_port(&rig.run(PROGRAM, PORT1, &question().bytes()));
    let lease = rig.tables.lease.get(&GUEST1.into_address()).unwrap().unwrap();
    assert_eq!((lease.mac.bytes(), lease.port), (GUEST1_MAC, PORT1));
}

#[test]
fn a_query_of_the_host_keeps_its_identifier_and_a_guest_gets_another() {
    let mut rig = Rig::new();
    let hosts = Packet::echo(Ends { source: EXTERNAL, ..from_guest1(SERVER) }, 9, 1, b"").bytes();
    let guests = Packet::echo(from_guest1(SERVER), 9, 1, b"").bytes();
    let identifier = |ran: &Ran| u16::from_be_bytes([ran.packet().body[4], ran.packet().body[5]]);
    // The guest first: it keeps its identifier until the host wants it.
    assert_eq!(identifier(&rig.run(PROGRAM, PORT1, &guests)), 9);
    assert_eq!(rig.run("guard", UPLINK, &hosts).outcome, Outcome::Clean);
    let moved = identifier(&rig.run(PROGRAM, PORT1, &guests));
    assert_ne!(moved, 9);
    let answer = |identifier| {
        let mut reply = Packet::echo(from_world(SERVER), identifier, 1, b"");
        reply.body[0] = 0;
        reply.bytes()
    };
    assert_eq!(rig.run("inbound", UPLINK, &answer(9)).outcome, Outcome::NoFlow, "the answer is the host's");
    let ran = rig.run("inbound", UPLINK, &answer(moved));
    assert_eq!((ran.outcome, identifier(&ran)), (Outcome::TranslatedInbound, 9));
}

#[test]
fn frames_for_another_station_are_bridged() {
    let mut rig = Rig::new();
    let ends = Ends { from_mac: GUEST1_MAC, to_mac: GUEST2_MAC, source: GUEST1, destination: GUEST2 };
    ends_as(&mut rig, &Packet::udp(ends, 1, 2, b"").bytes(), Outcome::Bridged, PASS);
    rig.station(GUEST2_MAC, PORT2);
    ends_as(&mut rig, &Packet::udp(ends, 1, 2, b"").bytes(), Outcome::BridgedDirect, REDIRECT);
    rig.port(PORT2, 0);
    ends_as(&mut rig, &Packet::udp(ends, 1, 2, b"").bytes(), Outcome::Bridged, PASS);
}

#[test]
fn a_guest_that_is_another_guests_router_is_not_stepped_past() {
    let mut rig = Rig::new();
    rig.station(GUEST2_MAC, PORT2);
    let ends = Ends { from_mac: GUEST1_MAC, to_mac: GUEST2_MAC, source: GUEST1, destination: SERVER };
    ends_as(&mut rig, &Packet::udp(ends, 1, 2, b"").bytes(), Outcome::BridgedDirect, REDIRECT);
}

#[test]
fn arp_teaches_the_lease_and_passes() {
    let mut rig = Rig::new();
    ends_as(&mut rig, &arp(GUEST2_MAC, GUEST2), Outcome::NotIpv4, PASS);
    let lease = rig.tables.lease.get(&GUEST2.into_address()).unwrap().expect("a lease was learned");
    assert_eq!((lease.port, lease.bridge, lease.mac.bytes()), (PORT1, BRIDGE, GUEST2_MAC));
}

#[test]
fn what_is_the_hosts_own_passes() {
    let mut rig = Rig::new();
    for to in [GATEWAY, EXTERNAL, [192, 168, 123, 1]] {
        ends_as(&mut rig, &Packet::udp(from_guest1(to), 5000, 53, b"").bytes(), Outcome::ToHost, PASS);
    }
}

#[test]
fn other_routes_are_the_kernels_but_for_exits_that_were_closed() {
    let mut rig = Rig::new();
    let to_vpn = Packet::udp(from_guest1([10, 9, 0, 7]), 5000, 53, b"").bytes();
    ends_as(&mut rig, &to_vpn, Outcome::OtherRoute, PASS);
    rig.port(PORT1, BridgePortFlags::DIRECT | BridgePortFlags::HOST_DID_NOT_FORWARD);
    ends_as(&mut rig, &to_vpn, Outcome::ClosedExit, DROP);
    let to_world = rig.run(PROGRAM, PORT1, &question().bytes());
    assert_eq!(to_world.outcome, Outcome::TranslatedOutbound);
}

#[test]
fn other_managed_networks_are_closed() {
    let mut rig = Rig::new();
    ends_as(
        &mut rig,
        &Packet::udp(from_guest1([192, 168, 123, 50]), 5000, 53, b"").bytes(),
        Outcome::OtherNetwork,
        DROP,
    );
}

#[test]
fn where_no_route_leads_the_kernel_answers() {
    let mut rig = Rig::new();
    ends_as(
        &mut rig,
        &Packet::udp(from_guest1([198, 18, 0, 1]), 5000, 53, b"").bytes(),
        Outcome::NoRoute,
        PASS,
    );
    std::fs::write("/proc/sys/net/ipv4/conf/virbr0/forwarding", "0").unwrap();
    ends_as(&mut rig, &question().bytes(), Outcome::ForwardingDisabled, PASS);
}

#[test]
fn what_no_router_forwards_is_not_forwarded() {
    let mut rig = Rig::new();
    for to in [[255, 255, 255, 255], [224, 0, 0, 251], [127, 0, 0, 1], [0, 0, 0, 0], [239, 1, 1, 1]] {
        ends_as(&mut rig, &Packet::udp(from_guest1(to), 5000, 53, b"").bytes(), Outcome::NotUnicast, PASS);
    }
    for to in [[169, 254, 1, 1], [0, 0, 2, 10], [240, 0, 0, 1]] {
        let mut packet = Packet::udp(from_guest1(to), 5000, 53, b"");
        ends_as(&mut rig, &packet.bytes(), Outcome::InvalidDestination, DROP);
        // The kernel forwards the last two, and the guard knows guests' sources alone.
        packet.source = [8, 8, 8, 8];
        ends_as(&mut rig, &packet.bytes(), Outcome::InvalidDestination, DROP);
    }
}

#[test]
fn forged_sources_are_refused() {
    let mut rig = Rig::new();
    for (source, outcome) in [
        ([8, 8, 8, 8], Outcome::ForeignSource),
        (EXTERNAL, Outcome::ForeignSource),
        ([192, 168, 123, 9], Outcome::ForeignSource),
        (GATEWAY, Outcome::SpoofedSource),
    ] {
        let mut packet = question();
        packet.source = source;
        ends_as(&mut rig, &packet.bytes(), outcome, DROP);
    }
}

#[test]
fn the_kernel_answers_what_may_go_no_further() {
    let mut rig = Rig::new();
    let mut packet = question();
    packet.ttl = 1;
    ends_as(&mut rig, &packet.bytes(), Outcome::TtlExpired, PASS);
}

#[test]
fn size_is_held_against_the_uplink() {
    let mut rig = Rig::new();
    rig.uplink(|uplink| uplink.mtu = 1400);
    let mut packet = Packet::udp(from_guest1(SERVER), 5000, 7, &[0; 1372]);
    assert_eq!(rig.run(PROGRAM, PORT1, &packet.bytes()).outcome, Outcome::TranslatedOutbound);
    packet = Packet::udp(from_guest1(SERVER), 5000, 7, &[0; 1373]);
    let ran = rig.run(PROGRAM, PORT1, &packet.bytes());
    assert_eq!((ran.code, ran.outcome), (PASS, Outcome::TooBig));
    packet.fragment = 0;
    let ran = rig.run(PROGRAM, PORT1, &packet.bytes());
    assert_eq!((ran.code, ran.outcome), (DROP, Outcome::TooBigToFragment));
}

#[test]
fn a_segmented_packet_is_measured_by_its_segments() {
    let mut rig = Rig::new();
    let mut packet = Packet::tcp(from_guest1(SERVER), 5000, 80, 1, ACK);
    packet.body.extend([0; 3000]);
    let (fits, too_big) = (1460, 1461);
    assert_eq!(rig.run_segmented(PROGRAM, PORT1, &packet.bytes(), fits).outcome, Outcome::TranslatedOutbound);
    assert_eq!(rig.run_segmented(PROGRAM, PORT1, &packet.bytes(), too_big).outcome, Outcome::TooBig);
}

#[test]
fn what_cannot_be_translated_does_not_leave() {
    let mut rig = Rig::new();
    let raw = |protocol, body: Vec<u8>| Packet::new(from_guest1(SERVER), protocol, body, None).bytes();
    ends_as(&mut rig, &raw(132, vec![0; 11]), Outcome::Truncated, DROP);
    ends_as(&mut rig, &raw(17, vec![0; 7]), Outcome::Truncated, DROP);
    ends_as(&mut rig, &raw(6, vec![0; 19]), Outcome::Truncated, DROP);
    ends_as(&mut rig, &raw(1, vec![0, 0, 0xff, 0xff, 0, 0, 0, 0]), Outcome::IcmpNotQuery, DROP);
    for flags in [0, FIN, SYN | FIN, SYN | RST, 0x29] {
        let packet = Packet::tcp(from_guest1(SERVER), 5000, 80, 1, flags);
        ends_as(&mut rig, &packet.bytes(), Outcome::BadTcpFlags, DROP);
    }
    let reset = Packet::tcp(from_guest1(SERVER), 5000, 80, 1, RST);
    ends_as(&mut rig, &reset.bytes(), Outcome::ResetWithoutFlow, DROP);
}

#[test]
fn malformed_headers_do_not_leave() {
    let mut rig = Rig::new();
    let sound = question().bytes();
    for (offset, value) in [(14, 0x44), (14, 0x40), (14, 0x55), (16, 0xff), (17, 19), (17, 0)] {
        let mut frame = sound.clone();
        frame[offset] = value;
        ends_as(&mut rig, &frame, Outcome::BadHeader, DROP);
    }
    // A fragment whose first one nobody has seen.
    for fragment in [[0, 1], [0x20, 0xb9]] {
        let mut frame = sound.clone();
        frame[20..22].copy_from_slice(&fragment);
        ends_as(&mut rig, &frame, Outcome::Fragment, DROP);
    }
}

#[test]
fn options_travel_with_the_packet() {
    let mut rig = Rig::new();
    let mut frame = question().bytes();
    frame[14] = 0x47;
    frame.splice(34..34, [1, 1, 1, 1, 1, 1, 1, 0]);
    let length = u16::from_be_bytes([frame[16], frame[17]]) + 8;
    frame[16..18].copy_from_slice(&length.to_be_bytes());
    frame[24..26].fill(0);
    let sum = vmnat_tests::lab::frame::checksum(&[&frame[14..42]]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    let ran = rig.run(PROGRAM, PORT1, &frame);
    assert_eq!(external_port(&ran), 5000);
    assert_eq!(ran.frame[34..42], [1, 1, 1, 1, 1, 1, 1, 0]);
}

#[test]
fn an_uplink_without_an_address_opens_nothing() {
    let mut rig = Rig::new();
    rig.uplink(|uplink| uplink.address = Address::UNSPECIFIED);
    ends_as(&mut rig, &question().bytes(), Outcome::NoUplinkAddress, DROP);
}

#[test]
fn a_new_external_address_opens_the_flow_again() {
    let mut rig = Rig::new();
    external_port(&rig.run(PROGRAM, PORT1, &question().bytes()));
    rig.uplink(|uplink| uplink.address = [203, 0, 113, 3].into_address());
    rig.tables.bump_generation().unwrap();
    let ran = rig.run(PROGRAM, PORT1, &question().bytes());
    assert_eq!((ran.outcome, ran.packet().source), (Outcome::TranslatedOutbound, [203, 0, 113, 3]));
    assert_eq!(rig.flows(), 2, "the flow of the old address is gone");
}

#[test]
fn a_route_that_leaves_the_uplink_takes_the_flow_along_untranslated() {
    let mut rig = Rig::new();
    external_port(&rig.run(PROGRAM, PORT1, &question().bytes()));
    let route = ["route", "add", "198.51.100.0/24", "via", "10.9.0.2", "dev", "vpn0"];
    assert!(std::process::Command::new("ip").args(route).status().unwrap().success());
    rig.tables.bump_generation().unwrap();
    let ran = rig.run(PROGRAM, PORT1, &question().bytes());
    assert_eq!((ran.outcome, ran.code), (Outcome::OtherRoute, PASS));
}

#[test]
fn an_unmanaged_interface_passes() {
    let mut rig = Rig::new();
    let packet = question().bytes();
    let ran = rig.run(PROGRAM, 31, &packet);
    assert_eq!((ran.outcome, ran.code, ran.frame), (Outcome::Unmanaged, PASS, packet));
}

#[test]
fn the_bridges_own_hook_translates_and_answers_come_back_by_the_bridge() {
    let mut rig = Rig::new();
    let ran = rig.run("outbound_bridge", BRIDGE, &question().bytes());
    assert_eq!(external_port(&ran), 5000);
    let answer = rig.run("inbound", UPLINK, &Packet::udp(from_world(SERVER), 7, 5000, b"answer").bytes());
    assert_eq!((answer.outcome, answer.packet().destination), (Outcome::TranslatedInbound, GUEST1));
}

#[test]
fn the_route_is_checked_again_every_few_seconds() {
    let mut rig = Rig::new();
    external_port(&rig.run(PROGRAM, PORT1, &question().bytes()));
    rig.settings(|settings| settings.epoch_shift = Settings::epoch_shift_for(settings.hertz) + 20);
    rig.uplink(|uplink| uplink.mtu = 900);
    external_port(&rig.run(PROGRAM, PORT1, &question().bytes()));
    let flows = rig.tables.flow.entries().unwrap();
    assert!(
        flows.iter().any(|(key, session)| key.side == 0 && session.mtu == 900),
        "the new MTU was taken over"
    );
}
