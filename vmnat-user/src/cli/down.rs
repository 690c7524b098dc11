//! `vmnat down`: leaves the host as it was found.

use anyhow::Result;

use super::print;
use crate::{change::connect, error::Error, paths::Instance, teardown};

/// Detach everything and leave the host as it was found
///
/// Removes hooks, maps and the agent, and puts back every kernel setting that vmnat changed. Goes on after an
/// error, and reports all of them.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
///
/// # Errors
/// [`Error::Partial`] with the steps that failed.
pub async fn run(instance: &Instance, args: &Args) -> Result<()> {
    let Args {} = args;
    super::up::need_root("`vmnat down`")?;
    let done = teardown::teardown(instance, &connect()?).await?;
    for line in &done.removed {
        print::line(line)?;
    }
    if done.failures.is_empty() {
        return print::line(&format!("instance \"{instance}\" is down"));
    }
    Err(Error::Partial { steps: done.failures }.into())
}
