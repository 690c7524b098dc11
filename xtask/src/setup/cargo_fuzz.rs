//! cargo-fuzz, which builds and runs the fuzz targets, and the compiler of libFuzzer.

use anyhow::{Result, ensure};

use super::packages;
use crate::command::{self, cargo};

const VERSION: &str = "0.13.2";

/// Builds cargo-fuzz unless there is one.
pub fn ensure() -> Result<()> {
    if !command::exists("g++") && !command::exists("c++") {
        println!("missing: g++ (libFuzzer is C++)");
        packages::install(&["g++"])?;
    }
    if installed() {
        return Ok(());
    }
    println!(
        "missing: cargo-fuzz {VERSION} (builds and runs the fuzz targets); installing it with cargo ..."
    );
    let mut install = cargo(["install", "cargo-fuzz", "--locked", "--quiet", "--version", VERSION]);
    command::run(install.env_remove("CARGO_TARGET_DIR"))?;
    ensure!(installed(), "cargo-fuzz was installed, but PATH does not find it");
    Ok(())
}

fn installed() -> bool {
    command::output(&mut cargo(["fuzz", "--version"])).is_ok()
}
