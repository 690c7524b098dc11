//! Disks for a machine: file systems made from folders.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

/// Makes a disk of `mebibytes` with the content of `folder`.
///
/// # Errors
///
/// When mke2fs is missing, or the folder does not fit.
pub(super) fn make(path: &Path, folder: &Path, mebibytes: u32) -> Result<()> {
    let next = path.with_extension("next");
    let _ = fs::remove_file(&next);
    let mut mke2fs = Command::new("mke2fs");
    // No journal: a machine's writes end with it.
    mke2fs.args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-N", "200000", "-d"]);
    mke2fs.arg(folder).arg(&next).arg(format!("{mebibytes}M"));
    let output = mke2fs.output().context("mke2fs: `apt-get install e2fsprogs`")?;
    ensure!(
        output.status.success(),
        "mke2fs of {}: {}",
        folder.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    fs::rename(&next, path).with_context(|| format!("make {}", path.display()))
}

/// The disk of a folder that does not change, made the first time that it is asked for, beside the folder.
///
/// # Errors
///
/// As [`make`].
pub(super) fn kept(folder: &Path, mebibytes: u32) -> Result<PathBuf> {
    let path = folder.with_extension("ext4");
    let made = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    if made(&path).is_none() || made(&path) < made(folder) {
        make(&path, folder, mebibytes)?;
    }
    Ok(path)
}
