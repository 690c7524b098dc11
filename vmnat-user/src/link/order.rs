//! Who stands ahead of vmnat at its hooks. Others may have reasons to, so they are told of and left alone; what they do not pass
//! on, vmnat does not see.

use std::os::fd::AsFd as _;

use super::{Hook, Point};
use crate::{
    facts::{self, Filter},
    paths::Instance,
    rawbpf,
    state::{HookMode, State},
};

/// A sentence for each hook of vmnat's at which others run first.
#[must_use]
pub fn overtaken(instance: &Instance, state: &State, hooks: &[Hook]) -> Vec<String> {
    let sentence = |hook: &Hook| {
        let ahead = match state.hook {
            HookMode::Tcx => before_link(instance, hook),
            HookMode::Clsact => before_filter(state, hook),
        };
        let Hook { interface, point, program, .. } = hook;
        let harm = match point {
            Point::Ingress => "what it keeps, vmnat does not translate",
            Point::Egress => "what it lets out, vmnat does not guard",
        };
        (!ahead.is_empty()).then(|| {
            let (ahead, point) = (ahead.join(", "), point.name());
            format!("{ahead} stands ahead of vmnat's {program} at {point} of {interface}: {harm}")
        })
    };
    hooks.iter().filter_map(sentence).collect()
}

/// The programs that run before vmnat's; none where it is not there.
fn before_link(instance: &Instance, hook: &Hook) -> Vec<String> {
    let own =
        rawbpf::object_get(&instance.program(hook.program)).and_then(|fd| rawbpf::program_id(fd.as_fd()));
    let Ok(own) = own else { return Vec::new() };
    let entries = rawbpf::query_tcx(hook.ifindex, hook.point.tcx()).unwrap_or_default();
    let Some(place) = entries.iter().position(|entry| entry.program == own) else { return Vec::new() };
    entries.iter().take(place).map(|entry| name(entry.program)).collect()
}

/// The filters that are asked before vmnat's, and tcx programs, which run before every filter.
fn before_filter(state: &State, hook: &Hook) -> Vec<String> {
    let is_own = |own: &&crate::state::FilterRecord| own.ifindex == hook.ifindex && own.point == hook.point;
    let Some(own) = state.filters.iter().find(is_own) else { return Vec::new() };
    let entries = rawbpf::query_tcx(hook.ifindex, hook.point.tcx()).unwrap_or_default();
    let filters = facts::filters(hook.ifindex, hook.point).unwrap_or_default();
    let ahead = |filter: &Filter| {
        let is_first = (filter.preference, filter.handle) < (own.priority, own.handle);
        is_first.then(|| format!("a {} filter of preference {}", filter.kind, filter.preference))
    };
    let programs = entries.iter().map(|entry| name(entry.program));
    programs.chain(filters.iter().filter_map(ahead)).collect()
}

fn name(program: u32) -> String {
    rawbpf::program_name(program)
        .map_or_else(|_| format!("program {program}"), |name| format!("program {name}"))
}
