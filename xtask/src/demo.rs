//! `demo`: the lab of `vmnat-tests`, shown to a person.

use std::process::Command;

use anyhow::Result;
use clap::Parser;

use crate::{
    command::{self, cargo, program},
    project, setup,
    steps::Steps,
};

/// Shows guests cut off by the host's firewall reaching the world through vmnat
#[derive(Parser)]
pub struct Args {
    /// Options for the demo itself
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// Sets up, builds and becomes the demo, which therefore gets Ctrl-C itself and cleans up.
pub fn run(args: &Args) -> Result<()> {
    let mut steps = Steps::new(2);
    steps.step("set-up", || setup::ensure(setup::Scope::Lab))?;
    steps.step("build (release)", build_lab)?;
    become_binary("demo", &args.args)
}

/// Builds `vmnat` and the binaries of the tests' package as they are measured and shown.
pub fn build_lab() -> Result<()> {
    command::run(cargo(["build", "--bins"]).args(project::LAB))
}

/// Replaces this process with a binary of the tests' package.
pub fn become_binary(name: &str, args: &[String]) -> Result<()> {
    become_with_vmnat(&mut program(&project::built(name).to_string_lossy(), args))
}

/// Replaces this process with a program that finds `vmnat` as it was built.
pub fn become_with_vmnat(binary: &mut Command) -> Result<()> {
    command::become_program(binary.env(project::VMNAT, project::built("vmnat")))
}
