//! What `up` was asked for outlives a reboot: `run` brings it back, whatever is there already, and `down` forgets it.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use nix::mount::{MsFlags, mount};
use vmnat_tests::lab::{
    EXTERNAL, Lab, SERVER_HTTP, client, guest_address, namespace::Process, vmnat, vmnat::Hook, wait_until,
};

on_both_hooks!(
    a_reboot_is_survived_though_the_bridge_comes_late,
    the_agent_in_the_background_is_replaced,
    down_is_not_undone,
    an_up_that_fails_leaves_what_was_kept,
    a_full_disk_leaves_what_was_kept,
);

const WISH: &str = "/var/lib/vmnat/default/wish.json";
const PATIENCE: Duration = Duration::from_secs(10);

fn http(port: u16) -> String {
    format!("{port}:{}:80/tcp", guest_address(1))
}

/// What systemd would start.
pub(crate) fn run(lab: &Lab) -> Result<Process> {
    lab.host.start(&[&vmnat::program()?.to_string_lossy(), "run"])
}

/// As after a reboot: nothing is loaded, and the wish is there.
pub(crate) fn lose_everything_but_the_wish(lab: &Lab) -> Result<()> {
    let wish = fs::read(WISH)?;
    lab.vmnat_ok(&["down"])?;
    Ok(fs::write(WISH, wish)?)
}

/// 1. `up` with a timeout, a pool and a forward; 2. all is lost, and the bridge too; 3. `run` waits for the bridge; 4. it comes, and
///    everything is as it was asked for.
fn a_reboot_is_survived_though_the_bridge_comes_late(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up_with(hook, &["--timeout", "icmp=7", "--pool", "20000-30000"])?;
    lab.vmnat_ok(&["dnat", "add", &http(8080)])?;
    let before = fs::read_to_string(WISH)?;
    lose_everything_but_the_wish(&lab)?;
    let rename = |from: &str, to: &str| -> Result<()> {
        lab.host.exec(&["ip", "link", "set", from, "down"])?;
        lab.host.exec(&["ip", "link", "set", from, "name", to])?;
        lab.host.exec(&["ip", "link", "set", to, "up"]).map(drop)
    };
    rename("virbr0", "later0")?;
    let mut agent = run(&lab)?;
    let warned = |lab: &Lab| lab.vmnat(&["status"]).map(|output| output.stdout);
    wait_until("a warning that the bridge is missing", PATIENCE, || {
        Ok(String::from_utf8_lossy(&warned(&lab)?).contains("bridge virbr0 does not exist"))
    })?;
    rename("later0", "virbr0")?;
    wait_until("the guest online again", PATIENCE, || {
        Ok(client::get(lab.guest(1)?, SERVER_HTTP, "/").is_ok())
    })?;
    client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/")?;
    ensure!(agent.is_running() && fs::read_to_string(WISH)? == before, "the wish has changed");
    let status = lab.vmnat_ok(&["status"])?;
    ensure!(status.contains("20000 to 30000") && status.contains(hook.name()), "{status}");
    lab.assert_invariants()
}

/// `up` has started an agent; a service takes its place, and a second one is refused.
fn the_agent_in_the_background_is_replaced(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let background = lab.agent()?;
    let mut agent = run(&lab)?;
    lab.wait_for_the_end_of(background)?;
    let taken_over = || Ok(lab.agent().is_ok_and(|pid| pid.as_raw().unsigned_abs() == agent.id()));
    wait_until("the service's agent", PATIENCE, taken_over)?;
    let error = lab.vmnat_refused(&["run"])?;
    ensure!(error.contains("already taken by a running agent"), "{error}");
    ensure!(agent.is_running(), "the first service has ended");
    client::get(lab.guest(1)?, SERVER_HTTP, "/")?;
    lab.assert_invariants()
}

fn down_is_not_undone(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    ensure!(lab.vmnat(&["run", "--check"])?.status.code() == Some(1), "there is something to bring back");
    lab.up(hook)?;
    lab.vmnat_ok(&["run", "--check"])?;
    lose_everything_but_the_wish(&lab)?;
    lab.vmnat_ok(&["run", "--check"])?;
    // Also where nothing runs.
    lab.vmnat_ok(&["down"])?;
    lab.refused_with(9, &["run"])?;
    ensure!(!fs::exists(WISH)? && !fs::exists("/run/vmnat")?, "something is left");
    lab.up(hook)?;
    lab.assert_invariants()
}

/// Nothing runs, something is kept, and an `up` of something else fails.
fn an_up_that_fails_leaves_what_was_kept(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    lose_everything_but_the_wish(&lab)?;
    let before = fs::read_to_string(WISH)?;
    // The network overlaps the uplink's own.
    let network = format!("{EXTERNAL}/24");
    lab.refused_with(8, &["up", "--bridge", "virbr0", "--uplink", "enp3s0", "--network", &network])?;
    ensure!(fs::read_to_string(WISH)? == before, "the wish has changed");
    lab.up(hook)?;
    lab.assert_invariants()
}

fn a_full_disk_leaves_what_was_kept(hook: Hook) -> Result<()> {
    let resize = |size: &str| mount(None::<&str>, "/var/lib", None::<&str>, MsFlags::MS_REMOUNT, Some(size));
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let before = fs::read_to_string(WISH)?;
    resize("size=4k")?;
    let error = lab.vmnat_refused(&["up", "--timeout", "icmp=7"])?;
    ensure!(error.contains("wish.json") && error.contains("No space left"), "{error}");
    ensure!(fs::read_to_string(WISH)? == before, "the file has changed");
    ensure!(fs::read_dir("/var/lib/vmnat/default")?.count() == 1, "a temporary file is left");
    client::get(lab.guest(1)?, SERVER_HTTP, "/")?;
    resize("size=1m")?;
    lab.vmnat_ok(&["up", "--timeout", "icmp=7"])?;
    ensure!(fs::read_to_string(WISH)? != before, "the wish is the old one");
    lab.assert_invariants()
}
