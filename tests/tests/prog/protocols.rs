//! Protocols beside TCP, UDP and ICMP: translated by address, their ports kept, never leaked.

use vmnat_common::Outcome;
use vmnat_tests::lab::frame::Packet;

use super::rig::{
    DROP, EXTERNAL, GUEST1, GUEST2, OTHER_SERVER, PASS, PORT1, PORT2, REDIRECT, Rig, SERVER, UPLINK,
    from_guest1, from_guest2, from_world,
};

const DCCP: u8 = 33;
const GRE: u8 = 47;
const UDP_LITE: u8 = 136;

/// IPIP, GRE, ESP, AH, an unassigned one.
const WITHOUT_PORTS: [u8; 5] = [4, GRE, 50, 51, 253];

fn body(ports: bool) -> Vec<u8> {
    let head = if ports { [0x0f, 0xa0, 0x13, 0x88, 0, 8, 0, 0] } else { [1, 2, 3, 4, 5, 6, 7, 8] };
    [&head[..], b"payload"].concat()
}

#[test]
fn protocols_without_ports_are_translated_by_address() {
    for protocol in WITHOUT_PORTS {
        let mut rig = Rig::new();
        let sent = Packet::new(from_guest1(SERVER), protocol, body(false), None);
        let ran = rig.run("outbound_port", PORT1, &sent.bytes());
        assert_eq!((ran.code, ran.outcome), (REDIRECT, Outcome::TranslatedOutbound), "protocol {protocol}");
        assert_eq!((ran.packet().source, ran.packet().body), (EXTERNAL, body(false)));
        let answer = Packet::new(from_world(SERVER), protocol, body(false), None).bytes();
        let back = rig.run("inbound", UPLINK, &answer);
        assert_eq!((back.outcome, back.packet().destination), (Outcome::TranslatedInbound, GUEST1));
        assert_eq!(back.packet().body, body(false));
        assert_eq!((rig.flows(), rig.mappings()), (2, 0));
    }
}

#[test]
fn the_first_guest_has_a_remote_and_others_have_other_remotes() {
    let mut rig = Rig::new();
    let packet = |ends| Packet::new(ends, GRE, body(false), None).bytes();
    rig.run("outbound_port", PORT1, &packet(from_guest1(SERVER)));
    let second = rig.run("outbound_port", PORT2, &packet(from_guest2(SERVER)));
    assert_eq!((second.code, second.outcome), (DROP, Outcome::FlowConflict));
    let elsewhere = rig.run("outbound_port", PORT2, &packet(from_guest2(OTHER_SERVER)));
    assert_eq!(elsewhere.outcome, Outcome::TranslatedOutbound);
    let back = rig.run("inbound", UPLINK, &packet(from_world(OTHER_SERVER)));
    assert_eq!(back.packet().destination, GUEST2);
    let stranger = rig.run("inbound", UPLINK, &packet(from_world([192, 0, 2, 9])));
    assert_eq!((stranger.code, stranger.outcome), (PASS, Outcome::NoFlow));
}

/// A checksum that covers the addresses arrives right; `Ipv4::parse` adds it up.
#[test]
fn udp_lite_and_dccp_keep_their_ports_and_a_right_checksum() {
    for protocol in [UDP_LITE, DCCP] {
        let mut rig = Rig::new();
        let sent = Packet::new(from_guest1(SERVER), protocol, body(true), Some(6));
        let ran = rig.run("outbound_port", PORT1, &sent.bytes());
        let mut expected = sent.clone();
        expected.source = EXTERNAL;
        assert_eq!(ran.outcome, Outcome::TranslatedOutbound);
        assert_eq!(ran.frame[34..], expected.bytes()[34..], "protocol {protocol}");
        let mut answer = Packet::new(from_world(SERVER), protocol, body(true), Some(6));
        answer.body.swap(0, 2);
        answer.body.swap(1, 3);
        let back = rig.run("inbound", UPLINK, &answer.bytes());
        answer.destination = GUEST1;
        assert_eq!((back.outcome, &back.frame[34..]), (Outcome::TranslatedInbound, &answer.bytes()[34..]));
    }
}

/// 1. a guest's tunnel; 2. the host's own to the same remote; 3. what comes back is the host's, and the guest is refused.
#[test]
fn the_hosts_own_tunnel_goes_before_a_guests() {
    let mut rig = Rig::new();
    let guests = Packet::new(from_guest1(SERVER), GRE, body(false), None).bytes();
    rig.run("outbound_port", PORT1, &guests);
    let mut own = Packet::new(from_guest1(SERVER), GRE, body(false), None);
    own.source = EXTERNAL;
    rig.run("guard", UPLINK, &own.bytes());
    let back = Packet::new(from_world(SERVER), GRE, body(false), None).bytes();
    assert_eq!(rig.run("inbound", UPLINK, &back).outcome, Outcome::NoFlow);
    let refused = rig.run("outbound_port", PORT1, &guests);
    assert_eq!((refused.code, refused.outcome), (DROP, Outcome::FlowConflict));
}

#[test]
fn what_is_cut_short_does_not_leave() {
    let mut rig = Rig::new();
    for protocol in [UDP_LITE, DCCP, 132] {
        let ran = rig.run(
            "outbound_port",
            PORT1,
            &Packet::new(from_guest1(SERVER), protocol, vec![0; 7], None).bytes(),
        );
        assert_eq!((ran.code, ran.outcome), (DROP, Outcome::Truncated));
    }
}
