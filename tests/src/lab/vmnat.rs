//! `vmnat` as an operator drives it: by its command line.

use std::{
    env, fs,
    path::PathBuf,
    process::Output,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{Lab, patience::patiently};

/// How vmnat attaches its programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Links, from Linux 6.6 on.
    Tcx,
    /// Filters of a clsact qdisc.
    Clsact,
}

impl Hook {
    /// The one that the kernel has and vmnat takes by itself, for tests that the hook does not concern.
    #[must_use]
    pub fn of_the_kernel() -> Self {
        if kernel_is_from(6, 6) { Self::Tcx } else { Self::Clsact }
    }

    /// The word for `--hook`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// Whether the running kernel is of a version or later.
fn kernel_is_from(major: u32, minor: u32) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|byte: char| !byte.is_ascii_digit()).map(str::parse);
    matches!((numbers.next(), numbers.next()), (Some(Ok(is)), Some(Ok(also))) if (is, also) >= (major, minor))
}

/// The rows of a listing.
#[derive(Debug)]
pub struct Listing(Vec<Value>);

impl Listing {
    /// The row of that number, counted from 0; null where there is none.
    #[must_use]
    pub fn at(&self, number: usize) -> &Value {
        self.0.get(number).unwrap_or(&Value::Null)
    }
}

/// Every lab uses the instance that vmnat takes when none is named; labs do not see each other's.
pub const INSTANCE: &str = "default";

/// Finds the program that was built beside the running one.
///
/// # Errors
///
/// When it was not built.
pub fn program() -> Result<PathBuf> {
    if let Some(path) = env::var_os("VMNAT_BIN") {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "VMNAT_BIN names {}, which is no file", path.display());
        return Ok(path);
    }
    let own = env::current_exe()?;
    let beside = own.ancestors().skip(1).take(2).map(|folder| folder.join("vmnat"));
    let Some(found) = beside.into_iter().find(|path| path.is_file()) else {
        bail!(
            "the program `vmnat` is not built: run `cargo build --package vmnat-user`, or name it in VMNAT_BIN"
        );
    };
    Ok(found)
}

impl Lab {
    /// Runs `vmnat` on the host, however it ends.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn vmnat(&self, arguments: &[&str]) -> Result<Output> {
        // A machine of its own has it where its operator has put it.
        let program = if self.host.is_machine() { "vmnat".into() } else { program()? };
        let program = program.to_str().context("a path that is no text")?;
        let command = [&[program], arguments].concat();
        self.host.output(&command, "")
    }

    /// Runs `vmnat` on the host and returns what it printed.
    ///
    /// # Errors
    ///
    /// When it fails.
    pub fn vmnat_ok(&self, arguments: &[&str]) -> Result<String> {
        let output = self.vmnat(arguments)?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        let line = arguments.join(" ");
        ensure!(output.status.success(), "`vmnat {line}` failed ({}): {error}{printed}", output.status);
        Ok(printed)
    }

    /// Asserts that `vmnat` refuses, and returns its error message.
    ///
    /// # Errors
    ///
    /// When it does not refuse, or says nothing.
    pub fn vmnat_refused(&self, arguments: &[&str]) -> Result<String> {
        let output = self.vmnat(arguments)?;
        let line = arguments.join(" ");
        ensure!(!output.status.success(), "`vmnat {line}` went through although it must be refused");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!error.trim().is_empty(), "`vmnat {line}` failed without a word");
        ensure!(!error.contains("panicked"), "`vmnat {line}` panicked: {error}");
        Ok(error)
    }

    /// Asserts that `vmnat` refuses with an exit code of its own.
    ///
    /// # Errors
    ///
    /// When it does not refuse, or with another code.
    pub fn refused_with(&self, code: i32, arguments: &[&str]) -> Result<()> {
        let output = self.vmnat(arguments)?;
        let error = String::from_utf8_lossy(&output.stderr);
        let line = arguments.join(" ");
        ensure!(
            output.status.code() == Some(code),
            "`vmnat {line}` exits with {:?} instead of {code}: {error}",
            output.status.code()
        );
        ensure!(!error.trim().is_empty(), "`vmnat {line}` failed without a word");
        Ok(())
    }

    /// `vmnat up` with the lab's bridge and uplink.
    ///
    /// # Errors
    ///
    /// When it fails.
    pub fn up(&self, hook: Hook) -> Result<String> {
        self.up_with(hook, &[])
    }

    /// `vmnat up` with the lab's bridge and uplink, and further arguments.
    ///
    /// # Errors
    ///
    /// When it fails.
    pub fn up_with(&self, hook: Hook, further: &[&str]) -> Result<String> {
        let usual = ["up", "--bridge", "virbr0", "--uplink", "enp3s0", "--hook", hook.name()];
        self.vmnat_ok(&[&usual, further].concat())
    }

    /// The rows of a listing.
    ///
    /// # Errors
    ///
    /// When it fails, or is not the versioned JSON that it should be.
    pub fn rows(&self, listing: &[&str]) -> Result<Vec<Value>> {
        let printed = self.vmnat_ok(&[listing, &["--json"]].concat())?;
        let document: Value = serde_json::from_str(&printed)
            .with_context(|| format!("`vmnat {} --json` printed {printed:?}", listing.join(" ")))?;
        ensure!(document["schema"] == 1, "no schema 1 in {document}");
        document["rows"].as_array().cloned().with_context(|| format!("no rows in {document}"))
    }

    /// The rows of a listing, to be asked for by number.
    ///
    /// # Errors
    ///
    /// As [`Lab::rows`].
    pub fn listing(&self, listing: &[&str]) -> Result<Listing> {
        self.rows(listing).map(Listing)
    }

    /// The value of a counter.
    ///
    /// # Errors
    ///
    /// When there is none of that name.
    pub fn counter(&self, name: &str) -> Result<u64> {
        let rows = self.rows(&["counters"])?;
        let row = rows.iter().find(|row| row["name"] == name);
        let row = row.with_context(|| format!("no counter {name}"))?;
        row["packets"].as_u64().with_context(|| format!("no packets in {row}"))
    }

    /// The number of flows.
    ///
    /// # Errors
    ///
    /// When the listing fails.
    pub fn flow_count(&self) -> Result<usize> {
        Ok(self.rows(&["flows"])?.len())
    }

    /// The agent's process id.
    ///
    /// # Errors
    ///
    /// When no agent has written one.
    pub fn agent(&self) -> Result<Pid> {
        // Its number there is another process's here.
        ensure!(!self.host.is_machine(), "the agent of a machine of its own is known to that machine alone");
        let path = format!("/run/vmnat/{INSTANCE}/agent.pid");
        let written = fs::read_to_string(&path).context(path)?;
        Ok(Pid::from_raw(written.trim().parse()?))
    }

    /// Kills the agent without warning and waits until it is gone.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn kill_agent(&self) -> Result<()> {
        let agent = self.agent()?;
        kill(agent, Signal::SIGKILL).with_context(|| format!("killing the agent, process {agent}"))?;
        self.wait_for_the_end_of(agent)
    }

    /// Waits until a process has ended.
    ///
    /// # Errors
    ///
    /// When it still runs after five seconds.
    pub fn wait_for_the_end_of(&self, process: Pid) -> Result<()> {
        let deadline = Instant::now() + patiently(Duration::from_secs(5));
        let state = || {
            let status = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
            status.rsplit(')').next().and_then(|rest| rest.trim().chars().next())
        };
        // A zombie has ended, whoever has yet to collect it.
        while !matches!(state(), None | Some('Z' | 'X')) {
            ensure!(Instant::now() < deadline, "process {process} still runs");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}
