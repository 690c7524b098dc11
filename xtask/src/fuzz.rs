//! `fuzz`: the fuzz targets of the parsers, and the long runs of the tiers' own fuzzing.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

use crate::{
    command::{self, cargo},
    demo, project,
    setup::{self, cargo_fuzz},
    steps::Steps,
};

/// Fuzzes the parsers, a target after the other; or the programs (--frames), or the wire (--wire)
///
/// What breaks a rule ends the run; its bytes stay in fuzz/artifacts, and belong into fuzz/corpus once the fault is found.
#[derive(Parser)]
pub struct Args {
    /// Seconds for each target
    #[arg(long, default_value_t = 10)]
    seconds: u32,
    /// Instead: so many changed frames through the programs (needs root)
    #[arg(long, value_name = "NUMBER")]
    frames: Option<u64>,
    /// Instead: changed frames on the wire, from both sides (needs root)
    #[arg(long, conflicts_with = "frames")]
    wire: bool,
    /// Seed of the frames; each run of a seed is the same
    #[arg(long)]
    seed: Option<u64>,
    /// Only these targets
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
}

/// Runs what was asked for and says what came of it.
pub fn run(args: &Args) -> Result<()> {
    match args.frames {
        Some(frames) => in_tier(args, "prog", "mutated_frames_break_no_rule", Some(frames)),
        None if args.wire => in_tier(args, "netns", "mutated_frames_do_no_harm", None),
        None => parsers(args),
    }
}

/// A test of a tier, with another number of frames than the tier itself has.
fn in_tier(args: &Args, tier: &str, test: &str, frames: Option<u64>) -> Result<()> {
    let mut steps = Steps::new(3);
    steps.step("set-up", || setup::ensure(setup::Scope::Lab))?;
    steps.step("build (release)", demo::build_lab)?;
    let mut test_command = cargo(["test"]);
    test_command.args(project::LAB).args(["--test", tier, "--", "--nocapture", test]);
    test_command.env(project::VMNAT, project::built("vmnat"));
    for (variable, number) in [("VMNAT_FUZZ_FRAMES", frames), ("VMNAT_FUZZ_SEED", args.seed)] {
        if let Some(number) = number {
            test_command.env(variable, number.to_string());
        }
    }
    let mut passed = false;
    steps.step(test, || {
        command::run_lines(&mut test_command, |line| {
            passed |= line.starts_with("test result: ok. 1 passed");
            println!("{line}");
        })
    })?;
    ensure!(passed, "no test {test} ran in the {tier} tier");
    println!("\nno rule was broken");
    Ok(())
}

fn parsers(args: &Args) -> Result<()> {
    let known = targets()?;
    if let Some(unknown) = args.targets.iter().find(|target| !known.contains(target)) {
        anyhow::bail!("no target \"{unknown}\"; there are {}", known.join(", "));
    }
    let chosen = if args.targets.is_empty() { known } else { args.targets.clone() };
    let mut steps = Steps::new(chosen.len().saturating_add(2));
    steps.step("set-up", || setup::ensure(setup::Scope::Build).and_then(|()| cargo_fuzz::ensure()))?;
    steps.step("build (with the address sanitizer)", || command::run(&mut cargo_fuzz(&["build"])))?;
    let mut broken = Vec::new();
    for target in &chosen {
        if let Err(error) = steps.step(target, || fuzz(target, args)) {
            eprintln!("xtask: {target}: {error:#}");
            broken.push(target.as_str());
        }
    }
    println!("\n{} targets, {} s each: {} broke a rule", chosen.len(), args.seconds, broken.len());
    ensure!(broken.is_empty(), "broke a rule: {}; the bytes are in fuzz/artifacts", broken.join(", "));
    Ok(())
}

/// One target. What it finds goes into the build directory: the corpus of the repository is changed by hand alone.
fn fuzz(target: &str, args: &Args) -> Result<()> {
    let found = project::target().join("fuzz-corpus").join(target);
    fs::create_dir_all(&found).with_context(|| format!("make {}", found.display()))?;
    let corpus = project::root().join("fuzz/corpus").join(target);
    let mut command = cargo_fuzz(&["run", target]);
    command.arg(found).arg(corpus).arg("--");
    command.arg(format!("-max_total_time={}", args.seconds)).args(["-max_len=4096", "-verbosity=0"]);
    command.args(["-print_final_stats=1", "-timeout=10"]);
    if let Some(seed) = args.seed {
        command.arg(format!("-seed={seed}"));
    }
    command::run(&mut command)
}

/// `cargo fuzz`. Sanitizers are an unstable flag, which the pinned toolchain takes as it does for the BPF target.
fn cargo_fuzz(args: &[&str]) -> Command {
    let (verb, rest) = args.split_first().unwrap_or((&"list", &[]));
    let mut command = cargo(["fuzz", verb, "--target-dir"]);
    command.arg(project::target().join("fuzz")).args(rest);
    command.env("RUSTC_BOOTSTRAP", "1").env_remove("RUSTFLAGS");
    command
}

/// Every target, by name.
fn targets() -> Result<Vec<String>> {
    let folder = project::root().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_built_and_has_a_corpus() {
        let manifest = fs::read_to_string(project::root().join("fuzz/Cargo.toml")).unwrap();
        let built: Vec<_> =
            manifest.lines().filter_map(|line| line.strip_prefix("path = \"fuzz_targets/")).collect();
        let targets = targets().unwrap();
        assert_eq!(built, targets.iter().map(|name| format!("{name}.rs\"")).collect::<Vec<_>>());
        for target in targets {
            let corpus = project::root().join("fuzz/corpus").join(&target);
            assert!(fs::read_dir(corpus).unwrap().count() > 0, "{target}");
        }
    }
}
