//! What the reaper removes.

use vmnat_common::{
    flow::{FlowKey, Side},
    mapping::{End, MappingKey},
    reap::{BATCH, Mode, Verdict},
    timeout::Timeouts,
};
use vmnat_tests::lab::frame::Packet;

use super::rig::{PORT1, Rig, SERVER, UPLINK, from_guest1, from_world, question};

fn guest_keys(rig: &Rig) -> Vec<FlowKey> {
    let flows = rig.tables.flow.entries().unwrap();
    flows.into_iter().map(|(key, _)| key).filter(|key| key.side == Side::Guest as u8).collect()
}

fn internal_ends(rig: &Rig) -> Vec<MappingKey> {
    let mappings = rig.tables.mapping.entries().unwrap();
    mappings.into_iter().map(|(key, _)| key).filter(|key| key.end == End::Internal as u8).collect()
}

fn timeouts(rig: &Rig, change: impl FnOnce(&mut Timeouts)) {
    rig.settings(|settings| change(&mut settings.timeouts));
}

#[test]
fn a_live_flow_is_kept_and_an_old_one_removed_with_both_halves() {
    let mut rig = Rig::new();
    rig.run("outbound_port", PORT1, &question().bytes());
    let keys = guest_keys(&rig);
    assert_eq!(rig.tables.reap(Mode::Expire, &keys).unwrap(), [Verdict::Kept]);
    assert_eq!(rig.flows(), 2);
    timeouts(&rig, |timeouts| timeouts.udp_unreplied = 0);
    assert_eq!(rig.tables.reap(Mode::Expire, &keys).unwrap(), [Verdict::Removed]);
    assert_eq!(rig.flows(), 0);
    assert_eq!(rig.tables.reap(Mode::Expire, &keys).unwrap(), [Verdict::Absent]);
}

#[test]
fn the_timeout_is_that_of_both_halves() {
    let mut rig = Rig::new();
    rig.run("outbound_port", PORT1, &question().bytes());
    rig.run("inbound", UPLINK, &Packet::udp(from_world(SERVER), 7, 5000, b"answer").bytes());
    timeouts(&rig, |timeouts| timeouts.udp_unreplied = 0);
    assert_eq!(rig.tables.reap(Mode::Expire, &guest_keys(&rig)).unwrap(), [Verdict::Kept]);
    timeouts(&rig, |timeouts| timeouts.udp_replied = 0);
    assert_eq!(rig.tables.reap(Mode::Expire, &guest_keys(&rig)).unwrap(), [Verdict::Removed]);
}

#[test]
fn removal_does_not_ask_for_age() {
    let mut rig = Rig::new();
    rig.run("outbound_port", PORT1, &question().bytes());
    let uplink_key =
        rig.tables.flow.entries().unwrap().into_iter().map(|(key, _)| key).find(|key| key.side == 1);
    assert_eq!(rig.tables.reap(Mode::Remove, &[uplink_key.unwrap()]).unwrap(), [Verdict::Removed]);
    assert_eq!(rig.flows(), 0);
}

#[test]
fn an_uplinks_half_alone_goes_after_a_while() {
    let mut rig = Rig::new();
    rig.run("outbound_port", PORT1, &question().bytes());
    let guest = guest_keys(&rig)[0];
    assert!(rig.tables.flow.remove(&guest).unwrap());
    let orphan = rig.tables.flow.entries().unwrap()[0].0;
    assert_eq!(rig.tables.reap(Mode::Expire, &[orphan]).unwrap(), [Verdict::Kept]);
    timeouts(&rig, |timeouts| timeouts.icmp = 0);
    assert_eq!(rig.tables.reap(Mode::Expire, &[orphan]).unwrap(), [Verdict::Removed]);
}

#[test]
fn a_mapping_rests_before_its_port_is_free() {
    let mut rig = Rig::new();
    rig.run("outbound_port", PORT1, &question().bytes());
    let mappings = internal_ends(&rig);
    assert_eq!(rig.tables.reap_mappings(&mappings).unwrap(), [Verdict::Kept], "a flow stands on it");
    rig.tables.reap(Mode::Remove, &guest_keys(&rig)).unwrap();
    assert_eq!(rig.tables.reap_mappings(&mappings).unwrap(), [Verdict::Kept], "its port rests");
    timeouts(&rig, |timeouts| timeouts.mapping_rest = 0);
    assert_eq!(rig.tables.reap_mappings(&mappings).unwrap(), [Verdict::Removed]);
    assert_eq!(rig.mappings(), 0);
}

#[test]
fn a_letter_of_many_keys_is_answered_key_by_key() {
    let mut rig = Rig::new();
    for port in 0..100 {
        rig.run("outbound_port", PORT1, &Packet::udp(from_guest1(SERVER), 5000 + port, 7, b"").bytes());
    }
    let keys = guest_keys(&rig);
    assert!(keys.len() > BATCH);
    let verdicts = rig.tables.reap(Mode::Remove, &keys).unwrap();
    assert_eq!(verdicts, vec![Verdict::Removed; 100]);
    assert_eq!(rig.flows(), 0);
}
