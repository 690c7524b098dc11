//! Port forwards outlive the instance, a killed agent and a full disk.

use std::{fs, os::unix::fs::PermissionsExt as _};

use anyhow::{Result, ensure};
use nix::mount::{MsFlags, mount};
use vmnat_tests::lab::{EXTERNAL, Lab, client, guest_address, vmnat::Hook};

on_both_hooks!(
    forwards_are_back_after_down_and_up,
    numbers_are_never_used_again,
    forwards_are_kept_while_the_agent_is_dead,
    a_full_disk_changes_nothing,
    a_file_that_makes_no_sense_is_left_alone,
);

const FILE: &str = "/var/lib/vmnat/default/forwards.json";

fn http(port: u16) -> String {
    format!("{port}:{}:80/tcp", guest_address(1))
}

/// 1. one to keep, one for the running instance; 2. `down`: list and exists answer from the file; 3. `up`: the first is back.
fn forwards_are_back_after_down_and_up(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    lab.vmnat_ok(&["dnat", "add", &http(8080), "--comment", "a web server"])?;
    lab.vmnat_ok(&["dnat", "add", &http(8081), "--runtime-only"])?;
    let mode = |path: &str| Ok::<_, anyhow::Error>(fs::metadata(path)?.permissions().mode() & 0o777);
    ensure!((mode(FILE)?, mode("/var/lib/vmnat/default")?) == (0o600, 0o700), "others may read it");
    lab.vmnat_ok(&["down"])?;
    let rows = lab.listing(&["dnat", "list"])?;
    ensure!(rows.at(1).is_null() && rows.at(0)["comment"] == "a web server", "{rows:?}");
    lab.vmnat_ok(&["dnat", "exists", &http(8080)])?;
    lab.refused_with(1, &["dnat", "exists", &http(8081)])?;
    let printed = lab.up(hook)?;
    ensure!(printed.contains(&format!("added port forward 1: {EXTERNAL}:8080/tcp")), "{printed}");
    client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/")?;
    client::must_fail(
        "a forward of the last run",
        client::get(&lab.world, &format!("{EXTERNAL}:8081"), "/"),
    )?;
    ensure!(lab.listing(&["dnat", "list"])?.at(0)["id"] == 1, "it has another number");
    lab.assert_invariants()
}

fn numbers_are_never_used_again(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    lab.vmnat_ok(&["dnat", "add", &http(8080), "--runtime-only"])?;
    lab.vmnat_ok(&["dnat", "add", &http(8081)])?;
    lab.vmnat_ok(&["dnat", "rm", "2"])?;
    lab.vmnat_ok(&["down"])?;
    lab.up(hook)?;
    let printed = lab.vmnat_ok(&["dnat", "add", &http(8080)])?;
    ensure!(printed.contains("added: port forward 3 is"), "{printed}");
    lab.assert_invariants()
}

/// 1. the agent is killed; 2. forwards come and go all the same; 3. a new agent keeps what is there.
fn forwards_are_kept_while_the_agent_is_dead(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    lab.vmnat_ok(&["dnat", "add", &http(8080)])?;
    lab.kill_agent()?;
    lab.vmnat_ok(&["dnat", "add", &http(8081)])?;
    lab.vmnat_ok(&["dnat", "rm", &http(8080)])?;
    client::get(&lab.world, &format!("{EXTERNAL}:8081"), "/")?;
    client::must_fail("a removed forward", client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/"))?;
    lab.up(hook)?;
    client::get(&lab.world, &format!("{EXTERNAL}:8081"), "/")?;
    ensure!(lab.rows(&["dnat", "list"])?.len() == 1, "the new agent has changed the set");
    lab.assert_invariants()
}

/// The disk is full: `add` fails, kernel and file are as before; there is room: it goes through.
fn a_full_disk_changes_nothing(hook: Hook) -> Result<()> {
    let resize = |size: &str| mount(None::<&str>, "/var/lib", None::<&str>, MsFlags::MS_REMOUNT, Some(size));
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    lab.vmnat_ok(&["dnat", "add", &http(8080)])?;
    let before = fs::read(FILE)?;
    resize("size=8k")?;
    let error = lab.vmnat_refused(&["dnat", "add", &http(8081)])?;
    ensure!(error.contains("forwards.json") && error.contains("No space left"), "{error}");
    ensure!(fs::read(FILE)? == before, "the file has changed");
    ensure!(fs::read_dir("/var/lib/vmnat/default")?.count() == 2, "a temporary file is left");
    ensure!(lab.rows(&["dnat", "list"])?.len() == 1, "it is listed");
    client::must_fail("a forward that failed", client::get(&lab.world, &format!("{EXTERNAL}:8081"), "/"))?;
    client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/")?;
    resize("size=1m")?;
    lab.vmnat_ok(&["dnat", "add", &http(8081)])?;
    lab.assert_invariants()
}

/// Half a file, and one of another version: named, never written over; `down` works without it, and running forwards go on.
fn a_file_that_makes_no_sense_is_left_alone(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    lab.vmnat_ok(&["dnat", "add", &http(8080)])?;
    for (content, why) in [("{\"version\":1,", "EOF"), ("{\"version\":9}", "its version is 9")] {
        fs::write(FILE, content)?;
        for command in [&["dnat", "add", &http(8081)][..], &["dnat", "list"], &["dnat", "rm", "1"]] {
            let error = lab.vmnat_refused(command)?;
            ensure!(error.contains(FILE) && error.contains(why), "{error}");
        }
        ensure!(fs::read_to_string(FILE)? == content, "the file was written over");
    }
    client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/")?;
    lab.vmnat_ok(&["down"])?;
    ensure!(
        lab.vmnat_refused(&["up", "--bridge", "virbr0", "--uplink", "enp3s0"])?.contains(FILE),
        "up is silent"
    );
    fs::remove_file(FILE)?;
    lab.up(hook)?;
    lab.assert_invariants()
}
