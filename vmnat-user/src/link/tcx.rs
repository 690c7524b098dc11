//! Hooks as pinned tcx links (Linux 6.6 and later).

use std::{
    collections::HashMap,
    fs, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use aya::programs::{
    LinkOrder, SchedClassifier,
    links::{FdLink, PinnedLink},
    tc::TcAttachOptions,
};

use super::{Hook, Synced, admit};
use crate::{
    dataplane::{heritage, program},
    paths::Instance,
    rawbpf::{self, TcxLink},
    state::State,
};

/// A pinned link.
struct Pinned {
    path: PathBuf,
    link: TcxLink,
    wanted: bool,
}

pub(super) fn sync(instance: &Instance, state: &State, wanted: &[Hook]) -> Result<Synced> {
    let mut pinned = pinned_in_order(instance)?;
    let mut synced = Synced::default();
    let mut programs = HashMap::new();
    for hook in wanted {
        let done = program_of(instance, hook.program, &mut programs)
            .and_then(|(program, id)| settle(instance, state, hook, program, id, &mut pinned));
        match done.with_context(|| format!("attach {hook}")) {
            Ok(change) => synced.changes.extend(change),
            Err(error) => {
                synced.failures.push(error);
                synced.missing.push(hook.clone());
            }
        }
    }
    for stale in pinned.iter().filter(|stale| !stale.wanted) {
        match fs::remove_file(&stale.path) {
            Ok(()) => synced.changes.push(format!("detached {}", label(&stale.path))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => synced.failures.push(anyhow::anyhow!("remove {}: {error}", stale.path.display())),
        }
    }
    Ok(synced)
}

pub(super) fn detach_all(instance: &Instance) -> Synced {
    let mut synced = Synced::default();
    let pinned = match pinned_in_order(instance) {
        Ok(pinned) => pinned,
        Err(error) => {
            synced.failures.push(error);
            return synced;
        }
    };
    for Pinned { path, .. } in pinned {
        match fs::remove_file(&path) {
            Ok(()) => synced.changes.push(format!("detached {}", label(&path))),
            Err(error) => synced.failures.push(anyhow::anyhow!("remove {}: {error}", path.display())),
        }
    }
    synced
}

/// Makes one hook what it should be; tells what was changed.
fn settle(
    instance: &Instance,
    state: &State,
    hook: &Hook,
    program: &mut SchedClassifier,
    id: u32,
    pinned: &mut [Pinned],
) -> Result<Option<String>> {
    let path = instance.link(&hook.interface, hook.point.name());
    let same = |found: &&mut Pinned| {
        found.link.ifindex == hook.ifindex && found.link.attach_type == hook.point.tcx() as u32
    };
    if let Some(found) = pinned.iter_mut().find(same) {
        found.wanted = true;
        if found.path != path {
            fs::rename(&found.path, &path)
                .with_context(|| format!("rename the pin to {}", path.display()))?;
        }
        if found.link.program == id {
            return Ok(None);
        }
        replace(program, &path)?;
        return Ok(Some(format!("replaced {hook}")));
    }
    admit(instance, state, std::slice::from_ref(hook))?;
    // Severed: the interface was deleted and made again.
    let severed = pinned.iter_mut().find(|found| found.path == path);
    if let Some(severed) = severed {
        severed.wanted = true;
        fs::remove_file(&path).with_context(|| format!("remove the severed link {}", path.display()))?;
    }
    create(program, hook, &path)?;
    Ok(Some(format!("attached {hook}")))
}

fn create(program: &mut SchedClassifier, hook: &Hook, path: &Path) -> Result<()> {
    let options = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program.attach_with_options(&hook.interface, hook.point.attach_type(), options)?;
    let link: FdLink = program.take_link(id)?.try_into()?;
    link.pin(path).with_context(|| format!("pin {}", path.display()))?;
    Ok(())
}

/// Puts a program under a running link; the link keeps its pin.
fn replace(program: &mut SchedClassifier, path: &Path) -> Result<()> {
    let link: FdLink = PinnedLink::from_pin(path)?.into();
    let id = program.attach_to_link(link.try_into()?)?;
    drop(program.take_link(id)?);
    Ok(())
}

/// The links that the instance has pinned, in the order in which they are detached: ports and bridges, then what
/// lets packets in from the world, and the guard last.
fn pinned_in_order(instance: &Instance) -> Result<Vec<Pinned>> {
    let mut pinned = pinned(instance)?;
    let mut schemas = heritage::others(instance).unwrap_or_default();
    schemas.push(instance.schema_pins());
    let last = [program::INBOUND, program::GUARD].map(|name| {
        let ids = schemas.iter().map(|schema| id_at(&schema.join("progs").join(name)));
        ids.flatten().collect::<Vec<u32>>()
    });
    pinned.sort_by_key(|pinned| {
        last.iter().position(|ids| ids.contains(&pinned.link.program)).map_or(0, |n| n.saturating_add(1))
    });
    Ok(pinned)
}

/// The links that the instance has pinned, those of other versions too.
fn pinned(instance: &Instance) -> Result<Vec<Pinned>> {
    let mut directories = vec![instance.links()];
    let others = heritage::others(instance).with_context(|| format!("read {}", instance.pins().display()))?;
    directories.extend(others.into_iter().map(|schema| schema.join("links")));
    let mut pinned = Vec::new();
    for directory in directories {
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("read {}", directory.display())),
        };
        for entry in entries {
            let path = entry?.path();
            let fd = rawbpf::object_get(&path).with_context(|| format!("open {}", path.display()))?;
            let link = rawbpf::tcx_link(fd.as_fd()).with_context(|| format!("ask for {}", path.display()))?;
            pinned.push(Pinned { path, link, wanted: false });
        }
    }
    Ok(pinned)
}

/// A pinned program, opened once.
fn program_of<'a>(
    instance: &Instance,
    name: &'static str,
    programs: &'a mut HashMap<&'static str, (SchedClassifier, u32)>,
) -> Result<(&'a mut SchedClassifier, u32)> {
    if !programs.contains_key(name) {
        let program = SchedClassifier::from_pin(instance.program(name))?;
        programs.insert(name, (program, id_of(instance, name)?));
    }
    let (program, id) = programs.get_mut(name).context("the program was just opened")?;
    Ok((program, *id))
}

fn id_of(instance: &Instance, name: &str) -> Result<u32> {
    Ok(id_at(&instance.program(name))?)
}

fn id_at(pin: &Path) -> io::Result<u32> {
    rawbpf::program_id(rawbpf::object_get(pin)?.as_fd())
}

/// A pin's name as an operator knows it.
fn label(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().replace("%2e", ".").replace("%25", "%");
    match name.rsplit_once('-') {
        Some((interface, point)) => format!("{point} of {interface}"),
        None => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_told_as_hook_and_interface() {
        let path = Instance::default().link("br-lan.5", "ingress");
        assert_eq!(label(&path), "ingress of br-lan.5");
    }
}
