//! `object`: builds the kernel half's object and shows what is in it.

mod elf;

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::Parser;

use crate::{
    command::{self, cargo},
    project, setup,
};

/// Builds the BPF object; prints its path, its size and each program's instructions
#[derive(Parser)]
pub struct Args {}

/// The kernel half's bin target.
const NAME: &str = "vmnat-dataplane";

/// Builds and prints.
pub fn run(_args: &Args) -> Result<()> {
    setup::ensure(setup::Scope::Build)?;
    let path = build()?;
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    println!("{}\n{} bytes", path.display(), bytes.len());
    println!("\n{:>12}  {:<12} function", "instructions", "section");
    let functions = elf::functions(&bytes).with_context(|| format!("{} is no ELF object", path.display()))?;
    for elf::Function { name, section, instructions } in functions {
        println!("{instructions:>12}  {section:<12} {:#}", rustc_demangle::demangle(&name));
    }
    Ok(())
}

/// Builds the user half, whose build script builds the object; cargo says where that script's output lies.
fn build() -> Result<PathBuf> {
    let mut build = cargo(["build", "--lib", "--message-format", "json-render-diagnostics"]);
    let mut out_dir = None;
    command::run_lines(build.args(project::LAB), |line| {
        if line.contains(r#""reason":"build-script-executed""#) && line.contains("/vmnat-user#") {
            out_dir = line
                .split_once(r#""out_dir":""#)
                .and_then(|(_, rest)| rest.split('"').next())
                .map(PathBuf::from);
        }
    })?;
    Ok(out_dir.context("cargo did not say where vmnat-user's build script writes")?.join(NAME))
}
