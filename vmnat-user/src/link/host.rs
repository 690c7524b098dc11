//! The hooks of the host's own sockets: pinned links at the root of the cgroup2 hierarchy.
//!
//! They stand as long as there are port forwards. The programs look at the network namespace of each socket, so a root that
//! other namespaces share is the right place. A newer program is attached beside the old one and then takes over its pin: what
//! the first has led to a guest is no port forward to the second.

use std::{
    fs::{self, File},
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use aya::programs::{CgroupAttachMode, CgroupSockAddr, links::FdLink};

use crate::{
    dataplane::program::{self, HostProgram},
    paths::Instance,
    rawbpf,
};

/// Makes the hooks of the host's sockets stand, or not; a line for each change.
///
/// # Errors
/// When there is no cgroup2 hierarchy, or the kernel refuses.
pub fn sync_host(instance: &Instance, wanted: bool) -> Result<Vec<String>> {
    if !wanted {
        return detach(instance);
    }
    let Some(root) = cgroup_root() else {
        anyhow::bail!("no cgroup2 hierarchy is mounted here");
    };
    let mut changes = Vec::new();
    for host in &program::HOST {
        if !stands(instance, host) {
            attach(instance, host, &root).with_context(|| format!("attach {}", host.name))?;
            changes.push(format!("attached {} at {}", host.name, root.display()));
        }
    }
    Ok(changes)
}

/// True when the program that is loaded is the one whose link is pinned.
#[must_use]
pub fn stands(instance: &Instance, host: &HostProgram) -> bool {
    let own = rawbpf::object_get(&instance.program(host.name)).and_then(|fd| rawbpf::program_id(fd.as_fd()));
    let link = rawbpf::object_get(&pin(instance, host)).and_then(|fd| rawbpf::link_program(fd.as_fd()));
    matches!((own, link), (Ok(own), Ok(link)) if own == link)
}

/// Where the cgroup2 hierarchy is mounted.
#[must_use]
pub fn cgroup_root() -> Option<PathBuf> {
    root_in(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
}

fn attach(instance: &Instance, host: &HostProgram, root: &Path) -> Result<()> {
    let mut program = CgroupSockAddr::from_pin(instance.program(host.name), host.attach_type)?;
    let root = File::open(root).with_context(|| format!("open {}", root.display()))?;
    // Links of the kernel let others attach too, whatever the mode says; that one asks for no flags.
    let id = program.attach(root, CgroupAttachMode::Single)?;
    let link: FdLink = program.take_link(id)?.try_into()?;
    let pin = pin(instance, host);
    let next = pin.with_file_name(format!("{}-next", host.name));
    let _ = fs::remove_file(&next);
    link.pin(&next).with_context(|| format!("pin {}", next.display()))?;
    fs::rename(&next, &pin).with_context(|| format!("pin {}", pin.display()))
}

/// Removes the links; a line for each.
pub(super) fn detach(instance: &Instance) -> Result<Vec<String>> {
    let mut changes = Vec::new();
    for host in &program::HOST {
        let pin = pin(instance, host);
        match fs::remove_file(&pin) {
            Ok(()) => changes.push(format!("detached {}", host.name)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("remove {}", pin.display())),
        }
    }
    Ok(changes)
}

fn pin(instance: &Instance, host: &HostProgram) -> PathBuf {
    instance.host_links().join(host.name)
}

/// The mount point of the cgroup2 hierarchy in a `mountinfo` (proc(5)): the fifth field, where the type after the lone dash is
/// `cgroup2`. One that shows the whole hierarchy goes before one that shows a part.
fn root_in(mountinfo: &str) -> Option<PathBuf> {
    let mount = |line: &str| {
        let (fields, rest) = line.split_once(" - ")?;
        let mut fields = fields.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        rest.starts_with("cgroup2 ").then(|| (root != "/", PathBuf::from(point.replace("\\040", " "))))
    };
    mountinfo.lines().filter_map(mount).min_by_key(|(is_part, _)| *is_part).map(|(_, point)| point)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_hierarchy_is_found_among_the_mounts() {
        let unified = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";
        assert_eq!(root_in(unified), Some(PathBuf::from("/sys/fs/cgroup")));
        let mixed = "33 32 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                     35 32 0:31 /part /elsewhere rw - cgroup2 cgroup2 rw\n\
                     34 32 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(root_in(mixed), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(root_in("22 1 0:20 / / rw - ext4 /dev/vda rw"), None);
    }
}
