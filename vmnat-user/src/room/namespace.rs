//! The room's network namespace: made on a thread of its own, and kept alive by a mount of its file, as iproute2 does
//! for the namespaces that it names.
//!
//! The mount stands in the mount namespace of whoever made the room. A command in another one (a service manager may
//! give the agent one of its own) finds a plain file there; removing that file takes the mount away everywhere
//! (`vfs_unlink()` and `detach_mounts()` of `fs/namei.c`).

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{fd::AsFd as _, unix::fs::OpenOptionsExt as _},
    path::Path,
    thread,
};

use anyhow::{Context as _, Result, anyhow};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::statfs::{FsType, statfs},
};

/// `NSFS_MAGIC` of `linux/magic.h`.
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

/// The calling thread's network namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// Makes a namespace, lets `furnish` work in it, and keeps it at `path`.
///
/// # Errors
/// When the kernel refuses one of the three.
pub(super) fn make<T: Send>(path: &Path, furnish: impl FnOnce() -> Result<T> + Send) -> Result<(File, T)> {
    on_a_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
        let made = furnish()?;
        keep(path).with_context(|| format!("mount it at {}", path.display()))?;
        Ok((File::open(OWN)?, made))
    })
}

/// Lets `work` run in a namespace.
///
/// # Errors
/// When the namespace cannot be entered, and those of `work`.
pub(super) fn inside<T: Send>(namespace: &File, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    on_a_thread(|| {
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).context("enter the room's namespace")?;
        work()
    })
}

/// The namespace that is kept at `path`; none when nothing is mounted there.
pub(super) fn find(path: &Path) -> Option<File> {
    is_mounted(path).then(|| File::open(path).ok())?
}

/// Lets the namespace at `path` go, and removes the file; true when there was one.
///
/// # Errors
/// What the file system answers.
pub(super) fn release(path: &Path) -> Result<bool> {
    while is_mounted(path) {
        umount2(path, MntFlags::MNT_DETACH).with_context(|| format!("unmount {}", path.display()))?;
    }
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("remove {}", path.display())),
    }
}

/// Namespaces belong to threads, and the runtime's must never change: netlink speaks for the caller's.
fn on_a_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("room".into()).spawn_scoped(scope, work)?;
        thread.join().map_err(|_| anyhow!("the thread in the room's namespace panicked"))?
    })
}

fn keep(path: &Path) -> Result<()> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600).open(path)?;
    mount(Some(OWN), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}

fn is_mounted(path: &Path) -> bool {
    statfs(path).is_ok_and(|info| info.filesystem_type() == NSFS_MAGIC)
}
