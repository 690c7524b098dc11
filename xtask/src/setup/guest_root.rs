//! The real guest's servers: Debian's nginx and sshd with their libraries, unpacked below the target directory and
//! never installed, so that no server starts on this machine.

use std::{env, path::PathBuf};

use anyhow::{Context as _, Result};

use super::packages;
use crate::project;

/// Tells the vm tier where the servers' `usr/sbin` and their libraries lie.
pub const VARIABLE: &str = "VMNAT_GUEST_ROOT_DIR";

const SERVERS: [&str; 3] = ["nginx", "libnginx-mod-stream", "openssh-server"];
const PROGRAMS: [&str; 3] = ["usr/sbin/nginx", "usr/lib/nginx/modules/ngx_stream_module.so", "usr/sbin/sshd"];

/// The operator's own choice, or the directory that [`ensure`] fills.
pub fn dir() -> PathBuf {
    env::var_os(VARIABLE).map_or_else(|| project::target().join("guest-root"), PathBuf::from)
}

/// Fetches and unpacks the servers unless they are there.
pub fn ensure() -> Result<()> {
    let dir = dir();
    if PROGRAMS.iter().all(|program| dir.join(program).exists()) {
        return Ok(());
    }
    println!("missing: a web server and sshd for the guest (the vm tier reaches them through port forwards)");
    packages::unpack_with_libraries(&SERVERS, &dir)
        .with_context(|| format!("no packages {}; set {VARIABLE} to their files", SERVERS.join(", ")))
}
