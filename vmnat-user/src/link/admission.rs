//! Whether a program may stand at a hook: not where another instance's does already, and not where it could not.

use std::{collections::HashSet, fs, os::fd::AsFd as _, path::Path};

use super::{Hook, Point};
use crate::{
    dataplane::program,
    error::Error,
    facts,
    paths::{BPF_FS, Instance},
    rawbpf,
    state::{HookMode, State},
};

/// An instance, and the kernel's numbers of its programs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Owner {
    instance: String,
    programs: HashSet<u32>,
}

/// Refuses hooks that this instance cannot have; those that it has already are left in peace.
///
/// # Errors
/// [`Error::Taken`], which names who is in the way.
pub fn admit(instance: &Instance, state: &State, hooks: &[Hook]) -> Result<(), Error> {
    let owners = owners();
    // A bridge is named rather than its ports.
    let is_port = |hook: &&Hook| hook.program == program::OUTBOUND_PORT;
    for hook in hooks.iter().filter(|hook| !is_port(hook)).chain(hooks.iter().filter(is_port)) {
        let present = programs_at(hook);
        if let Some(holder) = foreign(&owners, instance.name(), &present) {
            return Err(held(hook, holder));
        }
        let attached = state.filters.iter().any(|own| own.ifindex == hook.ifindex && own.point == hook.point);
        let needs_clsact = state.hook == HookMode::Clsact && hook.point == Point::Egress;
        if needs_clsact && !attached && facts::has_plain_ingress(hook.ifindex).unwrap_or(false) {
            return Err(no_egress(hook));
        }
    }
    Ok(())
}

/// The instance other than `own` whose program stands at a hook, unless one of `own` does.
fn foreign<'a>(owners: &'a [Owner], own: &str, present: &[u32]) -> Option<&'a str> {
    let stands = |owner: &&Owner| present.iter().any(|program| owner.programs.contains(program));
    let mut found = owners.iter().filter(stands).map(|owner| owner.instance.as_str());
    let first = found.next()?;
    (first != own && found.all(|other| other != own)).then_some(first)
}

fn held(hook: &Hook, holder: &str) -> Error {
    let option = holder.parse().map(|instance: Instance| instance.option()).unwrap_or_default();
    Error::Taken {
        what: format!("interface {}", hook.interface),
        holder: format!("instance \"{holder}\""),
        hint: format!(
            ": add bridges and uplinks to that one with `vmnat{option} up`, or take it down first with `vmnat{option} down`"
        ),
    }
}

fn no_egress(hook: &Hook) -> Error {
    let interface = &hook.interface;
    Error::Taken {
        what: format!("the place of the clsact queueing discipline on uplink {interface}"),
        holder: "an `ingress` one, which has no egress".into(),
        hint: format!(
            ", where vmnat's guard must stand: replace it (`tc qdisc del dev {interface} ingress`, `tc qdisc add dev {interface} clsact`, which takes the same filters), or use tcx (Linux 6.6 and later)"
        ),
    }
}

/// The kernel's numbers of the programs at a hook, attached by tcx or as filters.
fn programs_at(hook: &Hook) -> Vec<u32> {
    let tcx = rawbpf::query_tcx(hook.ifindex, hook.point.tcx()).unwrap_or_default();
    let filters = facts::filters(hook.ifindex, hook.point).unwrap_or_default();
    let filters = filters.into_iter().filter_map(|filter| filter.program_id);
    tcx.into_iter().map(|entry| entry.program).chain(filters).collect()
}

/// Every instance whose pins are here, with its programs.
fn owners() -> Vec<Owner> {
    let pins = Path::new(BPF_FS).join("vmnat");
    let owner = |directory: &Path| {
        let schemas = entries(directory).into_iter();
        let programs = schemas.flat_map(|schema| entries(&schema.join("progs")));
        let id = |pin: &Path| rawbpf::program_id(rawbpf::object_get(pin)?.as_fd());
        let instance = directory.file_name()?.to_string_lossy().into_owned();
        Some(Owner { instance, programs: programs.filter_map(|pin| id(&pin).ok()).collect() })
    };
    entries(&pins).iter().filter_map(|directory| owner(directory)).collect()
}

fn entries(directory: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(instance: &str, programs: &[u32]) -> Owner {
        Owner { instance: instance.into(), programs: programs.iter().copied().collect() }
    }

    #[test]
    fn another_instance_at_a_hook_is_named() {
        let owners = [owner("lab", &[1, 2]), owner("default", &[3, 4])];
        assert_eq!(foreign(&owners, "lab", &[9, 3]), Some("default"));
        assert_eq!(foreign(&owners, "lab", &[9, 2]), None);
        assert_eq!(foreign(&owners, "lab", &[3, 1]), None, "its own program stands there already");
        assert_eq!(foreign(&owners, "third", &[9]), None);
    }

    #[test]
    fn refusals_name_who_is_in_the_way_and_what_to_do() {
        let hook = Hook::of_bridge("virbr0", 7);
        let text = held(&hook, "lab").to_string();
        assert!(text.contains("virbr0 is already taken by instance \"lab\""), "{text}");
        assert!(text.contains("`vmnat --instance lab down`"), "{text}");
        let text = no_egress(&hook).to_string();
        assert!(text.contains("tc qdisc del dev virbr0 ingress"), "{text}");
    }
}
