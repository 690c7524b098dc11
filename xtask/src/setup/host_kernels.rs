//! Kernels of the distributions that the packages tier boots: Debian's cloud images, unpacked below the target directory and
//! never installed.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{hosts, packages};
use crate::{
    command::{self, program},
    project,
};

/// Tells the packages tier where `<suite>/boot/vmlinuz-*` and `<suite>/lib/modules/*` lie.
pub const VARIABLE: &str = "VMNAT_HOST_KERNELS_DIR";

/// Always depends on the package of the latest kernel of the release.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// The operator's own choice, or the directory that [`ensure`] fills.
pub fn dir() -> PathBuf {
    env::var_os(VARIABLE).map_or_else(|| project::target().join("host-kernels"), PathBuf::from)
}

/// Fetches and unpacks those that are missing: bookworm has Linux 6.1, where clsact must serve, trixie 6.12 with tcx.
pub fn ensure(suites: &[&str]) -> Result<()> {
    for suite in suites {
        let folder = dir().join(suite);
        if !folder.join("lib/modules").exists() {
            println!("missing: the kernel of {suite} (the packages tier boots it)");
            packages::ensure(hosts::MAKER)?;
            fetch(suite, &folder)
                .with_context(|| format!("no kernel of {suite}; set {VARIABLE} to a folder that has it"))?;
        }
    }
    Ok(())
}

fn fetch(suite: &str, folder: &Path) -> Result<()> {
    let mirror = hosts::mirror()?;
    println!("fetching {META_PACKAGE} of {suite} from {mirror} (about 120 MB, not installed) ...");
    let unfinished = folder.with_extension("unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    fs::create_dir_all(dir())?;
    let mut maker = program("mmdebstrap", ["--variant=extract", "--mode=root", "--quiet"]);
    maker.arg(format!("--include={META_PACKAGE}")).arg("--aptopt=APT::Install-Recommends \"false\"");
    command::output(maker.arg(suite).arg(&unfinished).arg(mirror))?;
    // Debian 13 keeps modules below usr/lib alone.
    if !unfinished.join("lib").exists() {
        symlink("usr/lib", unfinished.join("lib"))?;
    }
    for release in fs::read_dir(unfinished.join("lib/modules"))? {
        let release = release?.file_name();
        command::run(&mut program("depmod", ["-b".as_ref(), unfinished.as_os_str(), &release]))?;
    }
    fs::rename(&unfinished, folder)?;
    Ok(())
}
