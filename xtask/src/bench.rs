//! `bench`: costs, measured side by side with the kernel's own paths.

use anyhow::Result;
use clap::Parser;

use crate::{demo, setup, steps::Steps};

/// Measures: `bench packet` is the cost of a packet, beside netfilter and a plain bridge
#[derive(Parser)]
pub struct Args {
    /// What to measure, and options for the benchmark itself
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, default_value = "packet")]
    args: Vec<String>,
}

/// Sets up, builds and becomes the benchmark.
pub fn run(args: &Args) -> Result<()> {
    let mut steps = Steps::new(2);
    steps.step("set-up", || setup::ensure(setup::Scope::Lab))?;
    steps.step("build (release)", demo::build_lab)?;
    demo::become_binary("bench", &args.args)
}
