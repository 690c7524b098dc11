//! The agent's place: one agent an instance, known by its process number, whom commands may end or nudge.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Seek as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    unistd::Pid,
};

use crate::{error::Error, paths::Instance};

/// Who waits for the agent to be ready.
#[derive(Clone, Copy, Debug)]
pub enum Herald {
    /// The command that started it in the background: told once the first attempt is over, whatever came of it.
    Command(fn()),
    /// systemd, or a container's owner: told once everything is true.
    ServiceManager,
}

/// The command of an agent in the background, which a service may replace.
const BACKGROUND: &[u8] = b"agent";

/// Holds the agent's place: one agent an instance.
#[derive(Debug)]
pub struct Place {
    _file: Flock<File>,
}

impl Place {
    /// Takes it.
    ///
    /// # Errors
    /// [`Error::Taken`] when another agent has it.
    pub fn take(instance: &Instance) -> Result<Self> {
        let path = instance.agent_pid();
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = file.with_context(|| format!("open {}", path.display()))?;
        let mut file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| Error::Taken {
            what: format!("the agent's place ({})", path.display()),
            holder: "a running agent".into(),
            hint: String::new(),
        })?;
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Self { _file: file })
    }
}

/// The process number of the instance's agent, while it lives.
#[must_use]
pub fn running(instance: &Instance) -> Option<Pid> {
    let mut file = File::open(instance.agent_pid()).ok()?;
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Err((_, Errno::EWOULDBLOCK)) => text.trim().parse().ok().map(Pid::from_raw),
        Ok(_) | Err(_) => None,
    }
}

/// Ends the instance's agent, by force when it does not go by itself; false when none ran.
///
/// # Errors
/// When the signal cannot be sent.
pub fn end(instance: &Instance) -> Result<bool> {
    use nix::sys::signal::{Signal, kill};
    let Some(pid) = running(instance) else { return Ok(false) };
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        match kill(pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error).with_context(|| format!("end the agent (process {pid})")),
        }
        for _ in 0..100 {
            if running(instance).is_none() {
                return Ok(true);
            }
            std::thread::sleep(Duration::from_millis(30));
        }
    }
    anyhow::bail!("the agent (process {pid}) does not end")
}

/// Ends the instance's agent, unless it is this very process.
///
/// # Errors
/// As [`end`].
pub fn end_other(instance: &Instance) -> Result<()> {
    if running(instance).is_some_and(|pid| pid != nix::unistd::getpid()) {
        end(instance)?;
    }
    Ok(())
}

/// Ends the agent that a command started in the background, if one runs.
///
/// # Errors
/// As [`end`].
pub fn end_background(instance: &Instance) -> Result<()> {
    let Some(pid) = running(instance) else { return Ok(()) };
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    if words.split(|byte| *byte == 0).any(|word| word == BACKGROUND) {
        end(instance)?;
    }
    Ok(())
}

/// Tells the instance's agent, if one runs, that what it has to wait for has changed. SIGHUP is not for that: it reads the
/// operator's files again, which a command about something else must not do.
pub fn nudge(instance: &Instance) {
    if let Some(pid) = running(instance) {
        // One that has just ended needs no telling.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGUSR1);
    }
}
