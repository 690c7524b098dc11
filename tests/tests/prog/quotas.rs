//! What one guest may take of what all share.

use vmnat_common::{Outcome, quota::Quotas, reap::Mode, session::Flags};
use vmnat_tests::lab::frame::Packet;

use super::rig::{
    DROP, GUEST1, GUEST1_MAC, IntoAddress as _, OTHER_SERVER, PORT1, PORT2, Rig, SERVER, UPLINK, from_guest1,
    from_guest2, from_world,
};

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

fn rig(quotas: Quotas) -> Rig {
    let rig = Rig::new();
    rig.settings(|settings| settings.quotas = quotas);
    rig
}

fn asks(rig: &mut Rig, from: u16) -> Outcome {
    rig.run("outbound_port", PORT1, &Packet::udp(from_guest1(SERVER), from, 7, b"q").bytes()).outcome
}

fn calls(rig: &mut Rig, from: u16, flags: u8) -> Outcome {
    rig.run("outbound_port", PORT1, &Packet::tcp(from_guest1(SERVER), from, 80, 1, flags).bytes()).outcome
}

/// Flows and half-open flows that are counted for guest 1.
fn counted(rig: &Rig) -> (i32, i32) {
    let guest = rig.tables.guest.get(&GUEST1.into_address()).unwrap().unwrap();
    (guest.flows, guest.half_open)
}

/// Flows that are counted on all mappings.
fn counted_on_mappings(rig: &Rig) -> i32 {
    rig.tables.mapping.entries().unwrap().iter().map(|(_, mapping)| mapping.flows).sum()
}

fn remove_all(rig: &Rig) {
    let keys: Vec<_> = rig.tables.flow.entries().unwrap().into_iter().map(|(key, _)| key).collect();
    let guests: Vec<_> = keys.into_iter().filter(|key| key.side == 0).collect();
    rig.tables.reap(Mode::Remove, &guests).unwrap();
}

#[test]
fn a_guest_with_all_its_flows_gets_no_other_and_keeps_those_it_has() {
    let mut rig = rig(Quotas { flows: 3, ..Quotas::NONE });
    for from in 5000..5003 {
        assert_eq!(asks(&mut rig, from), Outcome::TranslatedOutbound);
    }
    let refused = rig.run("outbound_port", PORT1, &Packet::udp(from_guest1(SERVER), 5003, 7, b"q").bytes());
    assert_eq!((refused.code, refused.outcome), (DROP, Outcome::FlowQuota));
    assert_eq!(asks(&mut rig, 5000), Outcome::TranslatedOutbound, "a live one goes on");
    let sibling = Packet::udp(from_guest2(SERVER), 5003, 7, b"q").bytes();
    assert_eq!(rig.run("outbound_port", PORT2, &sibling).outcome, Outcome::TranslatedOutbound);
    assert_eq!(counted(&rig), (3, 0));
    remove_all(&rig);
    assert_eq!(counted(&rig), (0, 0));
    assert_eq!(asks(&mut rig, 5003), Outcome::TranslatedOutbound);
    let guest = rig.tables.guest.get(&GUEST1.into_address()).unwrap().unwrap();
    assert_eq!(guest.refused_flows, 1);
}

#[test]
fn a_handshake_counts_as_half_open_until_it_is_complete() {
    let mut rig = rig(Quotas { half_open: 2, ..Quotas::NONE });
    assert_eq!(calls(&mut rig, 5000, SYN), Outcome::TranslatedOutbound);
    assert_eq!(calls(&mut rig, 5001, SYN), Outcome::TranslatedOutbound);
    assert_eq!((calls(&mut rig, 5002, SYN), counted(&rig)), (Outcome::HalfOpenQuota, (2, 2)));
    assert_eq!(asks(&mut rig, 5002), Outcome::TranslatedOutbound, "UDP has no handshake");
    let answer = Packet::tcp(from_world(SERVER), 80, 5000, 1, SYN | ACK).bytes();
    rig.run("inbound", UPLINK, &answer);
    assert_eq!(counted(&rig), (3, 2), "the answer alone completes nothing");
    calls(&mut rig, 5000, ACK);
    calls(&mut rig, 5000, ACK);
    assert_eq!(counted(&rig), (3, 1));
    assert_eq!(calls(&mut rig, 5002, SYN), Outcome::TranslatedOutbound);
    // One that is picked up in the middle is complete.
    assert_eq!(calls(&mut rig, 5003, ACK), Outcome::TranslatedOutbound);
    assert_eq!(counted(&rig), (5, 2));
    remove_all(&rig);
    assert_eq!(counted(&rig), (0, 0));
}

#[test]
fn flows_that_come_too_fast_are_refused() {
    let mut rig = rig(Quotas { rate: 1, burst: 5, ..Quotas::NONE });
    let opened = (0..20).filter(|n| asks(&mut rig, 6000 + n) == Outcome::TranslatedOutbound).count();
    assert!((5..=7).contains(&opened), "{opened} of 20 at once");
    assert_eq!(asks(&mut rig, 6000), Outcome::TranslatedOutbound, "a live one has no rate");
}

/// A flood of handshakes through a port forward: the guest's own quota stops it, and drains with the flows.
#[test]
fn callers_through_a_forward_count_for_the_guest_that_they_call() {
    let mut rig = rig(Quotas { half_open: 2, ..Quotas::NONE });
    rig.lease(GUEST1, GUEST1_MAC, PORT1);
    rig.forward(6, 80, GUEST1, 80);
    let call = |rig: &mut Rig, from, flags| {
        rig.run("inbound", UPLINK, &Packet::tcp(from_world(SERVER), from, 80, 1, flags).bytes()).outcome
    };
    assert_eq!(call(&mut rig, 1, SYN), Outcome::TranslatedInbound);
    assert_eq!(call(&mut rig, 2, SYN), Outcome::TranslatedInbound);
    assert_eq!(call(&mut rig, 3, SYN), Outcome::HalfOpenQuota);
    let answer = Packet::tcp(from_guest1(SERVER), 80, 1, 1, SYN | ACK).bytes();
    rig.run("outbound_port", PORT1, &answer);
    assert_eq!(counted(&rig), (2, 2));
    call(&mut rig, 1, ACK);
    assert_eq!(counted(&rig), (2, 1));
    assert_eq!(call(&mut rig, 3, SYN), Outcome::TranslatedInbound);
    remove_all(&rig);
    assert_eq!(counted(&rig), (0, 0));
}

/// 1. no port at all; 2. a port that the guest's mapping has, but another guest towards this remote; 3. a full table.
#[test]
fn a_flow_that_could_not_be_opened_is_counted_nowhere() {
    let mut rig = rig(Quotas::NONE);
    rig.settings(|settings| (settings.pool_first, settings.pool_last) = (5000, 5001));
    let asks = |rig: &mut Rig, port, ends, from| {
        rig.run("outbound_port", port, &Packet::udp(ends, from, 7, b"q").bytes()).outcome
    };
    assert_eq!(asks(&mut rig, PORT1, from_guest1(SERVER), 5000), Outcome::TranslatedOutbound);
    assert_eq!(asks(&mut rig, PORT1, from_guest1(SERVER), 5002), Outcome::PortsExhausted);
    assert_eq!((counted(&rig), counted_on_mappings(&rig)), ((1, 0), 1));
    assert_eq!(asks(&mut rig, PORT2, from_guest2(OTHER_SERVER), 5000), Outcome::TranslatedOutbound);
    assert_eq!(asks(&mut rig, PORT1, from_guest1(OTHER_SERVER), 5000), Outcome::PortsExhausted);
    assert_eq!((counted(&rig), counted_on_mappings(&rig)), ((1, 0), 1));
    rig.settings(|settings| (settings.pool_first, settings.pool_last) = (1024, 32767));
    // A full table may have room for the next tuple, whose places are others.
    let outcomes: Vec<_> =
        (2000..4000).map(|from| asks(&mut rig, PORT1, from_guest1(SERVER), from)).collect();
    let opened = outcomes.iter().filter(|outcome| **outcome == Outcome::TranslatedOutbound).count();
    let full = outcomes.iter().filter(|outcome| **outcome == Outcome::FlowTableFull).count();
    assert!(full > 0 && opened + full == outcomes.len(), "{opened} opened, {full} refused");
    let opened = i32::try_from(opened).unwrap();
    let flows = rig.tables.flow.entries().unwrap();
    let mapped = flows.iter().filter(|(key, session)| key.side == 0 && session.has(Flags::MAPPED)).count();
    let mapped = i32::try_from(mapped).unwrap();
    assert!(mapped > 0);
    assert_eq!((counted(&rig), counted_on_mappings(&rig)), ((1 + opened, 0), mapped));
    remove_all(&rig);
    assert_eq!((counted(&rig), counted_on_mappings(&rig)), ((0, 0), 0));
}
