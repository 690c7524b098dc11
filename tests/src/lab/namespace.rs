//! A network namespace without a name: it ends with its last holder, so a killed test leaves none behind.

use std::{
    fs,
    io::{Read, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    panic,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{
        Arc,
        mpsc::{Receiver, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns, unshare};

use super::patience::patiently;
use crate::hosts::machine::Inside;

/// The environment variable that marks each process a lab starts with the process id of its test.
pub const MARK: &str = "VMNAT_LAB";

const COMMAND_PATIENCE: Duration = Duration::from_secs(90);
const PIPE_PATIENCE: Duration = Duration::from_secs(5);

/// A network namespace, and where a machine of its own lives in it, that machine: its commands then run in there.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: Arc<str>,
    descriptor: Arc<OwnedFd>,
    inside: Option<Arc<Inside>>,
}

impl Namespace {
    /// Makes a namespace with its loopback up and without IPv6, whose chatter would only blur counters.
    ///
    /// # Errors
    ///
    /// When the process may not make one: it needs root.
    pub fn new(name: &str) -> Result<Self> {
        let open = || -> Result<OwnedFd> {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace (root is needed)")?;
            fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").ok();
            fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").ok();
            Ok(fs::File::open("/proc/thread-self/ns/net")?.into())
        };
        let descriptor =
            thread::scope(|scope| scope.spawn(open).join()).map_err(|_| anyhow::anyhow!("thread"))??;
        Ok(Self { name: name.into(), descriptor: Arc::new(descriptor), inside: None })
    }

    /// The same network, with all commands run by the machine that lives in it.
    #[must_use]
    pub(crate) fn with_machine(&self, inside: Arc<Inside>) -> Self {
        Self { inside: Some(inside), ..self.clone() }
    }

    /// The same network, with commands of this machine's own: what a machine in it does not have.
    #[must_use]
    pub fn outside(&self) -> Self {
        Self { inside: None, ..self.clone() }
    }

    /// True when commands run in a machine that lives in the namespace.
    #[must_use]
    pub fn is_machine(&self) -> bool {
        self.inside.is_some()
    }

    /// Where this process finds a file of the machine that commands run in.
    #[must_use]
    pub fn file(&self, path: &str) -> PathBuf {
        self.inside.as_ref().map_or_else(|| PathBuf::from(path), |inside| inside.file(path))
    }

    /// What the lab calls it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path by which other processes find it.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.descriptor.as_raw_fd())
    }

    /// Runs `work` on a thread of its own inside the namespace. Sockets that it returns stay inside.
    ///
    /// # Panics
    ///
    /// When `work` does, or the namespace may not be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let entered = setns(self.descriptor.as_fd(), CloneFlags::CLONE_NEWNET);
                assert!(entered.is_ok(), "cannot enter namespace {}: {entered:?}", self.name);
                work()
            });
            inside.join().unwrap_or_else(|reason| panic::resume_unwind(reason))
        })
    }

    /// Runs `work` inside the namespace in the background.
    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let inside = self.clone();
        thread::spawn(move || inside.run_here(work))
    }

    fn run_here<T>(&self, work: impl FnOnce() -> T) -> T {
        let entered = setns(self.descriptor.as_fd(), CloneFlags::CLONE_NEWNET);
        assert!(entered.is_ok(), "cannot enter namespace {}: {entered:?}", self.name);
        work()
    }

    /// Runs a command to its end and returns what it printed.
    ///
    /// # Errors
    ///
    /// When it cannot be started or fails; the message holds what it wrote to standard error.
    pub fn exec(&self, command: &[&str]) -> Result<String> {
        self.exec_with(command, "")
    }

    /// Like [`Namespace::exec`], with `input` on standard input.
    ///
    /// # Errors
    ///
    /// As [`Namespace::exec`].
    pub fn exec_with(&self, command: &[&str], input: &str) -> Result<String> {
        let finished = self.output(command, input)?;
        let printed = String::from_utf8_lossy(&finished.stdout).into_owned();
        ensure!(
            finished.status.success(),
            "in {}: `{}` failed: {}{}",
            self.name,
            command.join(" "),
            String::from_utf8_lossy(&finished.stderr).trim(),
            if printed.is_empty() { String::new() } else { format!("\n{printed}") },
        );
        Ok(printed)
    }

    /// Runs a command to its end, however it ends.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn output(&self, command: &[&str], input: impl AsRef<[u8]>) -> Result<Output> {
        let mut child = self.spawn_command(command, Stdio::piped(), Stdio::piped(), Stdio::piped())?;
        if let Some(mut pipe) = child.stdin.take() {
            pipe.write_all(input.as_ref()).ok();
        }
        let (stdout, stderr) = (read_aside(child.stdout.take()), read_aside(child.stderr.take()));
        let line = command.join(" ");
        let Some(status) = wait_bounded(&mut child)? else {
            child.kill().ok();
            child.wait().ok();
            bail!("`{line}` did not end within {:?}", patiently(COMMAND_PATIENCE));
        };
        let heir = || format!("`{line}` has ended, but something it started holds its output open");
        let stdout = stdout.recv_timeout(patiently(PIPE_PATIENCE)).with_context(heir)?;
        let stderr = stderr.recv_timeout(patiently(PIPE_PATIENCE)).with_context(heir)?;
        Ok(Output { status, stdout, stderr })
    }

    /// Starts a command in the background; it is killed when the returned value goes.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start(&self, command: &[&str]) -> Result<Process> {
        let child = self.spawn_command(command, Stdio::null(), Stdio::piped(), Stdio::piped())?;
        Ok(Process { child: Some(child), line: command.join(" ") })
    }

    /// Like [`Namespace::start`], with all that it prints going to a file, for what prints much and long.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start_logged(&self, command: &[&str], log: fs::File) -> Result<Process> {
        let child = self.spawn_command(command, Stdio::null(), log.try_clone()?.into(), log.into())?;
        Ok(Process { child: Some(child), line: command.join(" ") })
    }

    fn spawn_command(&self, command: &[&str], input: Stdio, output: Stdio, error: Stdio) -> Result<Child> {
        let Some((program, arguments)) = command.split_first() else { bail!("an empty command") };
        let mut builder = Command::new(program);
        builder.args(arguments).stdin(input).stdout(output).stderr(error);
        let inside = self.inside.clone();
        if let Some(inside) = &inside {
            inside.prepare(&mut builder);
        }
        builder.env(MARK, std::process::id().to_string());
        // A child is born in the namespaces of the thread that forks it.
        let spawn = move || {
            if let Some(inside) = &inside {
                inside.enter()?;
            }
            builder.spawn()
        };
        self.run(spawn).with_context(|| format!("cannot start `{program}`: is it installed?"))
    }

    /// Reads a sysctl, named with slashes below `/proc/sys`.
    ///
    /// # Errors
    ///
    /// When there is none of that name.
    pub fn sysctl(&self, name: &str) -> Result<String> {
        let value = self.run(|| fs::read_to_string(format!("/proc/sys/{name}")));
        Ok(value.with_context(|| format!("sysctl {name} in {}", self.name))?.trim().to_owned())
    }

    /// Writes a sysctl, named with slashes below `/proc/sys`.
    ///
    /// # Errors
    ///
    /// When there is none of that name, or it refuses the value.
    pub fn set_sysctl(&self, name: &str, value: &str) -> Result<()> {
        self.run(|| fs::write(format!("/proc/sys/{name}"), value))
            .with_context(|| format!("sysctl {name}={value} in {}", self.name))
    }

    /// Runs `ip` over a batch of its commands, one a line.
    ///
    /// # Errors
    ///
    /// When one of them fails.
    pub fn ip(&self, batch: &str) -> Result<()> {
        self.exec_with(&["ip", "-batch", "-"], batch).with_context(|| format!("batch:\n{batch}")).map(drop)
    }

    /// Loads an nftables ruleset.
    ///
    /// # Errors
    ///
    /// When nft refuses it.
    pub fn nft(&self, ruleset: &str) -> Result<()> {
        self.exec_with(&["nft", "-f", "-"], ruleset).with_context(|| format!("ruleset:\n{ruleset}")).map(drop)
    }

    /// The index of an interface.
    ///
    /// # Errors
    ///
    /// When there is none of that name.
    pub fn interface(&self, name: &str) -> Result<u32> {
        self.run(|| nix::net::if_::if_nametoindex(name)).with_context(|| format!("{name} in {}", self.name))
    }
}

fn read_aside(pipe: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            pipe.read_to_end(&mut bytes).ok();
        }
        sender.send(bytes).ok();
    });
    receiver
}

fn wait_bounded(child: &mut Child) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + patiently(COMMAND_PATIENCE);
    let mut pause = Duration::from_micros(500);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() > deadline {
            return Ok(None);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// A process in the background that ends with this value.
#[derive(Debug)]
pub struct Process {
    child: Option<Child>,
    line: String,
}

impl Process {
    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// True while it runs.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Waits for it to end by itself and returns what it printed.
    ///
    /// # Errors
    ///
    /// When it fails; the message holds what it printed.
    pub fn finish(mut self) -> Result<String> {
        let Some(child) = self.child.take() else { bail!("`{}` has ended before", self.line) };
        let finished = child.wait_with_output()?;
        let printed = String::from_utf8_lossy(&finished.stdout).into_owned();
        let error = String::from_utf8_lossy(&finished.stderr).into_owned();
        ensure!(finished.status.success(), "`{}` failed: {error}{printed}", self.line);
        Ok(printed)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            child.kill().ok();
            child.wait().ok();
        }
    }
}
