//! The machines themselves: what they leave behind, and with which C library they run.

use std::{panic, sync::Mutex, thread};

use anyhow::{Context, Result, ensure};
use vmnat_tests::hosts::{
    Tree,
    software::{by_hand, dnsmasq, docker, firewalld, libvirt},
    stage::{Network, Stage},
};

mod short {
    #[test]
    fn a_machine_leaves_nothing_behind_after_a_panic() -> anyhow::Result<()> {
        super::a_machine_leaves_nothing_behind_after_a_panic()
    }
}

mod full {
    #[test]
    fn a_tree_runs_with_a_newer_c_library() -> anyhow::Result<()> {
        super::a_tree_runs_with_a_newer_c_library()
    }
}

/// A machine with Docker, a container and vmnat's agent ends in a panic.
fn a_machine_leaves_nothing_behind_after_a_panic() -> Result<()> {
    let trace = Mutex::new(None);
    let ended = thread::scope(|scope| {
        let work = || -> Result<()> {
            let mut stage = Stage::new(Tree::Bookworm, &[Network::DEFAULT])?;
            stage.keep_quiet();
            by_hand::bridges(&stage)?;
            dnsmasq::start(&mut stage)?;
            docker::start(&mut stage)?;
            docker::publish(&mut stage)?;
            stage.bring_up()?;
            if let Ok(mut trace) = trace.lock() {
                *trace = Some(stage.trace());
            }
            // Without the hook's words: this one is meant.
            panic::resume_unwind(Box::new("meant"))
        };
        scope.spawn(work).join()
    });
    let reason = ended.err().context("the machine did not get as far as the panic")?;
    ensure!(reason.downcast_ref() == Some(&"meant"), "another panic than the one that was meant");
    let trace = trace.into_inner().ok().flatten().context("no trace was taken")?;
    ensure!(trace.processes.len() > 5, "dockerd and the others are not among {:?}", trace.processes);
    let left = trace.left()?;
    ensure!(left.is_empty(), "a machine has left behind: {}", left.join(", "));
    Ok(())
}

/// What happens where this machine is newer than the tree: the daemons of Debian 12 with the C library of Debian 13.
fn a_tree_runs_with_a_newer_c_library() -> Result<()> {
    let mut stage = Stage::with_library(Tree::Bookworm, Some(Tree::Trixie), &[Network::DEFAULT])?;
    // The script is the tree's own, the library says its version when it is run.
    let script = stage.run(&["ldd", "--version"])?;
    let own =
        script.lines().next().and_then(|line| line.rsplit(' ').next()).context("ldd without a version")?;
    let library = stage.run(&["/usr/lib/x86_64-linux-gnu/libc.so.6"])?;
    let first = library.lines().next().unwrap_or_default();
    ensure!(!first.contains(&format!(" {own}.")), "the tree of {own} still has its own: {first}");
    firewalld::start(&mut stage)?;
    docker::start(&mut stage)?;
    libvirt::start(&mut stage, libvirt::Backend::Default)?;
    stage.bring_up()?;
    stage.keep_quiet();
    Ok(())
}
