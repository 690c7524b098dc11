//! The station of the next hop: remembered for a moment, and asked of the kernel again while no process helps.

use std::{net::Ipv4Addr, process::Command, time::Duration};

use vmnat_common::{
    Outcome,
    next_hop::{hop, slot},
    uplink::UplinkFlags,
};
use vmnat_tests::lab::{frame::Packet, wait_until};

use super::rig::{
    BRIDGE_MAC, GUEST1_MAC, IntoAddress as _, OTHER_SERVER, PORT1, REDIRECT, ROUTER_MAC, Rig, UPLINK,
    UPLINK_MAC, from_guest1, question,
};

const OTHER_ROUTER_MAC: [u8; 6] = [0x52, 0x54, 0, 0xee, 0, 9];

const PATIENCE: Duration = Duration::from_secs(10);

/// Who a packet is sent to by which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The kernel looks the neighbour up: the program leaves the header as it was.
    Kernel,
    /// Straight to this station, from the uplink's MAC.
    To([u8; 6]),
}

/// The way that a packet of guest 1 takes.
fn way(rig: &mut Rig, packet: &Packet) -> Way {
    let ran = rig.run("outbound_port", PORT1, &packet.bytes());
    assert_eq!((ran.outcome, ran.code), (Outcome::TranslatedOutbound, REDIRECT));
    assert_eq!(ran.packet().source, [203, 0, 113, 2]);
    let (to, from) = (ran.frame[..6].try_into().unwrap(), &ran.frame[6..12]);
    if to == BRIDGE_MAC {
        assert_eq!(from, GUEST1_MAC);
        Way::Kernel
    } else {
        assert_eq!(from, UPLINK_MAC, "the sender of a frame to the next hop");
        Way::To(to)
    }
}

fn expect_in_time(rig: &mut Rig, expected: Way) {
    wait_until(&format!("packets go {expected:?}"), PATIENCE, || Ok(way(rig, &question()) == expected))
        .unwrap();
}

fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split_whitespace()).status().expect("iproute2 is installed");
    assert!(done.success(), "ip {arguments}");
}

/// 1. the first packet goes the kernel's way; 2. those after it go straight to the router; 3. again and again, one of them goes the
///    kernel's way, which keeps its entry alive.
#[test]
fn packets_go_straight_to_the_router_and_now_and_then_the_kernels_way() {
    let mut rig = Rig::new();
    assert_eq!(way(&mut rig, &question()), Way::Kernel);
    for _ in 0..3 {
        expect_in_time(&mut rig, Way::To(ROUTER_MAC));
        expect_in_time(&mut rig, Way::Kernel);
    }
}

/// 1. packets go straight to the router; 2. it gets another MAC; 3. packets go there.
#[test]
fn a_router_that_has_another_mac_is_followed() {
    let mut rig = Rig::new();
    expect_in_time(&mut rig, Way::To(ROUTER_MAC));
    ip("neighbour replace 203.0.113.1 lladdr 52:54:00:ee:00:09 dev enp3s0 nud permanent");
    expect_in_time(&mut rig, Way::To(OTHER_ROUTER_MAC));
    for _ in 0..20 {
        assert_ne!(way(&mut rig, &question()), Way::To(ROUTER_MAC));
    }
}

/// 1. packets go straight to the router; 2. the kernel no longer knows its MAC; 3. packets go the kernel's way, all of them.
#[test]
fn while_the_router_is_not_resolved_packets_go_the_kernels_way() {
    let mut rig = Rig::new();
    expect_in_time(&mut rig, Way::To(ROUTER_MAC));
    ip("neighbour del 203.0.113.1 dev enp3s0");
    expect_in_time(&mut rig, Way::Kernel);
    for _ in 0..20 {
        assert_eq!(way(&mut rig, &question()), Way::Kernel);
    }
    ip("neighbour add 203.0.113.1 lladdr 52:54:00:ee:00:01 dev enp3s0 nud permanent");
    expect_in_time(&mut rig, Way::To(ROUTER_MAC));
}

/// The kernel's routes lead to the router's address by another interface than the session: the neighbour there is not its.
#[test]
fn a_neighbour_behind_another_interface_does_not_count() {
    let mut rig = Rig::new();
    assert_eq!(way(&mut rig, &question()), Way::Kernel);
    ip("neighbour add 203.0.113.1 lladdr 52:54:00:ee:00:09 dev vpn0 nud permanent");
    ip("route add 203.0.113.1/32 dev vpn0");
    expect_in_time(&mut rig, Way::Kernel);
    for _ in 0..20 {
        assert_eq!(way(&mut rig, &question()), Way::Kernel);
    }
}

#[test]
fn what_leaves_by_an_uplink_without_ethernet_goes_the_kernels_way() {
    let mut rig = Rig::new();
    rig.uplink(|uplink| uplink.flags = UplinkFlags::NO_ETHERNET);
    for _ in 0..20 {
        assert_eq!(way(&mut rig, &question()), Way::Kernel);
    }
}

/// Two routers behind one uplink, and their packets in turn: where each has a slot, and where they share one.
#[test]
fn each_of_two_routers_has_its_own_station() {
    let slot_of = |router: [u8; 4]| slot(hop(UPLINK, router.into_address()));
    let [one, alone] = [[203, 0, 113, 1], [203, 0, 113, 9]];
    assert_ne!(slot_of(alone), slot_of(one));
    let beside = (0..=u8::MAX)
        .flat_map(|third| (1..255).map(move |last| [10, 20, third, last]))
        .find(|router| slot_of(*router) == slot_of(one))
        .expect("a router that shares a slot");
    for other_router in [alone, beside] {
        let mut rig = Rig::new();
        let at = Ipv4Addr::from(other_router);
        ip(&format!("route add {at}/32 dev enp3s0"));
        ip(&format!("neighbour add {at} lladdr 52:54:00:ee:00:09 dev enp3s0 nud permanent"));
        ip(&format!("route add 198.51.100.20/32 via {at}"));
        let other = Packet::udp(from_guest1(OTHER_SERVER), 5000, 7, b"question");
        let mut straight = [0, 0];
        for _ in 0..20 {
            for (packet, mac, count) in [(question(), ROUTER_MAC, 0), (other.clone(), OTHER_ROUTER_MAC, 1)] {
                if let Way::To(receiver) = way(&mut rig, &packet) {
                    assert_eq!(receiver, mac);
                    straight[count] += 1;
                }
            }
        }
        if other_router == alone {
            assert!(straight[0] > 0 && straight[1] > 0, "{straight:?} of 20 went straight");
        } else {
            assert!(straight[0] + straight[1] > 0, "none of 40 went straight");
        }
    }
}
