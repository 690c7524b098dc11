//! Control groups of a machine: all of its processes are in one of the test's own making, which goes with the machine.

use std::{
    fs::{self, File},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// Where the lab's own `/run` has the tree of control groups of version 2, which machines have at various places.
const PLACE: &str = "/run/groups";

/// What the groups are called, before the numbers of the test's process and of the machine.
const PREFIX: &str = "vmnat-host-";

/// A control group.
#[derive(Debug)]
pub(super) struct Group {
    path: PathBuf,
}

impl Group {
    /// Makes the group of machine `number` of this process, and removes those of tests that were killed.
    pub(super) fn new(number: u32) -> Result<Self> {
        let place = Path::new(PLACE);
        fs::create_dir_all(place).context(PLACE)?;
        match mount(Some("cgroup2"), place, Some("cgroup2"), MsFlags::empty(), None::<&str>) {
            // It is there from the lab's machine before.
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(error) => {
                return Err(error).context("control groups of version 2 (the kernel needs CONFIG_CGROUPS)");
            }
        }
        remove_leftovers(place);
        let path = place.join(format!("{PREFIX}{}-{number}", std::process::id()));
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Self { path })
    }

    /// The file by which a process joins the group, or one below it.
    pub(super) fn member(&self, below: &str) -> Result<OwnedFd> {
        let path = self.path.join(below).join("cgroup.procs");
        let file = File::options().write(true).open(&path);
        Ok(file.with_context(|| path.display().to_string())?.into())
    }

    /// What it is called.
    pub(super) fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The processes in it and below it.
    pub(super) fn processes(&self) -> Vec<u32> {
        processes_below(&self.path)
    }

    /// Removes the group and all below it, once its processes have ended.
    pub(super) fn remove(&self) {
        for _ in 0..50 {
            remove_below(&self.path);
            if !self.path.exists() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        eprintln!("the control group {} of a machine of the lab stays behind", self.path.display());
    }
}

/// The names of all groups at the top.
pub(super) fn names() -> Result<Vec<String>> {
    let look = || -> Result<Vec<String>> {
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).ok();
        mount(Some("cgroup2"), "/mnt", Some("cgroup2"), MsFlags::empty(), none).context("control groups")?;
        let entries = fs::read_dir("/mnt")?.flatten();
        Ok(entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
    };
    thread::scope(|scope| scope.spawn(look).join()).map_err(|_| anyhow::anyhow!("thread"))?
}

fn processes_below(path: &Path) -> Vec<u32> {
    let members = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    let mut found: Vec<u32> = members.lines().filter_map(|line| line.parse().ok()).collect();
    let entries = fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    found.extend(entries.filter(|path| path.is_dir()).flat_map(|path| processes_below(&path)));
    found
}

fn remove_leftovers(place: &Path) {
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|owner| !Path::new(&format!("/proc/{owner}")).exists()) {
            remove_below(&entry.path());
        }
    }
}

/// Removes a group's directory: its files are the kernel's and go with it.
fn remove_below(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_below(&entry.path());
        }
    }
    fs::remove_dir(path).ok();
}
