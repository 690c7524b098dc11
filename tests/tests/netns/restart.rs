//! Guests do not notice that the agent dies, is restarted or replaced.

use std::{thread, time::Duration};

use anyhow::Result;
use vmnat_tests::lab::{Lab, traffic::Traffic, vmnat::Hook};

on_both_hooks!(traffic_is_whole_while_nothing_happens);

/// The instrument itself: what it tells of a restart counts for nothing unless it tells nothing here.
fn traffic_is_whole_while_nothing_happens(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let traffic = Traffic::start(&lab)?;
    thread::sleep(Duration::from_secs(3));
    let report = traffic.finish()?;
    println!("{hook:?}: nothing happens: {report}");
    report.assert_unnoticed(0)?;
    lab.assert_invariants()
}
