//! Starts the agent in the background and waits until it is ready.

use std::{
    fs::OpenOptions,
    io::{BufRead as _, BufReader},
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt as _},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{journal, logging, paths::Instance};

/// The word that the agent says once everything is true.
pub const READY: &str = "ready";

/// Where the agent of an instance logs: the journal where there is one, else a file.
#[must_use]
pub fn log_place(instance: &Instance) -> String {
    match journal::open(instance) {
        Ok(_) => format!("{}{}", journal::PREFIX, journal::identifier(instance)),
        Err(_) => instance.agent_log().display().to_string(),
    }
}

/// Starts the agent, in the network namespace of the calling thread, and waits until it is ready.
///
/// # Errors
/// When it cannot be started, or ends before it is ready.
pub fn launch(instance: &Instance, log: &str) -> Result<u32> {
    let program = std::env::current_exe().context("find this very program")?;
    let mut command = Command::new(program);
    command.args(["--instance", instance.name(), "agent"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let log_file = open_log(instance, log)?;
    if log.starts_with(journal::PREFIX)
        && let Some(stream) = logging::stream_of(&log_file)
    {
        command.env(logging::STREAM, stream);
    }
    command.stderr(log_file);
    let mut agent = command.spawn().context("start the agent")?;
    wait(&mut agent, log)?;
    Ok(agent.id())
}

fn wait(agent: &mut Child, log: &str) -> Result<()> {
    let output = agent.stdout.take().context("the agent has no output")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line).context("wait for the agent")?;
    if line.trim() == READY {
        return Ok(());
    }
    let status = agent.wait().context("wait for the agent")?;
    bail!("the agent ended before it was ready ({status}); its log is {log}")
}

fn open_log(instance: &Instance, log: &str) -> Result<OwnedFd> {
    if log.starts_with(journal::PREFIX) {
        let stream = journal::open(instance).context("open the journal")?;
        return Ok(stream.into());
    }
    let mut options = OpenOptions::new();
    let file = options.create(true).append(true).mode(0o600).open(log);
    Ok(file.with_context(|| format!("open the log {log}"))?.into())
}
