//! What the kernel has and lacks: vmnat takes the best hook that there is, and says which one is missing.

use std::fs;

use anyhow::{Result, ensure};
use vmnat_tests::lab::{Lab, SERVER_ECHO, client, snapshot::Snapshot, vmnat::Hook};

/// Without `--hook`: tcx from Linux 6.6 on, clsact before, and guests are online by it.
#[test]
fn the_kernel_chooses_the_hook() -> Result<()> {
    let mut lab = Lab::new()?;
    lab.vmnat_ok(&["up", "--bridge", "virbr0", "--uplink", "enp3s0"])?;
    attached_by(&lab, Hook::of_the_kernel())?;
    client::converse(lab.guest(1)?, SERVER_ECHO)?;
    lab.assert_invariants()
}

/// `--hook tcx`, and the same word in a file: 1. a kernel that has it serves by it; 2. one that lacks it refuses with the reason
///    and the remedy, and the host stays as it was; 3. the remedy helps.
#[test]
fn tcx_is_there_or_refused_with_the_remedy() -> Result<()> {
    let mut lab = Lab::new()?;
    if Hook::of_the_kernel() == Hook::Tcx {
        lab.up(Hook::Tcx)?;
        attached_by(&lab, Hook::Tcx)?;
        client::converse(lab.guest(1)?, SERVER_ECHO)?;
        return lab.assert_invariants();
    }
    let before = Snapshot::take(&lab.host)?;
    let up = ["up", "--bridge", "virbr0", "--uplink", "enp3s0"];
    let by_tcx = [&up[..], &["--hook", "tcx"]].concat();
    says_the_remedy(&lab, &by_tcx)?;
    fs::write("/run/tcx.toml", "hook = \"tcx\"\nuplink = [\"enp3s0\"]\n[bridge.virbr0]\n")?;
    says_the_remedy(&lab, &["apply", "--file", "/run/tcx.toml"])?;
    Snapshot::take(&lab.host)?.assert_same_as(&before)?;
    lab.vmnat_ok(&up)?;
    attached_by(&lab, Hook::Clsact)?;
    client::converse(lab.guest(1)?, SERVER_ECHO)?;
    lab.assert_invariants()
}

fn attached_by(lab: &Lab, hook: Hook) -> Result<()> {
    let status = lab.vmnat_ok(&["status"])?;
    let mut lines = status.lines();
    ensure!(lines.any(|line| line.starts_with("attached by") && line.ends_with(hook.name())), "{status}");
    Ok(())
}

fn says_the_remedy(lab: &Lab, command: &[&str]) -> Result<()> {
    lab.refused_with(6, command)?;
    let why = lab.vmnat_refused(command)?;
    ensure!(why.contains("no tcx") && why.contains("Linux 6.6") && why.contains("clsact"), "{why}");
    Ok(())
}
