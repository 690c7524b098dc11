//! Ends a program as it enters a step of writing files or of changing the kernel, seen from outside by ptrace(2): what it
//! has done until then is what a power cut or a `kill -9` would leave.

use std::{
    os::unix::process::CommandExt as _,
    path::Path,
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

/// Further ones that change what outlives the program: directories, mounts, and what is sent by netlink.
const KERNEL_STEPS: [libc::c_long; 6] = [
    libc::SYS_mkdirat,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_execve,
];

/// The same where the kernel still has those calls.
#[cfg(target_arch = "x86_64")]
const OLD_KERNEL_STEPS: [libc::c_long; 2] = [libc::SYS_mkdir, libc::SYS_rmdir];
#[cfg(not(target_arch = "x86_64"))]
const OLD_KERNEL_STEPS: [libc::c_long; 0] = [];

/// Commands of bpf(2) that do (`enum bpf_cmd`): `BPF_OBJ_PIN`, `BPF_PROG_ATTACH`, `BPF_LINK_CREATE`, `BPF_LINK_UPDATE`.
const BPF_STEPS: [u64; 4] = [6, 8, 28, 29];

/// What counts as a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Steps {
    /// What writes files.
    Files,
    /// That, and what changes the kernel: pins, links, directories, mounts, netlink.
    All,
}

/// Runs `vmnat` on the host and kills it as it enters its step of that number, counted from 1; false when it has ended
/// well before.
pub(super) fn killed_at(lab: &Lab, arguments: &[&str], number: usize) -> Result<bool> {
    let ended = run_until(lab, &vmnat::program()?, arguments, (Steps::Files, number))?;
    Ok(ended.is_none())
}

/// Runs a program on the host and kills it as it enters the step of that number; the number of its steps when it has ended well
/// before.
pub(crate) fn run_until(
    lab: &Lab,
    program: &Path,
    arguments: &[&str],
    until: (Steps, usize),
) -> Result<Option<usize>> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: the closure makes one system call, and allocates nothing.
    unsafe { command.pre_exec(|| ptrace::traceme().map_err(Into::into)) };
    // Only the thread that has started it may trace it.
    lab.host.run(move || trace(command, until))
}

fn trace(mut command: Command, until: (Steps, usize)) -> Result<Option<usize>> {
    let mut child = command.spawn().context("start vmnat")?;
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    let result = follow(pid, until);
    // Gone already, or not to go on.
    child.kill().ok();
    child.wait().ok();
    result
}

fn follow(pid: Pid, (steps, number): (Steps, usize)) -> Result<Option<usize>> {
    waitpid(pid, None).context("wait for its first stop")?;
    ptrace::setoptions(pid, Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL)?;
    let (mut seen, mut signal, mut restarts) = (0_usize, None, false);
    loop {
        ptrace::syscall(pid, signal.take())?;
        match waitpid(pid, None)? {
            WaitStatus::Exited(_, 0) => return Ok(Some(seen)),
            WaitStatus::Exited(_, code) => bail!("it ended with {code} before step {number}"),
            WaitStatus::Signaled(_, signal, _) => bail!("it was ended by {signal}"),
            WaitStatus::PtraceSyscall(_) => match stop(pid, steps)? {
                Stop::Step if !restarts => {
                    seen = seen.saturating_add(1);
                    if seen == number {
                        nix::sys::signal::kill(pid, Signal::SIGKILL)?;
                        waitpid(pid, None)?;
                        return Ok(None);
                    }
                }
                Stop::Step | Stop::Other => restarts = false,
                Stop::Restart => restarts = true,
            },
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
            WaitStatus::Stopped(_, other) => signal = Some(other),
            _ => {}
        }
    }
}

/// Where it stops.
enum Stop {
    /// It is about to enter a step.
    Step,
    /// The kernel begins the last call once more by itself, as where it waits for others that change interfaces.
    Restart,
    Other,
}

/// `ERESTARTSYS` to `ERESTART_RESTARTBLOCK` of `linux/errno.h`, which no program sees.
const RESTARTS: std::ops::RangeInclusive<i64> = -516..=-512;

fn stop(pid: Pid, steps: Steps) -> Result<Stop> {
    let info = ptrace::syscall_info(pid)?;
    if info.op == libc::PTRACE_SYSCALL_INFO_EXIT {
        // SAFETY: the kernel has filled this member, as `op` says.
        let answer = unsafe { info.u.exit.sval };
        return Ok(if RESTARTS.contains(&answer) { Stop::Restart } else { Stop::Other });
    }
    if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return Ok(Stop::Other);
    }
    // SAFETY: the kernel has filled this member, as `op` says.
    let (call, first) = unsafe { (info.u.entry.nr, info.u.entry.args[0]) };
    let call = libc::c_long::try_from(call)?;
    let is_file = STEPS.contains(&call) || OLD_STEPS.contains(&call);
    let is_kernel = KERNEL_STEPS.contains(&call)
        || OLD_KERNEL_STEPS.contains(&call)
        || (call == libc::SYS_bpf && BPF_STEPS.contains(&first));
    let is_step = is_file || (steps == Steps::All && is_kernel);
    Ok(if is_step { Stop::Step } else { Stop::Other })
}
