//! `vmnat logs`: what the agent has to say.

use std::{
    fs::File,
    io::{self, Read as _},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::print;
use crate::{journal, paths::Instance, state};

/// Show the agent's log
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Go on as the log grows, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
}

/// Runs the command.
///
/// # Errors
/// When there is no log.
pub fn run(instance: &Instance, args: &Args) -> Result<()> {
    let Args { follow } = *args;
    let state = state::load(instance)?;
    match state.log.strip_prefix(journal::PREFIX) {
        Some(identifier) => show_journal(identifier, follow),
        None => show_file(&state.log, follow),
    }
}

fn show_journal(identifier: &str, follow: bool) -> Result<()> {
    let mut command = Command::new("journalctl");
    command.args(["--no-pager", "--identifier", identifier]);
    if follow {
        command.arg("--follow");
    }
    let status = command.status().context("run journalctl")?;
    if status.success() { Ok(()) } else { bail!("journalctl: {status}") }
}

fn show_file(path: &str, follow: bool) -> Result<()> {
    let mut file = File::open(path).with_context(|| format!("open the log {path}"))?;
    loop {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).with_context(|| format!("read the log {path}"))?;
        print::text(&String::from_utf8_lossy(&bytes))?;
        if !follow {
            return Ok(());
        }
        match std::fs::metadata(path) {
            // `vmnat down` removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            _ => thread::sleep(Duration::from_millis(250)),
        }
    }
}
