//! What must not grow with restarts: pins, maps, links and filters, processes, descriptors.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use vmnat_tests::lab::{Lab, wait_until};
use vmnat_user::rawbpf;

/// How often the agent is looked at for one count.
const LOOKS: u32 = 10;

/// The kernel's number of each pinned map, by name.
pub(super) fn map_ids() -> Result<BTreeMap<String, u32>> {
    let mut pins = BTreeMap::new();
    collect(Path::new("/sys/fs/bpf/vmnat/default"), &mut pins)?;
    let name = |path: PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(pins.into_iter().filter_map(|(path, id)| Some((name(path), id?))).collect())
}

/// A count of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Census {
    /// Each pin, and where it is a map's, the kernel's number of it.
    pins: BTreeMap<PathBuf, Option<u32>>,
    /// Programs of any kind at each hook.
    hooks: Vec<String>,
    processes: usize,
    descriptors: usize,
}

impl Census {
    pub(super) fn take(lab: &Lab) -> Result<Self> {
        let mut pins = BTreeMap::new();
        collect(Path::new("/sys/fs/bpf"), &mut pins)?;
        Ok(Self { pins, hooks: hooks(lab)?, processes: processes(lab)?, descriptors: descriptors(lab)? })
    }

    /// Asserts that all is as it was; an agent that has just begun may still be busy.
    pub(super) fn assert_same(&self, lab: &Lab) -> Result<()> {
        let same = || Ok(Self::take(lab)? == *self);
        let waited = wait_until("nothing has grown", Duration::from_secs(15), same);
        if waited.is_err() {
            let now = Self::take(lab)?;
            ensure!(now == *self, "before {self:#?}\nafter {now:#?}");
        }
        Ok(())
    }
}

impl Census {
    /// As [`Census::assert_same`], where maps were made anew in the place of others.
    pub(super) fn assert_same_but_for_maps(mut self, lab: &Lab) -> Result<()> {
        let now = Self::take(lab)?;
        for (path, id) in &mut self.pins {
            if id.is_some() {
                *id = now.pins.get(path).copied().flatten();
            }
        }
        self.assert_same(lab)
    }
}

fn collect(folder: &Path, pins: &mut BTreeMap<PathBuf, Option<u32>>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, pins)?;
            pins.insert(path, None);
        } else if folder.ends_with("maps") {
            let map = rawbpf::object_get(&path)?;
            pins.insert(path, Some(rawbpf::map_shape(map.as_fd())?.id));
        } else {
            pins.insert(path, None);
        }
    }
    Ok(())
}

fn hooks(lab: &Lab) -> Result<Vec<String>> {
    let mut hooks = Vec::new();
    for interface in ["virbr0", "vnet1", "vnet2", "enp3s0", "vmnat-in", "vmnat-out"] {
        let index = lab.host.interface(interface)?;
        for point in [rawbpf::TcxPoint::Ingress, rawbpf::TcxPoint::Egress] {
            let number = lab.host.run(|| rawbpf::query_tcx(index, point))?.len();
            hooks.push(format!("{interface} {point:?}: {number} at tcx"));
        }
        for point in ["ingress", "egress"] {
            let filters = lab.host.output(&["tc", "filter", "show", "dev", interface, point], "")?;
            let filters = String::from_utf8_lossy(&filters.stdout).into_owned();
            hooks.push(format!("{interface} {point}: {} filters", filters.matches(" handle ").count()));
        }
    }
    Ok(hooks)
}

/// Those in the host's network namespace.
fn processes(lab: &Lab) -> Result<usize> {
    let host = fs::read_link(lab.host.path())?;
    let all = fs::read_dir("/proc")?.flatten().map(|entry| entry.path().join("ns/net"));
    Ok(all.filter(|namespace| fs::read_link(namespace).is_ok_and(|namespace| namespace == host)).count())
}

/// Those of the agent, while it is at rest: at work it has a few more.
fn descriptors(lab: &Lab) -> Result<usize> {
    let folder = format!("/proc/{}/fd", lab.agent()?);
    let mut least = usize::MAX;
    for _ in 0..LOOKS {
        least = least.min(fs::read_dir(&folder)?.count());
        thread::sleep(Duration::from_millis(50));
    }
    Ok(least)
}
