//! The processor that a run has to itself.

use anyhow::{Context as _, Result, ensure};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::{Pid, SysconfVar, sysconf},
};

/// How much children are preferred to other work of the machine.
const NICENESS: i32 = -19;

/// Processors of the machine.
pub fn count() -> Result<usize> {
    let cpus = sysconf(SysconfVar::_NPROCESSORS_ONLN)?.unwrap_or(1);
    Ok(usize::try_from(cpus)?.max(1))
}

/// Keeps this thread on the last CPU and every ordinary process from interrupting it.
pub fn hold() -> Result<()> {
    hold_one(count()?.saturating_sub(1))
}

/// The same on a CPU of one's choice.
pub fn hold_one(cpu: usize) -> Result<()> {
    keep_to(cpu)?;
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: the pointer is to a live structure, and 0 is the calling thread.
    let refused = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) } != 0;
    ensure!(!refused, "SCHED_FIFO: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Keeps this thread on a CPU.
pub fn keep_to(cpu: usize) -> Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &only).context("keeping to one CPU")
}

/// What this thread starts from here on runs before ordinary processes.
pub fn prefer_children() -> Result<()> {
    // SAFETY: the call takes numbers only; 0 is the calling thread, whose children inherit its niceness.
    let refused = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) } != 0;
    ensure!(!refused, "setpriority: {}", std::io::Error::last_os_error());
    Ok(())
}
