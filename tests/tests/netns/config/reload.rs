//! SIGHUP: the agent takes the files over; with a fault it leaves everything, and says so.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use vmnat_tests::lab::{EXTERNAL, Lab, client, vmnat::Hook, wait_until};

use super::{BRIDGE, MAIN, base, forwards, guest_flows, http, listed, write};

on_both_hooks!(
    the_agent_takes_files_over_at_a_signal,
    a_broken_file_at_a_signal_is_told_and_changes_nothing,
    a_command_about_something_else_reads_no_file,
);

fn hang_up(lab: &Lab) -> Result<()> {
    Ok(kill(lab.agent()?, Signal::SIGHUP)?)
}

fn wait_for_forwards(lab: &Lab, count: usize) -> Result<()> {
    wait_until("the agent has read the files", Duration::from_secs(10), || Ok(listed(lab)?.len() == count))
}

/// What the agent has logged, and all of it.
fn log() -> Result<String> {
    Ok(fs::read_to_string("/run/vmnat/default/agent.log")?)
}

fn the_agent_takes_files_over_at_a_signal(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    lab.vmnat_ok(&["dnat", "add", &http(8080)])?;
    let agent = lab.agent()?;
    // No file is nothing to be told of.
    hang_up(&lab)?;
    write(MAIN, &format!("guest-flows = 4096\n{}", forwards(8081..8083)))?;
    hang_up(&lab)?;
    wait_for_forwards(&lab, 3)?;
    client::get(&lab.world, &format!("{EXTERNAL}:8082"), "/")?;
    ensure!(guest_flows(&lab)? == 4096, "quotas");
    write(MAIN, "")?;
    hang_up(&lab)?;
    wait_for_forwards(&lab, 1)?;
    ensure!(lab.agent()? == agent && log()?.contains("+ forward"), "another agent, or nothing is logged");
    lab.assert_invariants()
}

/// Once in the log, also when the signal comes again; in `status` until the file is mended.
fn a_broken_file_at_a_signal_is_told_and_changes_nothing(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    write(MAIN, &format!("{}{}{BRIDGE}", base(hook), forwards(8080..8081)))?;
    lab.vmnat_ok(&["apply"])?;
    let warnings =
        |lab: &Lab| Ok::<_, anyhow::Error>(lab.listing(&["status"])?.at(0)["warnings"].to_string());
    write(MAIN, "guest-flow = 5\n")?;
    for _ in 0..3 {
        hang_up(&lab)?;
        wait_until("status tells it", Duration::from_secs(10), || {
            Ok(warnings(&lab)?.contains("/etc/vmnat/vmnat.toml:1:1: there is no key"))
        })?;
        std::thread::sleep(Duration::from_millis(300));
    }
    let told = log()?.matches("is not taken over").count();
    ensure!(told == 1, "told {told} times in the log: {}", log()?);
    client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/")?;
    fs::remove_file(MAIN)?;
    hang_up(&lab)?;
    wait_until("status tells that it has gone", Duration::from_secs(10), || {
        Ok(warnings(&lab)?.contains("there is no configuration in /etc/vmnat"))
    })?;
    ensure!(listed(&lab)?.len() == 1, "a file that has gone takes nothing with it");
    write(MAIN, &format!("{}{}{BRIDGE}", base(hook), forwards(8080..8082)))?;
    hang_up(&lab)?;
    wait_for_forwards(&lab, 2)?;
    ensure!(!warnings(&lab)?.contains("not taken over"), "{}", warnings(&lab)?);
    lab.assert_invariants()
}

/// `dnat add --expires` tells the agent to look ahead: an edit that is not finished must not come true by that.
fn a_command_about_something_else_reads_no_file(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    write(MAIN, &forwards(8081..8082))?;
    lab.vmnat_ok(&["dnat", "add", &http(8080), "--expires", "1h"])?;
    std::thread::sleep(Duration::from_secs(1));
    ensure!(listed(&lab)?.len() == 1, "the file was read");
    lab.assert_invariants()
}
