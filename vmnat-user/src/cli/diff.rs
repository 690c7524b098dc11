//! `vmnat diff`: in what an instance differs from what files say.

use std::path::PathBuf;

use anyhow::Result;

use super::{apply, up};
use crate::{
    config::{self, Source},
    error::Error,
    paths::Instance,
};

/// Show what `vmnat apply` would change: ends with 0 for nothing, 1 for something, 2 for trouble
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Read this file instead of those in /etc/vmnat, or standard input for "-"
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// [`Error::Silent`] when something differs, [`Error::Trouble`] when that cannot be told.
pub async fn run(instance: &Instance, args: &Args) -> Result<()> {
    match compare(instance, args).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::Silent.into()),
        Err(error) => Err(Error::Trouble { text: format!("{error:#}") }.into()),
    }
}

async fn compare(instance: &Instance, args: &Args) -> Result<bool> {
    let Args { file, json } = args;
    up::need_root("`vmnat diff`")?;
    let config = config::read(instance, &Source::named(file.as_deref())?)?;
    let prepared = apply::preview(instance, &config).await?;
    apply::tell(&prepared, "diff", *json, "")?;
    Ok(prepared.differences.is_empty())
}
