//! The real guest's kernel: Debian's cloud image, unpacked below the target directory and never installed, so
//! that the machine's own boot stays as it is.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::packages;
use crate::{
    command::{self, program},
    project,
};

/// Tells the vm tier where `boot/vmlinuz-*` and `lib/modules/*` lie.
pub const VARIABLE: &str = "VMNAT_GUEST_KERNEL_DIR";

/// Always depends on the package of the latest kernel of the release.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// The operator's own choice, or the directory that [`ensure`] fills.
pub fn dir() -> PathBuf {
    env::var_os(VARIABLE).map_or_else(|| project::target().join("guest-kernel"), PathBuf::from)
}

/// Fetches and unpacks the kernel unless one is there.
pub fn ensure() -> Result<()> {
    let dir = dir();
    if release(&dir).is_some_and(|release| dir.join("lib/modules").join(release).join("modules.dep").exists())
    {
        return Ok(());
    }
    println!("missing: a guest kernel (the vm tier boots it)");
    packages::update()?;
    let package = package()?;
    println!("fetching {package} into {} (not installed) ...", dir.display());
    packages::unpack(&[&package], &dir)?;
    // Debian 13 keeps modules below usr/lib alone.
    if !dir.join("lib").exists() {
        symlink("usr/lib", dir.join("lib"))?;
    }
    unpack_modules(&dir)?;
    let release = release(&dir).with_context(|| format!("{package} holds no boot/vmlinuz-*"))?;
    command::run(&mut program("depmod", ["-b".as_ref(), dir.as_os_str(), release.as_ref()]))
}

/// The package that the meta package depends on.
fn package() -> Result<String> {
    let depends = command::output(&mut program("apt-cache", ["depends", "--important", META_PACKAGE]))?;
    let names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let image = names.map(str::to_owned).find(|name| name.starts_with("linux-image-"));
    image.with_context(|| {
        format!("no package {META_PACKAGE} in the package sources; set {VARIABLE} to a kernel's files")
    })
}

/// Debian 13 compresses its modules, which a busybox in the guest does not load.
fn unpack_modules(dir: &Path) -> Result<()> {
    let modules = dir.join("lib/modules/");
    let args = ["-name", "*.ko.xz", "-exec", "xz", "--decompress", "{}", "+"];
    command::run(program("find", [modules]).args(args))
}

/// The release of the kernel in `dir`, as `uname -r` would say it there.
fn release(dir: &Path) -> Option<String> {
    let mut names = fs::read_dir(dir.join("boot")).ok()?.flatten().map(|entry| entry.file_name());
    names.find_map(|name| name.to_str()?.strip_prefix("vmlinuz-").map(str::to_owned))
}
