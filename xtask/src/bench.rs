//! `bench`: costs, measured side by side with the kernel's own paths.

use anyhow::Result;
use clap::Parser;

use crate::{demo, project, setup, steps::Steps};

/// Measures `packet` (cost of a packet) and `stream` (one TCP stream) beside netfilter, and `ranges` (a forward of many
/// ports beside one of a single port); none named: all
///
/// Prints tables and goals, fails when a goal is missed, and writes docs/benchmarks.md.
#[derive(Parser)]
pub struct Args {
    /// What to measure, and options for the benchmark itself (`--help` among them)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// Sets up, builds and becomes the benchmark.
pub fn run(args: &Args) -> Result<()> {
    let mut steps = Steps::new(2);
    steps.step("set-up", || setup::ensure(setup::Scope::Lab))?;
    steps.step("build (release)", demo::build_lab)?;
    let docs = project::root().join("docs");
    let write = ["--write".to_owned(), docs.to_string_lossy().into_owned()];
    demo::become_binary("bench", &[&write[..], &args.args].concat())
}
