//! `docs`: pages that are generated from the code, so that they cannot disagree with it.
//!
//! Each has a unit test that compares it with the code, and writes it when the variable below is set.

use anyhow::Result;
use clap::Parser;

use crate::{
    command::{self, cargo},
    setup,
};

/// Writes the generated pages under docs/; the unit tests compare them
#[derive(Parser)]
pub struct Args {}

/// Tells those tests to write.
const VARIABLE: &str = "VMNAT_WRITE_DOCS";

/// The tests that stand for a page.
const TESTS: [&str; 2] = ["the_page_of_counters_is_up_to_date", "the_sample_configuration_is_up_to_date"];

/// Writes every page.
pub fn run(_args: &Args) -> Result<()> {
    setup::ensure(setup::Scope::Build)?;
    let mut test = cargo(["test", "--quiet", "--package", "vmnat-user", "--lib", "--"]);
    command::run(test.args(TESTS).env(VARIABLE, "1"))
}
