//! Guests do not notice that the agent dies, is restarted or replaced.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "counts and bytes of a test's own making; what is out of range would panic in the debug build that tests run"
)]

mod alone;
mod census;
mod earlier;
mod killed;
mod layouts;
mod upgrade;

use std::{env, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use vmnat_tests::lab::{Lab, namespace::Process, traffic::Traffic, vmnat::Hook, wait_until};

use self::census::Census;
use super::kept::run;

on_both_hooks!(traffic_is_whole_while_nothing_happens, restarts_in_a_row_are_not_noticed);

const PATIENCE: Duration = Duration::from_secs(20);

/// True where somebody has time for what takes long (`VMNAT_LONG`).
fn is_long() -> bool {
    env::var_os("VMNAT_LONG").is_some()
}

/// The instrument itself: what it tells of a restart counts for nothing unless it tells nothing here.
fn traffic_is_whole_while_nothing_happens(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let traffic = Traffic::start(&lab)?;
    thread::sleep(Duration::from_secs(2));
    let report = traffic.finish()?;
    println!("{hook:?}, nothing happens: {report}");
    report.assert_unnoticed(0)?;
    lab.assert_invariants()
}

/// A14: restarts one after the other under traffic, by turns with `kill -9` and with SIGTERM, and with another one that `up`
/// starts or that a service manager does. Nothing grows.
fn restarts_in_a_row_are_not_noticed(hook: Hook) -> Result<()> {
    let rounds = if is_long() || hook == Hook::Tcx { 50 } else { 20 };
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let traffic = Traffic::start(&lab)?;
    let before = Census::take(&lab)?;
    let mut service: Option<Process> = None;
    for round in 0..rounds {
        let agent = lab.agent()?;
        let signal = if round % 2 == 0 { Signal::SIGKILL } else { Signal::SIGTERM };
        kill(agent, signal).context("end the agent")?;
        lab.wait_for_the_end_of(agent)?;
        service = if round % 4 < 2 {
            lab.up(hook)?;
            None
        } else {
            Some(run(&lab)?)
        };
        let another = || Ok(lab.agent().is_ok_and(|pid| pid != agent));
        wait_until("another agent", PATIENCE, another).with_context(|| format!("round {round}"))?;
        if service.is_some() {
            // It has its place before it has looked at everything.
            lab.up(hook)?;
        }
    }
    if service.is_some() {
        let agent = lab.agent()?;
        drop(service);
        lab.wait_for_the_end_of(agent)?;
        lab.up(hook)?;
    }
    traffic.moves(PATIENCE)?;
    let report = traffic.finish()?;
    println!("{hook:?}, {rounds} restarts: {report}");
    report.assert_unnoticed(rounds)?;
    before.assert_same(&lab)?;
    ensure!(lab.rows(&["dnat", "list"])?.len() == 2, "a port forward has gone");
    lab.assert_invariants()
}
