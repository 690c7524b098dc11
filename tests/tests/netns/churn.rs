//! What changes under vmnat while guests talk: maps, interfaces, hooks, firewalls, the agent, the disk. Verified traffic tells what
//! guests notice of it.
#![expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, as it should"
)]

mod faults;
mod interfaces;
mod million;
mod stopped;
mod tampering;
mod wiped;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use vmnat_tests::lab::{Lab, traffic::Report, wait_until};

/// How long a change may take to be healed on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `status` ends with 0 and has no warning, and tells after how long.
fn heals(lab: &Lab) -> Result<Duration> {
    let since = Instant::now();
    wait_until("status without a warning", PATIENCE, || {
        let output = lab.vmnat(&["status"])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(output.status.success() && !text.contains("warning:"))
    })?;
    Ok(since.elapsed())
}

/// No stream died, and each sequence was heard again after its loss: at most `most` was lost of any of them at a time.
fn assert_spared(report: &Report, most: Duration) -> Result<()> {
    report.assert_streams_live()?;
    report.assert_same_ports()?;
    for sequence in &report.sequences {
        ensure!(sequence.outage() < most, "{}: {:?} lost at a time", sequence.name, sequence.outage());
    }
    Ok(())
}
