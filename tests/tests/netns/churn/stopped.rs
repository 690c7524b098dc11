//! The agent is stopped, the wall clock jumps, and rights are missing: guests go on, and commands say what is wrong.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use vmnat_tests::lab::{EXTERNAL, Lab, client, guest_address, traffic::Traffic, vmnat::Hook, wait_until};

use super::{PATIENCE, heals};

/// How long the agent is stopped; `VMNAT_STOPPED_SECONDS` says otherwise.
fn stopped_for() -> Duration {
    let asked = std::env::var("VMNAT_STOPPED_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(asked.unwrap_or(6))
}

/// 1. traffic, and the agent is stopped; 2. nobody notices; commands answer, add a port forward that works, and say what is wrong; a
///    second agent is refused; 3. `up` lets it go on.
#[test]
fn a_stopped_agent_is_told_and_guests_do_not_notice() -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(Hook::Tcx)?;
    let traffic = Traffic::start(&lab)?;
    let agent = lab.agent()?;
    kill(agent, Signal::SIGSTOP)?;
    // It stops where it next leaves the kernel.
    wait_until("the agent to stop", PATIENCE, || {
        Ok(fs::read_to_string(format!("/proc/{agent}/stat"))?.contains(") T "))
    })?;
    let since = Instant::now();
    let mut slowest = Duration::ZERO;
    while since.elapsed() < stopped_for() {
        for command in [&["status"][..], &["flows"], &["counters"], &["leases"], &["logs"], &["dnat", "list"]]
        {
            let asked = Instant::now();
            let output = lab.vmnat(command)?;
            slowest = slowest.max(asked.elapsed());
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            let is_status = command == ["status"];
            ensure!(output.status.code() == Some(if is_status { 13 } else { 0 }), "{command:?}: {error}");
            ensure!(!is_status || error.contains(&format!("(process {agent}) is stopped")), "{error}");
        }
        thread::sleep(Duration::from_millis(300));
    }
    lab.vmnat_ok(&["dnat", "add", &format!("8080:{}:80/tcp", guest_address(1))])?;
    client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/")?;
    let error = lab.vmnat_refused(&["agent"])?;
    ensure!(error.contains("already taken by a running agent"), "{error}");
    let report = traffic.finish()?;
    println!("the agent stopped for {:?}, the slowest command {slowest:?}: {report}", since.elapsed());
    report.assert_unnoticed(0)?;
    let printed = lab.vmnat_ok(&["up"])?;
    ensure!(printed.contains("go on"), "{printed}");
    heals(&lab)?;
    lab.assert_invariants()
}
