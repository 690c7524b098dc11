//! `docs`: pages that are generated from the code, so that they cannot disagree with it.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

use crate::{
    command::{self, cargo},
    project,
};

/// Writes the generated pages under docs/; `check` compares them
#[derive(Parser)]
pub struct Args {}

/// A generated page: its path, and the arguments of `vmnat` that print it.
struct Page {
    path: &'static str,
    vmnat_args: &'static [&'static str],
}

const PAGES: [Page; 1] = [Page { path: "docs/counters.md", vmnat_args: &["docs", "counters"] }];

/// Writes every page.
pub fn run(_args: &Args) -> Result<()> {
    for page in PAGES {
        let path = project::root().join(page.path);
        fs::write(&path, page.text()?).with_context(|| format!("cannot write {}", path.display()))?;
        println!("wrote {}", page.path);
    }
    Ok(())
}

/// Fails when a page is not what the code says.
pub fn check() -> Result<()> {
    for page in PAGES {
        let there = fs::read_to_string(project::root().join(page.path)).unwrap_or_default();
        ensure!(there == page.text()?, "{} is out of date: run ./dev docs and commit it", page.path);
    }
    Ok(())
}

impl Page {
    fn text(&self) -> Result<String> {
        let mut vmnat = cargo(["run", "--quiet", "--package", "vmnat-user", "--bin", "vmnat", "--"]);
        command::output(vmnat.args(self.vmnat_args))
    }
}
