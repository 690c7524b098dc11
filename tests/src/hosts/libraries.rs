//! The C library that `vmnat` was built for, lent to a machine whose own is older.
//!
//! The C library keeps its promises to programs that were built for an older one, never to those built for a newer one. So where
//! `vmnat` does not start in a tree, the tree's programs get this machine's library, whole: its parts must fit each other.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};

/// Where distributions keep the C library of this architecture.
const FOLDERS: [&str; 4] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib64", "lib64"];

/// The parts of the C library, by the beginnings of their names, and what the compiler adds.
const PARTS: [&str; 14] = [
    "ld-linux-x86-64.so.2",
    "libc.so.6",
    "libm.so.6",
    "libmvec.so.1",
    "libpthread.so.0",
    "libdl.so.2",
    "librt.so.1",
    "libresolv.so.2",
    "libutil.so.1",
    "libanl.so.1",
    "libnss_files.so.2",
    "libnss_dns.so.2",
    "libnss_compat.so.2",
    "libgcc_s.so.1",
];

/// Where a Debian tree keeps its own.
const TREE_FOLDER: &str = "usr/lib/x86_64-linux-gnu";

/// Makes `vmnat` start below `root`, with this machine's C library where the tree's is too old for it.
///
/// # Errors
///
/// When it starts with neither.
pub(super) fn lend_if_needed(root: &Path) -> Result<()> {
    let Err(complaint) = try_vmnat(root)? else { return Ok(()) };
    ensure!(complaint.contains("GLIBC_"), "vmnat does not start in the machine's tree: {complaint}");
    lend(root, Path::new("/"))
}

/// Lends the programs below `root` the C library of `other`, which is newer.
///
/// # Errors
///
/// When `vmnat` does not start with it.
pub(super) fn lend(root: &Path, other: &Path) -> Result<()> {
    for part in PARTS {
        let Some(ours) = find(part, other) else { continue };
        let theirs = root.join(TREE_FOLDER).join(part);
        if !theirs.exists() {
            File::create(&theirs).with_context(|| theirs.display().to_string())?;
        }
        mount(Some(&ours), &theirs, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .with_context(|| format!("lending {} to the tree", ours.display()))?;
    }
    match try_vmnat(root)? {
        Ok(()) => Ok(()),
        Err(complaint) => bail!(
            "vmnat does not start in the machine's tree, not even with the C library of {}: {complaint}",
            other.display()
        ),
    }
}

/// Where `root` has a part of the C library.
fn find(part: &str, root: &Path) -> Option<PathBuf> {
    let paths = FOLDERS.iter().map(|folder| root.join(folder).join(part));
    paths.into_iter().find_map(|path| fs::canonicalize(path).ok())
}

/// Whether `vmnat` starts below `root`, or what it says instead.
fn try_vmnat(root: &Path) -> Result<Result<(), String>> {
    let mut command = Command::new("chroot");
    command.arg(root).args(["/usr/local/bin/vmnat", "--version"]).stdin(Stdio::null());
    let output = command.output().context("cannot start chroot")?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Ok(if output.status.success() { Ok(()) } else { Err(said) })
}
