//! Packets in are the sum of outcomes, whatever the packets are.

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use vmnat_common::{Outcome, outcome::Kind};

use super::rig::{DROP, PASS, PORT1, REDIRECT, Rig, UPLINK, question};

/// A sound packet with a few bytes changed, cut or grown, behind any program.
fn frames() -> impl Strategy<Value = (usize, Vec<u8>)> {
    let changes = proptest::collection::vec((12_usize..64, any::<u8>()), 0..6);
    (0_usize..3, changes, 34_usize..200).prop_map(|(program, changes, length)| {
        let mut frame = question().bytes();
        frame.resize(length, 0);
        for (at, value) in changes {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        (program, frame)
    })
}

#[test]
fn every_frame_ends_in_one_outcome_whose_kind_is_its_code() {
    let mut rig = Rig::new();
    let programs = [("outbound_port", PORT1), ("inbound", UPLINK), ("guard", UPLINK)];
    let mut runner =
        TestRunner::new(Config { cases: 20_000, failure_persistence: None, ..Config::default() });
    let mut seen = std::collections::BTreeSet::new();
    let rig = std::cell::RefCell::new(&mut rig);
    let seen_cell = std::cell::RefCell::new(&mut seen);
    runner
        .run(&frames(), |(which, frame)| {
            let (program, interface) = programs[which];
            // `run` panics unless exactly one counter moved by one.
            let ran = rig.borrow_mut().run(program, interface, &frame);
            let code = match ran.outcome.kind() {
                Kind::Forwarded => REDIRECT,
                Kind::Passed => PASS,
                Kind::Dropped => DROP,
            };
            prop_assert_eq!(ran.code, code);
            if ran.outcome == Outcome::TranslatedOutbound {
                prop_assert_eq!(&ran.frame[26..30], [203, 0, 113, 2]);
            } else if code == PASS {
                prop_assert_eq!(ran.frame, frame);
            }
            seen_cell.borrow_mut().insert(ran.outcome);
            Ok(())
        })
        .unwrap();
    assert!(seen.len() > 10, "the frames reach many stages: {seen:?}");
}
