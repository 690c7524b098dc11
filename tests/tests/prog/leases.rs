//! Who may use an address, where somebody has given it to a guest, and where nobody may use another.

use vmnat_common::{
    Outcome,
    lease::{Lease, LeaseFlags},
};
use vmnat_tests::lab::frame::{Ends, Packet};

use super::rig::{
    BRIDGE, BRIDGE_MAC, DROP, GATEWAY, GUEST1, GUEST1_MAC, GUEST2, GUEST2_MAC, IntoAddress as _, PASS, PORT1,
    PORT2, REDIRECT, Rig, SERVER, from_guest1, from_guest2, question,
};

const PROGRAM: &str = "outbound_port";
const ANYBODY: [u8; 4] = [0; 4];
const EVERYBODY: [u8; 4] = [255; 4];

/// An ARP request from a station for the gateway, in which `mac` has `address`.
fn arp(station: [u8; 6], mac: [u8; 6], address: [u8; 4]) -> Vec<u8> {
    let mut frame = [[0xff; 6], station].as_flattened().to_vec();
    frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(address);
    frame.extend([0; 6]);
    frame.extend(GATEWAY);
    frame
}

fn lease_of(rig: &Rig, guest: [u8; 4]) -> Option<Lease> {
    rig.tables.lease.get(&guest.into_address()).unwrap()
}

/// The frame must end so at the port.
fn ends_as(rig: &mut Rig, port: u32, frame: &[u8], outcome: Outcome, code: i32) {
    let ran = rig.run(PROGRAM, port, frame);
    assert_eq!((ran.outcome, ran.code), (outcome, code));
}

fn spoofed_by_guest2(to: [u8; 4]) -> Ends {
    Ends { source: GUEST1, ..from_guest2(to) }
}

#[test]
fn a_forged_claim_takes_no_address_that_was_given_to_a_guest_who_is_there() {
    let mut rig = Rig::new();
    rig.bind(GUEST1, GUEST1_MAC, PORT1, 0);
    let before = lease_of(&rig, GUEST1);
    ends_as(&mut rig, PORT2, &arp(GUEST2_MAC, GUEST2_MAC, GUEST1), Outcome::NotIpv4, PASS);
    assert_eq!(lease_of(&rig, GUEST1), before, "the lease stays");
    let forged = Packet::udp(spoofed_by_guest2(SERVER), 5000, 7, b"");
    ends_as(&mut rig, PORT2, &forged.bytes(), Outcome::SpoofedSource, DROP);
    ends_as(&mut rig, PORT1, &question().bytes(), Outcome::TranslatedOutbound, REDIRECT);
}

/// Without a lease that binds, the last who says so has the address, as in any network.
#[test]
fn an_address_that_was_given_to_nobody_goes_to_the_last_who_claims_it() {
    let mut rig = Rig::new();
    rig.lease(GUEST1, GUEST1_MAC, PORT1);
    ends_as(&mut rig, PORT2, &arp(GUEST2_MAC, GUEST2_MAC, GUEST1), Outcome::NotIpv4, PASS);
    assert_eq!(lease_of(&rig, GUEST1).map(|lease| lease.port), Some(PORT2));
}

/// A forged ARP frame may have got into the host's neighbour table; here it has guest 1's MAC for guest 1's address.
#[test]
fn the_hosts_neighbour_table_does_not_overrule_who_was_given_an_address() {
    let mut rig = Rig::new();
    rig.bind(GUEST1, GUEST2_MAC, PORT2, 0);
    ends_as(&mut rig, PORT1, &question().bytes(), Outcome::SpoofedSource, DROP);
}

#[test]
fn an_address_is_free_again_when_the_port_of_its_guest_has_gone() {
    let mut rig = Rig::new();
    rig.bind(GUEST1, GUEST1_MAC, 99, 0);
    ends_as(&mut rig, PORT2, &arp(GUEST2_MAC, GUEST2_MAC, GUEST1), Outcome::NotIpv4, PASS);
    let lease = lease_of(&rig, GUEST1).unwrap();
    assert_eq!((lease.port, lease.mac.bytes(), lease.flags), (PORT2, GUEST2_MAC, LeaseFlags::FROM_TRAFFIC));
}

#[test]
fn a_guest_that_was_given_its_address_moves_with_it() {
    let mut rig = Rig::new();
    rig.bind(GUEST1, GUEST1_MAC, PORT1, 0);
    ends_as(&mut rig, PORT2, &arp(GUEST1_MAC, GUEST1_MAC, GUEST1), Outcome::NotIpv4, PASS);
    let lease = lease_of(&rig, GUEST1).unwrap();
    assert_eq!((lease.port, lease.flags), (PORT2, LeaseFlags::BOUND | LeaseFlags::FROM_TRAFFIC));
}

#[test]
fn a_guest_that_was_given_a_port_comes_by_no_other() {
    let mut rig = Rig::new();
    rig.bind(GUEST1, GUEST1_MAC, PORT1, LeaseFlags::PORT_BOUND);
    ends_as(&mut rig, PORT2, &arp(GUEST1_MAC, GUEST1_MAC, GUEST1), Outcome::NotIpv4, PASS);
    assert_eq!(lease_of(&rig, GUEST1).map(|lease| lease.port), Some(PORT1));
    ends_as(&mut rig, PORT2, &question().bytes(), Outcome::SpoofedSource, DROP);
    ends_as(&mut rig, PORT1, &question().bytes(), Outcome::TranslatedOutbound, REDIRECT);
}

#[test]
fn in_a_strict_network_nothing_leaves_from_an_address_that_was_not_given() {
    let mut rig = Rig::new();
    rig.strict();
    rig.lease(GUEST1, GUEST1_MAC, PORT1);
    rig.bind(GUEST2, GUEST2_MAC, PORT2, 0);
    let to_guest2 = Ends { to_mac: GUEST2_MAC, destination: GUEST2, ..from_guest1(SERVER) };
    let to_all = Ends { to_mac: [0xff; 6], destination: EVERYBODY, ..from_guest1(SERVER) };
    let foreign = Ends { source: [10, 9, 8, 7], ..to_guest2 };
    for ends in [from_guest1(SERVER), from_guest1(GATEWAY), to_guest2, to_all, foreign] {
        let frame = Packet::udp(ends, 5000, 7, b"").bytes();
        ends_as(&mut rig, PORT1, &frame, Outcome::UnboundSource, DROP);
    }
    let as_guest2 = Ends { source: GUEST2, ..from_guest1(SERVER) };
    ends_as(&mut rig, PORT1, &Packet::udp(as_guest2, 5000, 7, b"").bytes(), Outcome::UnboundSource, DROP);
    // With the MAC of guest 2, too, it comes by the wrong port.
    let frame = Packet::udp(from_guest2(SERVER), 5000, 7, b"").bytes();
    ends_as(&mut rig, PORT1, &frame, Outcome::UnboundSource, DROP);
    assert_eq!(rig.flows(), 0);
    ends_as(&mut rig, PORT2, &frame, Outcome::TranslatedOutbound, REDIRECT);
}

#[test]
fn in_a_strict_network_a_guest_may_ask_for_an_address_and_probe_it() {
    let mut rig = Rig::new();
    rig.strict();
    let asking = |source| Ends { to_mac: [0xff; 6], destination: EVERYBODY, source, ..from_guest1(SERVER) };
    for source in [ANYBODY, GUEST1] {
        let request = Packet::udp(asking(source), 68, 67, b"request").bytes();
        ends_as(&mut rig, PORT1, &request, Outcome::NotUnicast, PASS);
    }
    let other = Packet::udp(asking(ANYBODY), 67, 68, b"offer").bytes();
    ends_as(&mut rig, PORT1, &other, Outcome::UnboundSource, DROP);
    ends_as(&mut rig, PORT1, &arp(GUEST1_MAC, GUEST1_MAC, ANYBODY), Outcome::NotIpv4, PASS);
    ends_as(&mut rig, PORT1, &arp(GUEST1_MAC, GUEST1_MAC, GUEST1), Outcome::UnboundSource, DROP);
    assert_eq!(lease_of(&rig, GUEST1), None, "nobody gives an address to itself");
    rig.bind(GUEST1, GUEST1_MAC, 0, 0);
    ends_as(&mut rig, PORT1, &arp(GUEST1_MAC, GUEST1_MAC, GUEST1), Outcome::NotIpv4, PASS);
    assert_eq!(lease_of(&rig, GUEST1).map(|lease| lease.port), Some(PORT1));
}

#[test]
fn in_a_strict_network_a_forged_claim_goes_no_further() {
    let mut rig = Rig::new();
    rig.strict();
    rig.bind(GUEST1, GUEST1_MAC, PORT1, 0);
    rig.bind(GUEST2, GUEST2_MAC, PORT2, 0);
    let before = lease_of(&rig, GUEST1);
    let short = arp(GUEST2_MAC, GUEST2_MAC, GUEST2)[..40].to_vec();
    // Linux takes the hardware type of IEEE 802 networks for Ethernet, too.
    let mut ieee802 = arp(GUEST2_MAC, GUEST2_MAC, GUEST1);
    ieee802[15] = 6;
    for frame in [
        arp(GUEST2_MAC, GUEST2_MAC, GUEST1),
        arp(GUEST1_MAC, GUEST1_MAC, GUEST1),
        arp(GUEST2_MAC, GUEST1_MAC, GUEST1),
        arp(GUEST1_MAC, GUEST2_MAC, GUEST2),
        arp(GUEST2_MAC, GUEST2_MAC, GATEWAY),
        short,
        ieee802,
    ] {
        ends_as(&mut rig, PORT2, &frame, Outcome::UnboundSource, DROP);
    }
    assert_eq!(lease_of(&rig, GUEST1), before);
    ends_as(&mut rig, PORT2, &arp(GUEST2_MAC, GUEST2_MAC, GUEST2), Outcome::NotIpv4, PASS);
}

/// The port of a guest that was moved elsewhere is gone, and it comes back by another.
#[test]
fn in_a_strict_network_a_guest_moves_when_its_port_has_gone() {
    let mut rig = Rig::new();
    rig.strict();
    rig.bind(GUEST1, GUEST1_MAC, PORT1, 0);
    ends_as(&mut rig, PORT2, &arp(GUEST1_MAC, GUEST1_MAC, GUEST1), Outcome::UnboundSource, DROP);
    rig.tables.bridge_port.remove(&PORT1).unwrap();
    ends_as(&mut rig, PORT2, &question().bytes(), Outcome::TranslatedOutbound, REDIRECT);
    assert_eq!(lease_of(&rig, GUEST1).map(|lease| lease.port), Some(PORT2));
}

/// What comes from ports without a hook is seen by the bridge's, which knows MACs alone.
#[test]
fn in_a_strict_network_the_bridges_hook_holds_guests_to_their_macs() {
    let mut rig = Rig::new();
    rig.strict();
    rig.bind(GUEST1, GUEST1_MAC, PORT1, 0);
    let mut at_bridge = |frame: &[u8], outcome, code| {
        let ran = rig.run("outbound_bridge", BRIDGE, frame);
        assert_eq!((ran.outcome, ran.code), (outcome, code));
    };
    at_bridge(&arp(GUEST2_MAC, GUEST2_MAC, GUEST1), Outcome::UnboundSource, DROP);
    at_bridge(&arp(GUEST1_MAC, GUEST1_MAC, GUEST1), Outcome::NotIpv4, PASS);
    let forged = Packet::udp(spoofed_by_guest2(SERVER), 5000, 7, b"").bytes();
    at_bridge(&forged, Outcome::UnboundSource, DROP);
    assert_eq!(from_guest1(SERVER).to_mac, BRIDGE_MAC);
    at_bridge(&question().bytes(), Outcome::TranslatedOutbound, REDIRECT);
}

/// The host hears of the change by the generation: a flow is judged again, and its guest is not what it was.
#[test]
fn a_live_flow_ends_with_the_lease_of_its_guest() {
    let mut rig = Rig::new();
    rig.strict();
    rig.bind(GUEST1, GUEST1_MAC, PORT1, 0);
    ends_as(&mut rig, PORT1, &question().bytes(), Outcome::TranslatedOutbound, REDIRECT);
    rig.lease(GUEST1, GUEST1_MAC, PORT1);
    rig.settings(|settings| settings.generation += 1);
    ends_as(&mut rig, PORT1, &question().bytes(), Outcome::UnboundSource, DROP);
}
