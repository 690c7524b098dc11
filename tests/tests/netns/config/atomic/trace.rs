//! Ends a program as it enters a step of writing files, seen from outside by ptrace(2): what it has done until then is
//! what a power cut or a `kill -9` would leave.

use std::{
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::{
        ptrace::{self, Options},
        signal::Signal,
        wait::{WaitStatus, waitpid},
    },
    unistd::Pid,
};
use vmnat_tests::lab::{Lab, vmnat};

/// System calls that write a file, make it durable, or give or take its name.
const STEPS: [libc::c_long; 5] =
    [libc::SYS_write, libc::SYS_fsync, libc::SYS_renameat2, libc::SYS_renameat, libc::SYS_unlinkat];

/// The same where the kernel still has those calls.
#[cfg(target_arch = "x86_64")]
const OLD_STEPS: [libc::c_long; 2] = [libc::SYS_rename, libc::SYS_unlink];
#[cfg(not(target_arch = "x86_64"))]
const OLD_STEPS: [libc::c_long; 0] = [];

/// Runs `vmnat` on the host and kills it as it enters its step of that number, counted from 1; false when it has ended
/// well before.
pub(super) fn killed_at(lab: &Lab, arguments: &[&str], number: usize) -> Result<bool> {
    let mut command = Command::new(vmnat::program()?);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: the closure makes one system call, and allocates nothing.
    unsafe { command.pre_exec(|| ptrace::traceme().map_err(Into::into)) };
    // Only the thread that has started it may trace it.
    lab.host.run(move || trace(command, number))
}

fn trace(mut command: Command, number: usize) -> Result<bool> {
    let mut child = command.spawn().context("start vmnat")?;
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    let result = follow(pid, number);
    // Gone already, or not to go on.
    child.kill().ok();
    child.wait().ok();
    result
}

fn follow(pid: Pid, number: usize) -> Result<bool> {
    waitpid(pid, None).context("wait for its first stop")?;
    ptrace::setoptions(pid, Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL)?;
    let (mut seen, mut signal) = (0_usize, None);
    loop {
        ptrace::syscall(pid, signal.take())?;
        match waitpid(pid, None)? {
            WaitStatus::Exited(_, 0) => return Ok(false),
            WaitStatus::Exited(_, code) => bail!("it ended with {code} before step {number}"),
            WaitStatus::Signaled(_, signal, _) => bail!("it was ended by {signal}"),
            WaitStatus::PtraceSyscall(_) if is_step(pid)? => {
                seen = seen.saturating_add(1);
                if seen == number {
                    nix::sys::signal::kill(pid, Signal::SIGKILL)?;
                    waitpid(pid, None)?;
                    return Ok(true);
                }
            }
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
            WaitStatus::Stopped(_, other) => signal = Some(other),
            _ => {}
        }
    }
}

/// True when it is about to enter a step.
fn is_step(pid: Pid) -> Result<bool> {
    let info = ptrace::syscall_info(pid)?;
    if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return Ok(false);
    }
    // SAFETY: the kernel has filled this member, as `op` says.
    let call = libc::c_long::try_from(unsafe { info.u.entry.nr })?;
    Ok(STEPS.contains(&call) || OLD_STEPS.contains(&call))
}
