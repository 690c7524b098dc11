//! What judges the NAT from outside in the netns tier: coturn's STUN server and discovery, and Vovida's client. Unpacked below
//! the target directory and never installed, so that no server starts on this machine.

use std::{env, path::PathBuf};

use anyhow::{Context as _, Result};

use super::packages;
use crate::project;

/// Tells the netns tier where the programs' `usr/bin` and their libraries lie.
pub const VARIABLE: &str = "VMNAT_STUN_DIR";

const PACKAGES: [&str; 2] = ["coturn", "stun-client"];
const PROGRAMS: [&str; 3] = ["usr/bin/turnserver", "usr/bin/turnutils_natdiscovery", "usr/bin/stun"];

/// The operator's own choice, or the directory that [`ensure`] fills.
pub fn dir() -> PathBuf {
    env::var_os(VARIABLE).map_or_else(|| project::target().join("stun"), PathBuf::from)
}

/// Fetches and unpacks the programs unless they are there.
pub fn ensure() -> Result<()> {
    let dir = dir();
    if PROGRAMS.iter().all(|program| dir.join(program).exists()) {
        return Ok(());
    }
    println!("missing: a STUN server and two clients (the netns tier has the NAT judged by them)");
    packages::unpack_with_libraries(&PACKAGES, &dir)
        .with_context(|| format!("no packages {}; set {VARIABLE} to their files", PACKAGES.join(" and ")))
}
