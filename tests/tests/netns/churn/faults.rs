//! Disks that are full or read-only, and rights that are missing: one clear error each, nothing half-applied, and guests go on.

use std::{fs, io::Write as _, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MsFlags, mount};
use vmnat_tests::lab::{
    Lab, guest_address,
    snapshot::Snapshot,
    traffic::Traffic,
    vmnat::{self, Hook},
};

use super::{
    super::config::atomic::{Full, no_temporary_file},
    heals,
};

const STATE: &str = "/run/vmnat/default/state.json";
const STORE: &str = "/var/lib/vmnat/default/forwards.json";

/// A mount that is read-only until the value goes.
struct ReadOnly(&'static str);

impl ReadOnly {
    fn make(folder: &'static str) -> Result<Self> {
        remount(folder, MsFlags::MS_RDONLY)?;
        Ok(Self(folder))
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        remount(self.0, MsFlags::empty()).ok();
    }
}

fn remount(folder: &str, flags: MsFlags) -> Result<()> {
    let none = None::<&str>;
    mount(none, folder, none, MsFlags::MS_REMOUNT | flags, none).with_context(|| folder.to_owned())
}

/// Takes what room the agent has left since by removing a file of its own.
fn top_up(folder: &str) {
    let file = fs::OpenOptions::new().create(true).append(true).open(format!("{folder}/more"));
    let Ok(mut file) = file else { return };
    while file.write_all(&[b'x'; 4096]).is_ok() {}
}

/// Under traffic, with the agent at work: 1. each disk is full, and read-only; 2. `dnat add` and `up` say so in one sentence, and leave
///    files, forwards and flows as they were; 3. the agent lives, and all is well once there is room.
#[test]
fn a_disk_that_takes_nothing_loses_nothing() -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up_with(Hook::Tcx, &["--reap-interval", "300ms"])?;
    let traffic = Traffic::start(&lab)?;
    let agent = lab.agent()?;
    let before = (fs::read(STATE)?, fs::read(STORE)?, lab.vmnat_ok(&["dnat", "list"])?.lines().count());
    let new = format!("8080:{}:80/tcp", guest_address(1));
    // The agent's log is open in /run, so nothing can make that read-only.
    for (folder, is_full) in [("/run", true), ("/var/lib", true), ("/var/lib", false)] {
        let (full, read_only) =
            if is_full { (Some(Full::of(folder)?), None) } else { (None, Some(ReadOnly::make(folder)?)) };
        // Where nothing can ever be kept, as on a read-only system, `up` does without, and warns.
        let commands = [&["dnat", "add", &new][..], &["up", "--timeout", "icmp=7"]];
        for command in commands.iter().take(if is_full { 2 } else { 1 }) {
            if is_full {
                top_up(folder);
            }
            let error = lab.vmnat_refused(command).with_context(|| format!("{folder}, full: {is_full}"))?;
            let why = if is_full { "No space left" } else { "Read-only" };
            let last = error.trim().lines().last().unwrap_or_default();
            ensure!(last.contains(why), "{folder}, {command:?}: {error}");
        }
        // The agent writes too, and must not mind.
        thread::sleep(Duration::from_millis(700));
        fs::remove_file(format!("{folder}/more")).ok();
        drop((full, read_only));
        let now = (fs::read(STATE)?, fs::read(STORE)?, lab.vmnat_ok(&["dnat", "list"])?.lines().count());
        ensure!(now == before, "{folder}, full: {is_full}: something has changed");
    }
    // Whoever takes the lock next sweeps up.
    lab.vmnat_ok(&["up"])?;
    no_temporary_file()?;
    let report = traffic.finish()?;
    println!("full and read-only disks: {report}");
    report.assert_unnoticed(0)?;
    ensure!(lab.agent()? == agent, "another agent runs");
    lab.vmnat_ok(&["dnat", "add", &new])?;
    heals(&lab)?;
    lab.assert_invariants()
}

/// A first `up` without a capability, or where the BPF file system is read-only: one clear error, and the host as it was.
#[test]
fn what_is_not_permitted_leaves_nothing_behind() -> Result<()> {
    let mut lab = Lab::new()?;
    let program = vmnat::program()?;
    let program = program.to_str().context("a path that is no text")?;
    let up = ["up", "--bridge", "virbr0", "--uplink", "enp3s0"];
    let before = Snapshot::take(&lab.host)?;
    for missing in ["-bpf,-sys_admin", "-net_admin,-sys_admin"] {
        let drops = ["setpriv", "--bounding-set", missing, "--inh-caps", missing, program];
        let output = lab.host.output(&[&drops[..], &up].concat(), "")?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(3), "without {missing}: {:?}: {error}", output.status);
        ensure!(error.trim().lines().count() == 1, "without {missing}: {error}");
        Snapshot::take(&lab.host)?.assert_same_as(&before)?;
        ensure!(!fs::exists("/run/vmnat")?, "without {missing}: something is left in /run");
    }
    let read_only = ReadOnly::make("/sys/fs/bpf")?;
    let error = lab.vmnat_refused(&up)?;
    ensure!(error.contains("/sys/fs/bpf") && error.contains("Read-only"), "{error}");
    drop(read_only);
    Snapshot::take(&lab.host)?.assert_same_as(&before)?;
    lab.up(Hook::Tcx)?;
    heals(&lab)?;
    lab.assert_invariants()
}
