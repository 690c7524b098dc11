//! `vmnat dnat exists`: for scripts.

use anyhow::Result;
use serde::Serialize;

use super::{load, meant};
use crate::{cli::print, error::Error, paths::Instance, report};

/// Tell whether a port forward is there, by the exit code: 0 or 1
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Its number in the list, or the forward as it was added
    #[arg(value_name = "ID|FORWARD")]
    which: String,
    /// Print nothing
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    id: u32,
    forward: String,
}

/// Runs the command.
///
/// # Errors
/// When it is not there, which prints nothing with `--quiet`.
pub(super) fn run(instance: &Instance, args: &Args) -> Result<()> {
    let Args { which, quiet, json } = args;
    let (state, _) = load(instance)?;
    let found = meant(&state.forwards, which)?;
    let row = |forward: &&crate::forwards::PortForward| Row {
        id: forward.id,
        forward: forward.wish.spec.to_string(),
    };
    let rows: Vec<Row> = found.iter().map(row).collect();
    if *json {
        print::line(&report::json("dnat_exists", &rows)?)?;
    }
    match &rows[..] {
        [] if *quiet || *json => Err(Error::Silent.into()),
        [] => Err(Error::NoForward { which: which.clone() }.into()),
        _ if *quiet || *json => Ok(()),
        rows => rows
            .iter()
            .try_for_each(|Row { id, forward }| print::line(&format!("port forward {id} is {forward}"))),
    }
}
