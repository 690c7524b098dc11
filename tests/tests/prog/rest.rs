//! A freed port rests also after the maps were lost: what was written of them is put back before any port is handed out.

use vmnat_common::{Outcome, Protocol, mapping::End, port_range::pool_bit, reap::Verdict};
use vmnat_tests::lab::frame::Packet;
use vmnat_user::rest::Snapshot;

use super::rig::{GUEST1, IntoAddress as _, PORT1, PORT2, Rig, SERVER, from_guest1, from_guest2};

/// The external port that guest 1 gets for a port of its own.
fn asks_first(rig: &mut Rig, from: u16) -> u16 {
    let ran = rig.run("outbound_port", PORT1, &Packet::udp(from_guest1(SERVER), from, 7, b"").bytes());
    assert_eq!(ran.outcome, Outcome::TranslatedOutbound);
    ran.packet().ports().unwrap().0
}

/// The same of guest 2.
fn asks_second(rig: &mut Rig, from: u16) -> u16 {
    let ran = rig.run("outbound_port", PORT2, &Packet::udp(from_guest2(SERVER), from, 7, b"").bytes());
    assert_eq!(ran.outcome, Outcome::TranslatedOutbound);
    ran.packet().ports().unwrap().0
}

/// Without the snapshot the second guest, which comes first this time, would get the first one's port.
#[test]
fn nobody_gets_anothers_port_when_the_maps_were_lost() {
    let mut rig = Rig::new();
    let before = (asks_first(&mut rig, 5000), asks_second(&mut rig, 5000));
    assert_eq!(before.0, 5000);
    assert_ne!(before.1, 5000);
    let snapshot = Snapshot::take(&rig.tables).unwrap();

    let mut rig = Rig::new();
    assert_eq!(snapshot.restore(&rig.tables).unwrap(), 2);
    assert_eq!(snapshot.restore(&rig.tables).unwrap(), 0, "twice");
    assert_eq!(asks_second(&mut rig, 5000), before.1);
    assert_ne!(asks_second(&mut rig, before.0 + 2), before.0);
    assert_eq!(asks_first(&mut rig, 5000), before.0);
}

/// The port of a guest that does not come back is released like any other, after its rest.
#[test]
fn a_port_that_was_put_back_is_free_after_its_rest() {
    let mut rig = Rig::new();
    asks_first(&mut rig, 5000);
    let snapshot = Snapshot::take(&rig.tables).unwrap();

    let mut rig = Rig::new();
    snapshot.restore(&rig.tables).unwrap();
    let entries = rig.tables.mapping.entries().unwrap();
    let inner: Vec<_> =
        entries.iter().map(|(key, _)| *key).filter(|key| key.end == End::Internal as u8).collect();
    assert_eq!(inner[0].address, GUEST1.into_address());
    assert_eq!(rig.tables.reap_mappings(&inner).unwrap(), [Verdict::Kept]);
    assert_ne!(asks_second(&mut rig, 5000), 5000, "it rests");
    rig.settings(|settings| settings.timeouts.mapping_rest = 0);
    assert_eq!(rig.tables.reap_mappings(&inner).unwrap(), [Verdict::Removed]);
    assert_eq!(rig.mappings(), 2, "guest 2's other port alone is left");
}

/// A port that the host has taken meanwhile is not put back.
#[test]
fn a_port_that_left_the_pool_is_not_put_back() {
    let mut rig = Rig::new();
    asks_first(&mut rig, 5000);
    let snapshot = Snapshot::take(&rig.tables).unwrap();
    let rig = Rig::new();
    let (word, bit) = pool_bit(Protocol::Udp, 5000).unwrap();
    rig.tables.port_pool.set(&word, &!bit).unwrap();
    assert_eq!(snapshot.restore(&rig.tables).unwrap(), 0);
    assert_eq!(rig.mappings(), 0);
}
