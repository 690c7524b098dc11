//! `bench`: costs, measured side by side with the kernel's own paths.

mod against;

use anyhow::Result;
use clap::Parser;

use crate::{
    command::program,
    demo, project,
    setup::{self, guest_kernel},
    steps::Steps,
};

/// Measures vmnat beside the kernel's own ways to forward, and beside another build of it
///
/// `packet`, `flows`, `stream`, `connect`, `latency`, `guest`, `program`, `ranges` and `dnat`; none named: all. Prints tables
/// and goals, fails when a goal is missed, and writes docs/benchmarks.md, docs/benchmarks/*.json and the plots there.
#[derive(Parser)]
pub struct Args {
    /// Beside this commit's build, in `packet` and `program`; or beside a `vmnat` that is built
    #[arg(long, value_name = "REV|PROGRAM")]
    against: Option<String>,
    /// A trial: few rounds of little, and docs/benchmarks.md stays as it is
    #[arg(long)]
    quick: bool,
    /// What to measure, and options for the benchmark itself (after `--`: `-- --help` lists them)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "BENCH|OPTION")]
    words: Vec<String>,
}

/// Sets up, builds and becomes the benchmark.
pub fn run(args: &Args) -> Result<()> {
    let mut steps = Steps::new(if args.against.is_some() { 3 } else { 2 });
    steps.step("set-up", || setup::ensure(setup::Scope::Lab))?;
    steps.step("build (release)", demo::build_lab)?;
    let mut words: Vec<String> = Vec::new();
    if args.quick {
        words.push("--quick".to_owned());
    } else {
        let docs = project::root().join("docs");
        words.extend(["--write".to_owned(), docs.to_string_lossy().into_owned()]);
    }
    if let Some(wanted) = &args.against {
        let other = steps.step("build of the other", || against::find(wanted))?;
        words.extend(["--against".to_owned(), other.program.to_string_lossy().into_owned()]);
        words.extend(["--against-name".to_owned(), other.name]);
    }
    words.extend(args.words.iter().cloned());
    let mut bench = program(&project::built("bench").to_string_lossy(), words);
    bench.env(guest_kernel::VARIABLE, guest_kernel::dir());
    demo::become_with_vmnat(&mut bench)
}
