//! `check`: format, lints of both halves, rustdoc. Nothing here needs root. That generated pages are up to date is a
//! unit test.

use anyhow::{Result, ensure};
use clap::Parser;

use crate::{
    command::{self, cargo},
    setup,
    steps::Steps,
};

/// Checks format, lints (host and BPF target) and rustdoc
#[derive(Parser)]
pub struct Args {}

/// One check: its title and how it is done.
pub struct Check {
    /// What a step's line says.
    pub title: &'static str,
    /// Fails when the check does.
    pub work: fn() -> Result<()>,
}

/// Every check, in the order in which they are cheapest to fail.
pub const CHECKS: [Check; 4] = [
    Check { title: "format", work: format },
    Check { title: "clippy, host", work: clippy_host },
    Check { title: "clippy, BPF target", work: clippy_bpf },
    Check { title: "rustdoc", work: rustdoc },
];

/// Does every check and reports all that fail.
pub fn run(_args: &Args) -> Result<()> {
    setup::ensure(setup::Scope::Build)?;
    let mut steps = Steps::new(CHECKS.len());
    let mut failed = Vec::new();
    for Check { title, work } in CHECKS {
        if let Err(error) = steps.step(title, work) {
            eprintln!("xtask: {title}: {error:#}");
            failed.push(title);
        }
    }
    ensure!(failed.is_empty(), "checks failed: {}", failed.join(", "));
    Ok(())
}

fn format() -> Result<()> {
    command::run(&mut cargo(["fmt", "--all", "--check"]))
}

fn clippy_host() -> Result<()> {
    command::run(&mut cargo(["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]))
}

/// The kernel half where it is not empty. The target ships no core, and building one is an unstable flag.
fn clippy_bpf() -> Result<()> {
    let args = "clippy --quiet --package vmnat-ebpf --bin vmnat-dataplane --release --target bpfel-unknown-none -Z \
                build-std=core -- -D warnings";
    let flags = r#"--cfg=bpf_target_arch="x86_64""#;
    let mut clippy = cargo(args.split_whitespace());
    command::run(clippy.env("RUSTC_BOOTSTRAP", "1").env("CARGO_ENCODED_RUSTFLAGS", flags))
}

fn rustdoc() -> Result<()> {
    command::run(
        cargo(["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )
}
