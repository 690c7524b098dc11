//! dnsmasq, the host's server for names and addresses in the netns tier: unpacked below the target directory and never
//! installed, so that no server starts on this machine.

use std::{env, path::PathBuf};

use anyhow::{Context as _, Result};

use super::packages;
use crate::project;

/// Tells the netns tier where the program's `usr/sbin` and its libraries lie.
pub const VARIABLE: &str = "VMNAT_DNSMASQ_DIR";

const PACKAGE: &str = "dnsmasq-base";

/// The operator's own choice, or the directory that [`ensure`] fills.
pub fn dir() -> PathBuf {
    env::var_os(VARIABLE).map_or_else(|| project::target().join("dnsmasq"), PathBuf::from)
}

/// Fetches and unpacks the program unless it is there.
pub fn ensure() -> Result<()> {
    let dir = dir();
    if dir.join("usr/sbin/dnsmasq").exists() {
        return Ok(());
    }
    println!("missing: dnsmasq (the netns tier runs it as libvirt does)");
    packages::unpack_with_libraries(&[PACKAGE], &dir)
        .with_context(|| format!("no package {PACKAGE}; set {VARIABLE} to its files"))
}
