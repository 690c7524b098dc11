//! The service and the operator's files: what they say by now is part of what it brings back, and reason enough to start.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use vmnat_tests::lab::{EXTERNAL, Lab, SERVER_HTTP, client, vmnat::Hook, wait_until};

use super::{BRIDGE, MAIN, base, diff, forwards, guest_flows, http, listed, write};
use crate::kept::{lose_everything_but_the_wish, run};

on_both_hooks!(
    the_service_does_what_files_alone_say,
    files_that_say_nothing_ask_for_nothing,
    what_files_say_by_now_is_brought_back,
    what_broken_files_said_before_is_brought_back,
    a_restart_of_the_service_takes_files_over,
);

const PATIENCE: Duration = Duration::from_secs(10);

fn wait_for_forwards(lab: &Lab, count: usize) -> Result<()> {
    wait_until("the service has done what the files say", PATIENCE, || {
        // Nothing is listed before the instance is up.
        Ok(listed(lab).is_ok_and(|list| list.len() == count))
    })?;
    wait_until("the guest online", PATIENCE, || Ok(client::get(lab.guest(1)?, SERVER_HTTP, "/").is_ok()))
}

/// 1. no `up`, and a file; 2. `run` does what it says; 3. `down` ends it, and the next start does it again.
fn the_service_does_what_files_alone_say(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    write(MAIN, &format!("{}guest-flows = 4096\n{}{BRIDGE}", base(hook), forwards(8080..8081)))?;
    for _ in 0..2 {
        lab.vmnat_ok(&["run", "--check"])?;
        let mut agent = run(&lab)?;
        wait_for_forwards(&lab, 1)?;
        client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/")?;
        ensure!(guest_flows(&lab)? == 4096 && diff(&lab, 0)?.is_empty(), "the file is not done");
        ensure!(agent.is_running(), "the service has ended");
        lab.assert_invariants()?;
        lab.vmnat_ok(&["down"])?;
    }
    lab.up(hook)?;
    lab.assert_invariants()
}

fn files_that_say_nothing_ask_for_nothing(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    let sample = lab.vmnat_ok(&["config", "sample"])?;
    for text in ["", &sample] {
        write(MAIN, text)?;
        lab.refused_with(9, &["run"])?;
        ensure!(lab.vmnat(&["run", "--check"])?.status.code() == Some(1), "there is something to bring back");
    }
    // A fault is told, not skipped.
    write(MAIN, "guest-flow = 5\n")?;
    lab.vmnat_ok(&["run", "--check"])?;
    lab.refused_with(2, &["run"])?;
    let error = lab.vmnat_refused(&["run"])?;
    ensure!(error.contains("vmnat.toml:1:1"), "{error}");
    ensure!(!fs::exists("/run/vmnat/default/state.json")?, "a state is left");
    fs::remove_file(MAIN)?;
    lab.up(hook)?;
    lab.assert_invariants()
}

/// 1. a file, and a forward and a timeout of the command line; 2. all is lost but the wish, and the file changes; 3. `run` brings
///    back what the command line said, and does what the file says now.
fn what_files_say_by_now_is_brought_back(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    write(MAIN, &format!("{}guest-flows = 4096\n{}{BRIDGE}", base(hook), forwards(8080..8083)))?;
    lab.vmnat_ok(&["apply"])?;
    lab.vmnat_ok(&["dnat", "add", &http(9090)])?;
    lab.vmnat_ok(&["up", "--timeout", "icmp=7"])?;
    lose_everything_but_the_wish(&lab)?;
    write(MAIN, &format!("{}{}{BRIDGE}", base(hook), forwards(8082..8084)))?;
    let mut agent = run(&lab)?;
    wait_for_forwards(&lab, 3)?;
    for port in [8082, 8083, 9090] {
        client::get(&lab.world, &format!("{EXTERNAL}:{port}"), "/")?;
    }
    client::must_fail("what is said no more", client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/"))?;
    ensure!(guest_flows(&lab)? != 4096 && diff(&lab, 0)?.is_empty(), "the file of before holds");
    let shown = lab.vmnat_ok(&["config", "show"])?;
    ensure!(shown.contains("icmp = 7"), "{shown}");
    ensure!(agent.is_running(), "the service has ended");
    lab.assert_invariants()
}

/// Told in `status`, and the file's forwards are there as before.
fn what_broken_files_said_before_is_brought_back(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    write(MAIN, &format!("{}guest-flows = 4096\n{}{BRIDGE}", base(hook), forwards(8080..8081)))?;
    lab.vmnat_ok(&["apply"])?;
    lose_everything_but_the_wish(&lab)?;
    write(MAIN, "guest-flow = 5\n")?;
    let mut agent = run(&lab)?;
    wait_for_forwards(&lab, 1)?;
    client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/")?;
    ensure!(guest_flows(&lab)? == 4096, "what the file said is lost");
    let warnings = lab.listing(&["status"])?.at(0)["warnings"].to_string();
    ensure!(warnings.contains("/etc/vmnat/vmnat.toml:1:1: there is no key"), "{warnings}");
    ensure!(agent.is_running(), "the service has ended");
    lab.assert_invariants()
}

/// Over an instance that runs; also what `apply` alone has changed is in the wish by then.
fn a_restart_of_the_service_takes_files_over(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    write(MAIN, &forwards(8080..8082))?;
    let mut agent = run(&lab)?;
    wait_for_forwards(&lab, 2)?;
    client::get(&lab.world, &format!("{EXTERNAL}:8081"), "/")?;
    write(MAIN, "guest-flows = 4096\n")?;
    lab.vmnat_ok(&["apply"])?;
    let wish: serde_json::Value = serde_json::from_slice(&fs::read("/var/lib/vmnat/default/wish.json")?)?;
    ensure!(wish.pointer("/state/quotas/flows").is_some_and(|flows| flows == 4096), "{wish}");
    ensure!(agent.is_running(), "the service has ended");
    lab.assert_invariants()
}
