//! Lets calls of bpf(2) fail, seen from outside by ptrace(2): at the entry of a call its number becomes one that does nothing, at
//! its exit the answer becomes the error.

use std::{
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::{
        ptrace::{self, Options},
        signal::Signal,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use vmnat_tests::lab::{Lab, vmnat};

/// Commands of bpf(2) (`enum bpf_cmd`) that store in maps: `BPF_MAP_UPDATE_ELEM`, `BPF_MAP_UPDATE_BATCH`.
pub(super) const UPDATES: &[u64] = &[2, 26];

/// Those that make objects: `BPF_MAP_CREATE`, `BPF_PROG_LOAD`, `BPF_LINK_CREATE`.
pub(super) const CREATIONS: &[u64] = &[0, 5, 28];

/// Which calls fail, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refusal {
    /// The commands that count.
    pub commands: &'static [u64],
    /// The first that fails, counted from 1.
    pub from: usize,
    /// All after it fail, too.
    pub lasts: bool,
    /// The error.
    pub errno: i32,
}

/// How a command ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// Its exit code.
    pub code: i32,
    /// What it wrote to standard error.
    pub error: String,
    /// Calls that counted.
    pub calls: usize,
}

impl Ended {
    /// True where some call was refused.
    pub(super) const fn was_met(&self, refusal: Refusal) -> bool {
        self.calls >= refusal.from
    }
}

/// Runs `vmnat` on the host with such calls failing.
pub(super) fn run(lab: &Lab, arguments: &[&str], refusal: Refusal) -> Result<Ended> {
    let mut command = Command::new(vmnat::program()?);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
    // A file, which the agent that it may start does not keep waiting for.
    let told = "/run/refused-call.txt";
    command.stderr(std::fs::File::create(told)?);
    // SAFETY: the closure makes one system call, and allocates nothing.
    unsafe { command.pre_exec(|| ptrace::traceme().map_err(Into::into)) };
    // Only the thread that has started it may trace it.
    let (code, calls) = lab.host.run(move || trace(command, refusal))?;
    Ok(Ended { code, calls, error: std::fs::read_to_string(told)? })
}

fn trace(mut command: Command, refusal: Refusal) -> Result<(i32, usize)> {
    let mut child = command.spawn().context("start vmnat")?;
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    let result = follow(pid, refusal);
    // Gone already, or not to go on.
    child.kill().ok();
    child.wait().ok();
    result
}

fn follow(pid: Pid, refusal: Refusal) -> Result<(i32, usize)> {
    waitpid(pid, None).context("wait for its first stop")?;
    ptrace::setoptions(pid, Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL)?;
    let mut meddler = Meddler { pid, refusal, seen: 0, is_refused: false };
    let mut signal = None;
    loop {
        ptrace::syscall(pid, signal.take())?;
        match waitpid(pid, None)? {
            WaitStatus::Exited(_, code) => return Ok((code, meddler.seen)),
            WaitStatus::Signaled(_, signal, _) => bail!("it was ended by {signal}"),
            WaitStatus::PtraceSyscall(_) => meddler.meddle()?,
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
            WaitStatus::Stopped(_, other) => signal = Some(other),
            _ => {}
        }
    }
}

/// A process that runs already, some of whose calls fail until this is let go.
pub(super) struct Seized {
    done: Arc<AtomicBool>,
    refused: Arc<AtomicUsize>,
    tracer: Option<JoinHandle<Result<()>>>,
}

impl Seized {
    pub(super) fn take(pid: Pid, refusal: Refusal) -> Self {
        let (done, refused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (until, count) = (Arc::clone(&done), Arc::clone(&refused));
        let tracer = Some(thread::spawn(move || seize(pid, refusal, &until, &count)));
        Self { done, refused, tracer }
    }

    /// How many calls have failed.
    pub(super) fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }

    pub(super) fn let_go(mut self) -> Result<()> {
        self.done.store(true, Ordering::Relaxed);
        let Some(tracer) = self.tracer.take() else { return Ok(()) };
        tracer.join().map_err(|_| anyhow::anyhow!("the tracer panicked"))?
    }
}

impl Drop for Seized {
    fn drop(&mut self) {
        // A thread that ends lets go of what it traces.
        self.done.store(true, Ordering::Relaxed);
    }
}

fn seize(pid: Pid, refusal: Refusal, done: &AtomicBool, refused: &AtomicUsize) -> Result<()> {
    ptrace::seize(pid, Options::PTRACE_O_TRACESYSGOOD)?;
    ptrace::interrupt(pid)?;
    let mut meddler = Meddler { pid, refusal, seen: 0, is_refused: false };
    loop {
        let status = waitpid(pid, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL))?;
        let signal = match status {
            WaitStatus::StillAlive => {
                thread::sleep(Duration::from_millis(1));
                if done.load(Ordering::Relaxed) {
                    // It may wait for something for long.
                    ptrace::interrupt(pid)?;
                }
                continue;
            }
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => bail!("it has ended: {status:?}"),
            WaitStatus::PtraceSyscall(_) => {
                meddler.meddle()?;
                None
            }
            WaitStatus::Stopped(_, Signal::SIGTRAP | Signal::SIGSTOP) => None,
            WaitStatus::Stopped(_, other) => Some(other),
            _ => None,
        };
        refused.store(meddler.seen, Ordering::Relaxed);
        if done.load(Ordering::Relaxed) && !meddler.is_refused {
            return Ok(ptrace::detach(pid, signal)?);
        }
        ptrace::syscall(pid, signal)?;
    }
}

/// Looks at each stop, and meddles with those that count.
struct Meddler {
    pid: Pid,
    refusal: Refusal,
    /// Calls that counted.
    seen: usize,
    /// The call that is under way fails.
    is_refused: bool,
}

impl Meddler {
    fn meddle(&mut self) -> Result<()> {
        let info = ptrace::syscall_info(self.pid)?;
        if info.op == libc::PTRACE_SYSCALL_INFO_EXIT {
            if std::mem::take(&mut self.is_refused) {
                answer(self.pid, self.refusal.errno)?;
            }
            return Ok(());
        }
        if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
            return Ok(());
        }
        // SAFETY: the kernel has filled this member, as `op` says.
        let (call, first) = unsafe { (info.u.entry.nr, info.u.entry.args[0]) };
        if libc::c_long::try_from(call)? != libc::SYS_bpf || !self.refusal.commands.contains(&first) {
            return Ok(());
        }
        self.seen = self.seen.saturating_add(1);
        let Refusal { from, lasts, .. } = self.refusal;
        self.is_refused = self.seen == from || (lasts && self.seen > from);
        if self.is_refused { skip(self.pid) } else { Ok(()) }
    }
}

/// Makes the call that is being entered one that does nothing.
#[cfg(target_arch = "x86_64")]
fn skip(pid: Pid) -> Result<()> {
    let mut registers = ptrace::getregs(pid)?;
    registers.orig_rax = u64::MAX;
    Ok(ptrace::setregs(pid, registers)?)
}

/// Makes the answer of the call that is being left an error.
#[cfg(target_arch = "x86_64")]
fn answer(pid: Pid, errno: i32) -> Result<()> {
    let mut registers = ptrace::getregs(pid)?;
    registers.rax = i64::from(errno).wrapping_neg().cast_unsigned();
    Ok(ptrace::setregs(pid, registers)?)
}

#[cfg(not(target_arch = "x86_64"))]
fn skip(_: Pid) -> Result<()> {
    bail!("how to skip a system call is known for x86_64 alone")
}

#[cfg(not(target_arch = "x86_64"))]
fn answer(_: Pid, _: i32) -> Result<()> {
    bail!("how to change a system call's answer is known for x86_64 alone")
}
