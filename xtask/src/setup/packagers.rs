//! cargo-deb and cargo-generate-rpm, which build the packages.

use anyhow::{Result, ensure};

use super::packages;
use crate::command::{self, cargo};

/// Each with the option that has it say its version, and that version.
const PACKAGERS: [(&str, &str); 2] = [("cargo-deb", "3.8.0"), ("cargo-generate-rpm", "0.21.1")];

/// Builds those that are missing.
pub fn ensure() -> Result<()> {
    packages::ensure(packages::DIST)?;
    for (name, version) in PACKAGERS {
        if command::exists(name) {
            continue;
        }
        println!("missing: {name} {version} (builds a package); installing it with cargo: a few minutes ...");
        let mut install = cargo(["install", name, "--locked", "--quiet", "--version", version]);
        command::run(install.env_remove("CARGO_TARGET_DIR"))?;
        ensure!(command::exists(name), "{name} was installed, but PATH does not find it");
    }
    Ok(())
}
