//! Where the project and what it builds lie.

use std::{
    env,
    path::{Path, PathBuf},
};

/// The package of the tests, the demo and the benchmarks.
pub const TESTS: &str = "vmnat-tests";

/// What is built for the lab, and how. Always the same packages together: another selection would give their
/// dependencies other features, and cargo would build those twice.
pub const LAB: [&str; 5] = ["--release", "--package", "vmnat-user", "--package", TESTS];

/// Tells the lab which `vmnat` to run: its own path means nothing to it once it is in namespaces below a chroot.
pub const VMNAT: &str = "VMNAT_BIN";

/// Tells the packages tier which program makes the traffic in its machines.
pub const STEADY: &str = "VMNAT_STEADY_BIN";

/// The workspace's root.
pub fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// Where cargo builds: everything that set-up fetches for the project alone lies there too.
pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// A program of the lab, as [`LAB`] builds it.
pub fn built(name: &str) -> PathBuf {
    target().join("release").join(name)
}
