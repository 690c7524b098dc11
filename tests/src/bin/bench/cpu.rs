//! The processor that a run has to itself.

use anyhow::{Context as _, Result, ensure};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::{Pid, SysconfVar, sysconf},
};

/// Keeps this thread on the last CPU and every ordinary process from interrupting it.
pub fn hold() -> Result<()> {
    let cpus = sysconf(SysconfVar::_NPROCESSORS_ONLN)?.unwrap_or(1);
    let mut only = CpuSet::new();
    only.set(usize::try_from(cpus)?.saturating_sub(1))?;
    sched_setaffinity(Pid::from_raw(0), &only).context("keeping to one CPU")?;
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: the pointer is to a live structure, and 0 is the calling thread.
    let refused = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) } != 0;
    ensure!(!refused, "SCHED_FIFO: {}", std::io::Error::last_os_error());
    Ok(())
}
