//! `bench`: costs, measured side by side with the kernel's own paths.

mod against;

use anyhow::{Context as _, Result};
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

impl Args {
    /// The same with the options of this command that stand behind the name of a benchmark.
    fn lifted(&self) -> Result<Self> {
        let (mut against, mut quick, mut words) = (self.against.clone(), self.quick, Vec::new());
        let mut given = self.words.iter();
        while let Some(word) = given.next() {
            match word.split_once('=') {
                _ if word == "--quick" => quick = true,
                _ if word == "--against" => {
                    let revision =
                        given.next().context("--against wants a commit, or a `vmnat` that is built")?;
                    against = Some(revision.clone());
                }
                Some(("--against", revision)) => against = Some(revision.to_owned()),
                _ => words.push(word.clone()),
            }
        }
        Ok(Self { against, quick, words })
    }
}

/// Sets up, builds and becomes the benchmark.
pub fn run(args: &Args) -> Result<()> {
    let args = &args.lifted()?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_this_commands_wherever_they_stand() {
        let lifted = |words: &[&str]| {
            let args =
                Args { against: None, quick: false, words: words.iter().map(ToString::to_string).collect() };
            args.lifted().map(|args| (args.against, args.quick, args.words.join(" ")))
        };
        let is = |words: &[&str], against: Option<&str>, quick, rest: &str| {
            let expected = (against.map(str::to_owned), quick, rest.to_owned());
            assert_eq!(lifted(words).unwrap(), expected, "{words:?}");
        };
        is(&["program", "--against", "HEAD~1", "--rounds", "5"], Some("HEAD~1"), false, "program --rounds 5");
        is(&["packet", "--against=v1", "--quick"], Some("v1"), true, "packet");
        is(&["flows", "--flows", "1000"], None, false, "flows --flows 1000");
        assert!(lifted(&["program", "--against"]).is_err());
    }
}
