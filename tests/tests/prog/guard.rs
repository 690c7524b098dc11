//! What may leave by an uplink.

use vmnat_common::Outcome;

use super::rig::{DROP, EXTERNAL, PASS, Rig, UPLINK, question};

#[test]
fn a_guests_source_does_not_leave() {
    let mut rig = Rig::new();
    for source in [[192, 168, 122, 10], [192, 168, 122, 1], [192, 168, 123, 200]] {
        let mut packet = question();
        packet.source = source;
        let ran = rig.run("guard", UPLINK, &packet.bytes());
        assert_eq!((ran.outcome, ran.code), (Outcome::LeakedSource, DROP));
    }
}

#[test]
fn all_else_leaves_untouched() {
    let mut rig = Rig::new();
    for source in [EXTERNAL, [192, 168, 121, 255], [192, 168, 124, 0], [10, 0, 0, 1]] {
        let mut packet = question();
        packet.source = source;
        let frame = packet.bytes();
        let ran = rig.run("guard", UPLINK, &frame);
        assert_eq!((ran.outcome, ran.code, ran.frame), (Outcome::Clean, PASS, frame));
    }
    let mut arp = question().bytes();
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    let ran = rig.run("guard", UPLINK, &arp);
    assert_eq!((ran.outcome, ran.code), (Outcome::NotIpv4, PASS));
}
