//! The command line beyond the main road: what it finds by itself, what it waits for, and how it refuses.

use std::{fs, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use vmnat_tests::lab::{
    EXTERNAL, Lab, ROUTER, SERVER, SERVER_ECHO,
    client::{self, Conversation},
    guest_address,
    snapshot::Snapshot,
    vmnat::{self, Hook},
    wait_until,
};

on_both_hooks!(
    the_default_route_names_the_uplink,
    up_waits_for_an_address_of_the_uplink,
    an_absent_bpffs_is_mounted_and_unmounted,
    foreground_stays_until_it_is_told_to_end,
    flows_are_filtered_counted_and_removed,
    a_removed_network_goes_offline_and_comes_back,
);

/// Without `--uplink`.
fn the_default_route_names_the_uplink(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.vmnat_ok(&["up", "--bridge", "virbr0", "--hook", hook.name()])?;
    client::converse(lab.guest(1)?, SERVER_ECHO)?;
    ensure!(lab.vmnat_ok(&["status"])?.contains("enp3s0"), "status does not name the uplink");
    lab.assert_invariants()
}

/// 1. the uplink has no address, and `up` refuses; 2. `up --wait` waits; 3. the address comes, and `up` returns.
fn up_waits_for_an_address_of_the_uplink(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.host.ip(&format!("address delete {EXTERNAL}/24 dev enp3s0\n"))?;
    let usual = ["up", "--bridge", "virbr0", "--uplink", "enp3s0", "--hook", hook.name()];
    lab.refused_with(5, &usual)?;
    thread::scope(|scope| -> Result<()> {
        let waiting = scope.spawn(|| lab.up_with(hook, &["--wait", "20s"]));
        thread::sleep(Duration::from_millis(700));
        ensure!(!waiting.is_finished(), "`up --wait` did not wait");
        lab.host.ip(&format!(
            "address add {EXTERNAL}/24 dev enp3s0\n\
             route replace default via {ROUTER}\n"
        ))?;
        waiting.join().map_err(|_| anyhow::anyhow!("waiting panicked"))?.map(drop)
    })?;
    client::converse(lab.guest(1)?, SERVER_ECHO)?;
    lab.assert_invariants()
}

/// Where nothing is mounted at `/sys/fs/bpf`: `up` mounts it and says so, `down` leaves nothing mounted.
fn an_absent_bpffs_is_mounted_and_unmounted(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    umount2("/sys/fs/bpf", MntFlags::MNT_DETACH)?;
    let is_mounted = || -> Result<bool> {
        let mounts = fs::read_to_string("/proc/thread-self/mounts")?;
        Ok(mounts.lines().any(|mount| mount.contains(" /sys/fs/bpf ")))
    };
    let was_mounted = is_mounted()?;
    let before = Snapshot::take(&lab.host)?;
    lab.up(hook)?;
    client::converse(lab.guest(1)?, SERVER_ECHO)?;
    ensure!(is_mounted()?, "the pins lie on no bpffs");
    lab.vmnat_ok(&["down"])?;
    Snapshot::take(&lab.host)?.assert_same_as(&before)?;
    ensure!(is_mounted()? == was_mounted, "mounted before: {was_mounted}, after: {}", !was_mounted);
    lab.assert_invariants()
}

/// 1. `up --foreground` stays and guests are online; 2. SIGTERM ends it in good order.
fn foreground_stays_until_it_is_told_to_end(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    let program = vmnat::program()?;
    let program = program.to_str().context("a path that is no text")?;
    let words = ["up", "--bridge", "virbr0", "--uplink", "enp3s0", "--foreground", "--hook", hook.name()];
    let mut process = lab.host.start(&[&[program], &words[..]].concat())?;
    wait_until("guest 1 is online", Duration::from_secs(15), || {
        Ok(client::ping_as(lab.guest(1)?, 1, SERVER, Duration::from_millis(200)).is_ok())
    })?;
    client::converse(lab.guest(1)?, SERVER_ECHO)?;
    ensure!(process.is_running(), "it did not stay");
    kill(Pid::from_raw(i32::try_from(process.id())?), Signal::SIGTERM)?;
    process.finish().context("its end")?;
    lab.assert_invariants()
}

/// 1. each guest has a conversation; 2. filters tell them apart; 3. `flows rm` removes one guest's, whose conversation
///    goes on by opening a flow again.
fn flows_are_filtered_counted_and_removed(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let mut first = Conversation::open(lab.guest(1)?, SERVER_ECHO)?;
    let mut second = Conversation::open(lab.guest(2)?, SERVER_ECHO)?;
    first.exchange(1000)?;
    second.exchange(1000)?;
    let count = |filter: &[&str]| -> Result<usize> { Ok(lab.rows(&[&["flows"], filter].concat())?.len()) };
    let (one, port) = (guest_address(1), first.local()?.port().to_string());
    ensure!(count(&[])? == 2, "{} flows for two conversations", count(&[])?);
    ensure!(count(&["--guest", &one])? == 1, "--guest {one}");
    ensure!(count(&["--port", &port])? == 1, "--port {port}");
    ensure!(count(&["--protocol", "tcp"])? == 2, "--protocol tcp");
    ensure!(count(&["--protocol", "udp"])? == 0, "--protocol udp");
    let counted = lab.vmnat_ok(&["flows", "--count", "--guest", &one])?;
    ensure!(counted.trim() == "1", "--count prints {counted:?}");
    // A delayed acknowledgment (at most 200 ms) would open the flow again at once.
    thread::sleep(Duration::from_millis(300));
    lab.vmnat_ok(&["flows", "rm", "--guest", &one])?;
    ensure!(count(&["--guest", &one])? == 0, "the removed flow is still there");
    ensure!(count(&[])? == 1, "the other guest's flow is gone too");
    second.exchange(1000)?;
    first.exchange(1000).context("a conversation whose flow was removed")?;
    lab.assert_invariants()
}

/// 1. `network rm` takes guests offline; 2. `network add` puts them online again.
fn a_removed_network_goes_offline_and_comes_back(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    client::ping(lab.guest(1)?, SERVER)?;
    lab.vmnat_ok(&["network", "rm", "virbr0"])?;
    let attempt = client::ping_as(lab.guest(1)?, 2, SERVER, Duration::from_millis(300));
    client::must_fail("a ping from a removed network", attempt)?;
    lab.vmnat_ok(&["network", "add", "virbr0"])?;
    client::converse(lab.guest(1)?, SERVER_ECHO)?;
    lab.assert_invariants()
}

/// Each trouble that an operator can act on has its exit code, and leaves the host as it was.
#[test]
fn each_trouble_has_its_exit_code() -> Result<()> {
    let mut lab = Lab::new()?;
    let before = Snapshot::take(&lab.host)?;
    lab.refused_with(2, &["up", "--no-such-option"])?;
    lab.refused_with(4, &["up", "--bridge", "nobridge", "--uplink", "enp3s0"])?;
    lab.refused_with(4, &["up", "--bridge", "virbr0", "--uplink", "noth0"])?;
    lab.refused_with(4, &["up", "--bridge", "vnet1", "--uplink", "enp3s0"])?;
    lab.refused_with(9, &["flows"])?;
    lab.refused_with(9, &["dnat", "add", "8080:192.168.122.10:80"])?;
    let networks = ["--network", "192.168.122.0/24", "--network", "192.168.122.128/25"];
    lab.refused_with(8, &[&["up", "--bridge", "virbr0", "--uplink", "enp3s0"], &networks[..]].concat())?;
    Snapshot::take(&lab.host)?.assert_same_as(&before)?;
    lab.up(Hook::of_the_kernel())?;
    lab.vmnat_ok(&["dnat", "add", "8080:192.168.122.10:80"])?;
    lab.refused_with(10, &["dnat", "add", "8080:192.168.122.11:80"])?;
    lab.assert_invariants()
}

/// Somebody who is not root is told so.
#[test]
fn root_is_asked_for() -> Result<()> {
    let mut lab = Lab::new()?;
    // A place that everybody may read, unlike where programs are built.
    fs::copy(vmnat::program()?, "/run/vmnat-copy")?;
    let nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "/run/vmnat-copy"];
    let up = ["up", "--bridge", "virbr0", "--uplink", "enp3s0"];
    let output = lab.host.output(&[&nobody[..], &up].concat(), "")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(3), "exit {:?}: {error}", output.status.code());
    ensure!(error.contains("root"), "it says {error:?}");
    lab.assert_invariants()
}
