//! What guests may reach, and who may call them.

use std::collections::BTreeMap;

use vmnat_common::{
    Mac, Outcome,
    access::{AccessKey, AccessRange, LAST, Verdict, Way, place, scope},
    bridge::{BridgePort, BridgePortFlags},
};
use vmnat_tests::lab::frame::{Ends, Packet};

use super::rig::{
    BRIDGE, DROP, EXTERNAL, GATEWAY, GUEST1, GUEST1_MAC, GUEST2, IntoAddress as _, OTHER_BRIDGE,
    OTHER_SERVER, PASS, PORT1, PORT2, REDIRECT, Rig, SERVER, UPLINK, from_guest1, from_guest2, from_world,
};

const PROGRAM: &str = "outbound_port";
const SYN: u8 = 0x02;
const DENIED: (Outcome, i32) = (Outcome::AccessDenied, DROP);
const LEFT: (Outcome, i32) = (Outcome::TranslatedOutbound, REDIRECT);
const CAME: (Outcome, i32) = (Outcome::TranslatedInbound, REDIRECT);
const TURNED: (Outcome, i32) = (Outcome::Hairpin, REDIRECT);

const NEIGHBOUR: [u8; 4] = [192, 168, 123, 10];
const NEIGHBOUR_MAC: [u8; 6] = [0x52, 0x54, 0, 1, 0, 0x10];
const OTHER_MAC: [u8; 6] = [0x52, 0x54, 0, 0xbb, 0, 2];

/// A prefix and what its list says.
type List<'a> = (u32, Way, [u8; 4], u8, &'a [(u32, u32, Verdict)]);

impl Rig {
    /// Replaces the access lists, for both networks.
    fn access(&self, lists: &[List<'_>]) {
        let lists: BTreeMap<AccessKey, Vec<AccessRange>> = lists
            .iter()
            .map(|(bridge, way, network, bits, ranges)| {
                let key = AccessKey::new(scope(*bridge, *way), network.into_address(), *bits);
                let range = |&(first, last, verdict): &(u32, u32, Verdict)| {
                    let verdict = verdict as u32;
                    AccessRange { first, last, verdict }
                };
                (key, ranges.iter().map(range).collect())
            })
            .collect();
        self.tables.set_access(&lists).unwrap();
        assert_eq!(self.tables.access().unwrap(), lists);
        self.port(BRIDGE, BridgePortFlags::IS_BRIDGE | BridgePortFlags::ACCESS);
        self.port(PORT1, BridgePortFlags::DIRECT | BridgePortFlags::ACCESS);
        self.port(PORT2, BridgePortFlags::DIRECT | BridgePortFlags::ACCESS);
        let flags = BridgePortFlags::IS_BRIDGE | BridgePortFlags::ACCESS;
        let other = BridgePort { bridge: OTHER_BRIDGE, mac: Mac::new(OTHER_MAC), mtu: 1500, flags };
        self.tables.bridge_port.set(&OTHER_BRIDGE, &other).unwrap();
    }

    fn ends(&mut self, program: &'static str, interface: u32, packet: &Packet) -> (Outcome, i32) {
        let ran = self.run(program, interface, &packet.bytes());
        (ran.outcome, ran.code)
    }
}

const ALL: &[(u32, u32, Verdict)] = &[(0, LAST, Verdict::Denied)];

fn udp(ends: Ends, to: u16) -> Packet {
    Packet::udp(ends, 5000, to, b"")
}

#[test]
fn what_is_denied_opens_no_flow_by_any_protocol() {
    let mut rig = Rig::new();
    rig.access(&[(BRIDGE, Way::To, [198, 51, 100, 0], 24, ALL)]);
    for packet in [
        udp(from_guest1(SERVER), 7),
        Packet::tcp(from_guest1(SERVER), 40_001, 80, 1, SYN),
        Packet::echo(from_guest1(SERVER), 77, 1, b"ping"),
        Packet::new(from_guest1(SERVER), 47, vec![0; 8], None),
    ] {
        assert_eq!(rig.ends(PROGRAM, PORT1, &packet), DENIED);
    }
    assert_eq!((rig.flows(), rig.mappings()), (0, 0));
    assert_eq!(rig.ends(PROGRAM, PORT1, &udp(from_guest1([192, 0, 2, 1]), 7)), LEFT);
}

#[test]
fn the_longest_prefix_has_the_last_word_port_by_port() {
    let mut rig = Rig::new();
    let web = [
        (0, place(6, 442), Verdict::Denied),
        (place(6, 443), place(6, 443), Verdict::Allowed),
        (place(6, 444), place(17, 6), Verdict::Denied),
        (place(17, 8), LAST, Verdict::Denied),
    ];
    rig.access(&[(BRIDGE, Way::To, [198, 51, 100, 0], 24, ALL), (BRIDGE, Way::To, SERVER, 32, &web)]);
    let tcp = |to, port| Packet::tcp(from_guest1(to), 40_001, port, 1, SYN);
    assert_eq!(rig.ends(PROGRAM, PORT1, &tcp(SERVER, 443)), LEFT);
    assert_eq!(rig.ends(PROGRAM, PORT1, &udp(from_guest1(SERVER), 7)), LEFT, "no range says anything");
    for packet in [tcp(SERVER, 442), tcp(SERVER, 444), tcp(OTHER_SERVER, 443), udp(from_guest1(SERVER), 8)] {
        assert_eq!(rig.ends(PROGRAM, PORT1, &packet), DENIED);
    }
}

#[test]
fn a_list_is_its_own_bridges() {
    let mut rig = Rig::new();
    rig.access(&[(OTHER_BRIDGE, Way::To, [0; 4], 0, ALL), (BRIDGE, Way::From, [0; 4], 0, ALL)]);
    assert_eq!(rig.ends(PROGRAM, PORT1, &udp(from_guest1(SERVER), 7)), LEFT);
}

/// The lists are changed while the flow lives; the generation, or four seconds, have it looked at again.
#[test]
fn a_live_flow_is_judged_again() {
    let mut rig = Rig::new();
    assert_eq!(rig.ends(PROGRAM, PORT1, &udp(from_guest1(SERVER), 7)), LEFT);
    rig.access(&[(BRIDGE, Way::To, SERVER, 32, ALL)]);
    rig.settings(|settings| settings.generation += 1);
    assert_eq!(rig.ends(PROGRAM, PORT1, &udp(from_guest1(SERVER), 7)), DENIED);
}

#[test]
fn who_may_not_call_is_not_led_to_a_guest_and_answers_go_out() {
    let mut rig = Rig::new();
    rig.forward(17, 8080, GUEST1, 80);
    rig.lease(GUEST1, GUEST1_MAC, PORT1);
    let web = [(place(17, 80), place(17, 80), Verdict::Denied)];
    rig.access(&[(BRIDGE, Way::From, SERVER, 32, &web), (BRIDGE, Way::To, [198, 51, 100, 0], 24, ALL)]);
    assert_eq!(rig.ends("inbound", UPLINK, &udp(from_world(SERVER), 8080)), DENIED);
    assert_eq!(rig.flows(), 0);
    assert_eq!(rig.ends("inbound", UPLINK, &udp(from_world(OTHER_SERVER), 8080)), CAME);
    let answer = Packet::udp(from_guest1(OTHER_SERVER), 80, 5000, b"");
    rig.settings(|settings| settings.generation += 1);
    assert_eq!(rig.ends(PROGRAM, PORT1, &answer), LEFT, "an answer is no call");
}

/// Siblings are known by their own addresses, also where they call the host's external one.
#[test]
fn a_sibling_by_way_of_a_forward_is_judged_by_its_own_address() {
    let mut rig = Rig::new();
    rig.forward(17, 8080, GUEST1, 80);
    rig.access(&[(BRIDGE, Way::From, GUEST2, 32, ALL)]);
    assert_eq!(rig.ends(PROGRAM, PORT2, &udp(from_guest2(EXTERNAL), 8080)), DENIED);
    rig.access(&[(BRIDGE, Way::From, EXTERNAL, 32, ALL)]);
    assert_eq!(rig.ends(PROGRAM, PORT2, &udp(from_guest2(EXTERNAL), 8080)), TURNED);
    rig.access(&[(BRIDGE, Way::To, EXTERNAL, 32, ALL)]);
    rig.settings(|settings| settings.generation += 1);
    assert_eq!(rig.ends(PROGRAM, PORT2, &udp(from_guest2(EXTERNAL), 8080)), DENIED);
}

#[test]
fn what_no_uplink_leads_to_is_denied_as_well_and_the_host_itself_is_not() {
    let mut rig = Rig::new();
    rig.access(&[(BRIDGE, Way::To, [0; 4], 0, ALL)]);
    assert_eq!(rig.ends(PROGRAM, PORT1, &udp(from_guest1([10, 9, 0, 7]), 7)), DENIED);
    assert_eq!(rig.ends(PROGRAM, PORT1, &udp(from_guest1(GATEWAY), 53)), (Outcome::ToHost, PASS));
}

fn across() -> Ends {
    from_guest1(NEIGHBOUR)
}

fn back() -> Ends {
    Ends { from_mac: NEIGHBOUR_MAC, to_mac: OTHER_MAC, source: NEIGHBOUR, destination: GUEST1 }
}

/// From guest 1 to a guest of the other network, and back, each with its own address.
#[test]
fn an_allowed_network_is_reached_and_answers_and_nothing_else_is() {
    let mut rig = Rig::new();
    std::fs::write("/proc/sys/net/ipv4/conf/virbr1/forwarding", "1").unwrap();
    rig.lease(GUEST1, GUEST1_MAC, PORT1);
    let echo = [(place(17, 7), place(17, 7), Verdict::Allowed)];
    assert_eq!(rig.ends(PROGRAM, PORT1, &udp(across(), 7)), (Outcome::OtherNetwork, DROP));
    rig.access(&[(BRIDGE, Way::To, NEIGHBOUR, 32, &echo)]);
    assert_eq!(rig.ends(PROGRAM, PORT1, &udp(across(), 8)), (Outcome::OtherNetwork, DROP));
    let other = Ends { destination: [192, 168, 123, 11], ..across() };
    assert_eq!(rig.ends(PROGRAM, PORT1, &udp(other, 7)), (Outcome::OtherNetwork, DROP));
    assert_eq!(rig.ends("outbound_bridge", OTHER_BRIDGE, &udp(back(), 5000)), (Outcome::OtherNetwork, DROP));

    let ran = rig.run(PROGRAM, PORT1, &udp(across(), 7).bytes());
    assert_eq!((ran.outcome, ran.code), TURNED);
    let packet = ran.packet();
    assert_eq!((packet.source, packet.destination, packet.ttl), (GUEST1, NEIGHBOUR, 63));
    assert_eq!(packet.ports(), Some((5000, 7)));
    assert_eq!((rig.flows(), rig.mappings()), (4, 0), "two sessions that face each other");

    let answer = Packet::udp(back(), 7, 5000, b"answer");
    let ran = rig.run("outbound_bridge", OTHER_BRIDGE, &answer.bytes());
    assert_eq!((ran.outcome, ran.code), TURNED);
    let packet = ran.packet();
    assert_eq!((packet.source, packet.destination, &ran.frame[..6]), (NEIGHBOUR, GUEST1, &GUEST1_MAC[..]));
    // A new call of the neighbour's is none that was allowed.
    assert_eq!(
        rig.ends("outbound_bridge", OTHER_BRIDGE, &Packet::udp(back(), 7, 5001, b"")),
        (Outcome::OtherNetwork, DROP)
    );
    // The way is looked at again, and stands.
    rig.settings(|settings| settings.generation += 1);
    assert_eq!(rig.ends(PROGRAM, PORT1, &udp(across(), 7)), TURNED);
    assert_eq!(rig.ends("outbound_bridge", OTHER_BRIDGE, &answer), TURNED);
    assert_eq!(rig.flows(), 4);
    rig.access(&[]);
    rig.settings(|settings| settings.generation += 1);
    assert_eq!(rig.ends(PROGRAM, PORT1, &udp(across(), 7)), (Outcome::OtherNetwork, DROP));
}

#[test]
fn the_called_network_has_a_say_too() {
    let mut rig = Rig::new();
    let all = [(0, LAST, Verdict::Allowed)];
    rig.access(&[
        (BRIDGE, Way::To, NEIGHBOUR, 32, &all),
        (OTHER_BRIDGE, Way::From, GUEST1, 32, &[(place(17, 7), place(17, 7), Verdict::Denied)]),
    ]);
    assert_eq!(rig.ends(PROGRAM, PORT1, &udp(across(), 7)), DENIED);
    assert_eq!(rig.ends(PROGRAM, PORT1, &udp(across(), 8)), TURNED);
    let ping = Packet::echo(across(), 77, 1, b"ping");
    assert_eq!(rig.ends(PROGRAM, PORT1, &ping), TURNED);
}

/// What arrives on the uplink with both ends of a conversation across networks is none of it.
#[test]
fn the_world_cannot_ride_on_a_conversation_across_networks() {
    let mut rig = Rig::new();
    rig.lease(GUEST1, GUEST1_MAC, PORT1);
    rig.access(&[(BRIDGE, Way::To, NEIGHBOUR, 32, &[(0, LAST, Verdict::Allowed)])]);
    assert_eq!(rig.ends(PROGRAM, PORT1, &udp(across(), 7)), TURNED);
    let forged = Ends { source: NEIGHBOUR, destination: GUEST1, ..from_world(SERVER) };
    let forged = Packet::udp(forged, 7, 5000, b"");
    assert_eq!(rig.ends("inbound", UPLINK, &forged), (Outcome::PrivateDestination, DROP));
}
