//! A VPN that needs no kernel module: `WireGuard` in user space, and the tool that configures it. Unpacked below the target
//! directory and never installed.

use std::{env, path::PathBuf};

use anyhow::{Context as _, Result};

use super::packages;
use crate::project;

/// Tells the netns tier where the programs' `usr/bin` lies.
pub const VARIABLE: &str = "VMNAT_WIREGUARD_DIR";

const PACKAGES: [&str; 2] = ["wireguard-go", "wireguard-tools"];
const PROGRAMS: [&str; 2] = ["usr/bin/wireguard-go", "usr/bin/wg"];

/// The operator's own choice, or the directory that [`ensure`] fills.
pub fn dir() -> PathBuf {
    env::var_os(VARIABLE).map_or_else(|| project::target().join("wireguard"), PathBuf::from)
}

/// Fetches and unpacks the programs unless they are there. They need no library but the C library.
pub fn ensure() -> Result<()> {
    let dir = dir();
    if PROGRAMS.iter().all(|program| dir.join(program).exists()) {
        return Ok(());
    }
    println!("missing: WireGuard in user space (the netns tier takes guests to the world by it)");
    packages::unpack(&PACKAGES, &dir)
        .with_context(|| format!("no packages {}; set {VARIABLE} to their files", PACKAGES.join(" and ")))
}
