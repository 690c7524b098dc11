//! `vmnat config`: looks at files without touching what runs.

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;

use super::print;
use crate::{
    config::{self, Source},
    error::Error,
    paths::Instance,
    state::{self, HookMode, State},
};

/// Check the files of the configuration, or show what is asked for as one
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Clone, Debug, Subcommand)]
enum Action {
    /// Find every fault of the files in /etc/vmnat, or of one; needs no root and asks no kernel
    Check {
        /// The file, or standard input for "-"
        file: Option<PathBuf>,
    },
    /// Print what the instance is asked to be, by files and on the command line, as a file could say it
    Show,
    /// Print a file with every key, its default, and what it is for
    Sample,
}

/// Runs the command.
///
/// # Errors
/// [`Error::BadConfig`] with every fault.
pub fn run(instance: &Instance, args: &Args) -> Result<()> {
    match &args.action {
        Action::Check { file } => check(instance, file.as_ref()),
        Action::Show => print::text(&config::effective(&load(instance)?)),
        Action::Sample => print::text(&config::sample()),
    }
}

fn check(instance: &Instance, file: Option<&PathBuf>) -> Result<()> {
    let config = config::read(instance, &Source::named(file.map(PathBuf::as_path))?)?;
    let files: Vec<&str> = config.files.iter().map(|file| file.name.as_str()).collect();
    let (options, forwards) = (config.statements.len(), config.rules.len());
    print::line(&format!("{}: no fault; options: {options}, port forwards: {forwards}", files.join(", ")))
}

/// The state; of an instance that does not run, the port forwards that it keeps.
fn load(instance: &Instance) -> Result<State> {
    if let Some(state) = state::find(instance)? {
        return Ok(state);
    }
    if instance.forwards().exists() {
        return State::stored(instance, HookMode::Tcx);
    }
    Err(Error::NotRunning { instance: instance.to_string(), option: instance.option() }.into())
}
