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

/// Makes a disk with the content of a folder that is little larger than it.
///
/// # Errors
///
/// As [`make`].
pub(super) fn around(path: &Path, folder: &Path) -> Result<()> {
    const MEBIBYTE: u64 = 1 << 20;
    // An eighth more, and some, for what a file system keeps of its files.
    let mebibytes = (size_of(folder)? / MEBIBYTE).saturating_mul(9) / 8 + 64;
    make(path, folder, u32::try_from(mebibytes)?)
}

/// The bytes of all files below a folder, each rounded up to a block.
fn size_of(folder: &Path) -> Result<u64> {
    const BLOCK: u64 = 4_096;
    let mut size = 0;
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        // Of a link itself, not of where it leads to.
        let metadata = entry.metadata()?;
        size +=
            if metadata.is_dir() { size_of(&entry.path())? } else { metadata.len().next_multiple_of(BLOCK) };
        size += BLOCK;
    }
    Ok(size)
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
