//! bpf-linker, whose LLVM must read the pinned rustc's bitcode.

use anyhow::{Context as _, Result, ensure};

use super::packages;
use crate::command::{self, cargo, program};

/// Any of these patch releases serves.
const SERIES: &str = "0.13.";
const VERSION: &str = "0.13.0";

/// What bpf-linker's build needs.
const LIBRARIES: [&str; 1] = ["llvm-22-dev"];

/// Builds bpf-linker against Debian's LLVM 22 unless one of the right series is there.
pub fn ensure() -> Result<()> {
    if installed().is_some_and(|version| version.starts_with(SERIES)) {
        return Ok(());
    }
    println!("missing: bpf-linker {VERSION} (links the BPF object; its LLVM matches the pinned rustc's)");
    if packages::is_available("llvm-22-dev")? {
        build()?;
    } else {
        fetch()?;
    }
    let version = installed().unwrap_or_else(|| "none".to_owned());
    ensure!(
        version.starts_with(SERIES),
        "bpf-linker {SERIES}x was installed, but the one that PATH finds is {version}"
    );
    Ok(())
}

fn build() -> Result<()> {
    packages::install(&LIBRARIES)?;
    println!("installing bpf-linker {VERSION} with cargo: about a minute ...");
    let options = ["--locked", "--force", "--quiet", "--no-default-features", "--features", "llvm-22"];
    let mut install = cargo(["install", "bpf-linker", "--version", VERSION]);
    install.args(options).env("LLVM_PREFIX", "/usr/lib/llvm-22").env_remove("CARGO_TARGET_DIR");
    command::run(&mut install).context("cannot build bpf-linker")
}

/// Where no LLVM 22 is packaged: the project's own release, which carries its LLVM.
fn fetch() -> Result<()> {
    println!("no package llvm-22-dev here: fetching bpf-linker's own release binary with cargo-binstall ...");
    if !command::exists("cargo-binstall") {
        println!("installing cargo-binstall with cargo: a few minutes ...");
        command::run(&mut cargo(["install", "cargo-binstall", "--locked", "--quiet"]))?;
    }
    let package = format!("bpf-linker@{VERSION}");
    command::run(&mut cargo([
        "binstall",
        "--no-confirm",
        "--force",
        "--strategies",
        "crate-meta-data",
        &package,
    ]))
    .context("cannot fetch bpf-linker: install LLVM 22's headers, or put a bpf-linker 0.13 into PATH")
}

/// The version of the bpf-linker in PATH, when it starts at all.
fn installed() -> Option<String> {
    let said = command::output(&mut program("bpf-linker", ["--version"])).ok()?;
    said.split_whitespace().nth(1).map(str::to_owned)
}
