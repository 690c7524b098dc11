//! `vmnat agent`, hidden: what `up` starts in the background.

use std::io::{self, Write as _};

use anyhow::{Context as _, Result};

use crate::{
    agent::{self, Herald},
    launch,
    paths::Instance,
};

/// Keep maps and hooks true (started by `up`)
#[derive(Clone, Debug, clap::Args)]
pub struct Args {}

/// Runs the agent in a session of its own; standard output is `up`'s, until it is ready.
///
/// # Errors
/// As [`agent::run`].
pub async fn run(instance: &Instance, args: &Args) -> Result<()> {
    let Args {} = args;
    // Fails for the leader of a process group, which is in a session of its own then.
    let _ = nix::unistd::setsid();
    // Who started `up` may have blocked signals, and a process inherits that: `down` could end the agent by force alone.
    let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
    std::env::set_current_dir("/").context("leave the directory")?;
    agent::run(instance, Herald::Command(say_ready)).await
}

/// Tells `up`, and lets go of it.
fn say_ready() {
    let _ = writeln!(io::stdout(), "{}", launch::READY);
    let _ = io::stdout().flush();
    if let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdout(null);
    }
}
