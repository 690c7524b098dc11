//! The one kernel setting that guests need: `forwarding` of their bridge.
//!
//! The fib lookup of the programs, and the kernel's own answers (time exceeded, too big), ask for it. Nothing else
//! is touched, `ip_forward` least of all: writing that would change every interface of the host.

use std::collections::HashSet;

use super::Reconciled;
use crate::{
    facts::Facts,
    state::{State, SysctlRecord},
    sysctl::{self, Change, Restored},
};

const IP_FORWARD: &str = "net/ipv4/ip_forward";

const ON: &str = "1";

/// Puts `forwarding` on record for each bridge that has it off, and back on interfaces that are no bridges of ours any
/// more. Nothing is turned on yet: until the hooks stand, the kernel would forward guests' packets as they are.
pub(super) fn survey(state: &mut State, facts: &Facts, done: &mut Reconciled) {
    let bridges: Vec<_> = state.bridges.iter().filter_map(|bridge| facts.link(&bridge.name)).collect();
    let (kept, former): (Vec<_>, Vec<_>) = std::mem::take(&mut state.sysctls)
        .into_iter()
        .partition(|record| bridges.iter().any(|bridge| bridge.index == record.ifindex));
    state.sysctls = kept;
    for record in former {
        match restore(&record, facts.link_at(record.ifindex).is_some()) {
            Ok(line) => done.changes.extend(line),
            Err(error) => done.failures.push(error),
        }
    }
    let ip_forward = sysctl::read(IP_FORWARD).unwrap_or_default();
    for bridge in bridges {
        let path = format!("net/ipv4/conf/{}/forwarding", bridge.name);
        // Where it is on record already, what it was at first is what `down` restores.
        let is_known = state.sysctls.iter().any(|record| record.ifindex == bridge.index);
        match sysctl::read(&path) {
            Ok(before) if before != ON && !is_known => {
                let change = Change { path, before, after: ON.into() };
                let ip_forward = ip_forward.clone();
                state.sysctls.push(SysctlRecord { change, ifindex: bridge.index, ip_forward });
            }
            Ok(_) => {}
            Err(error) => done.failures.push(error),
        }
    }
}

/// Turns on what is on record. Only once every hook stands: the guard first of all.
pub(super) fn turn_on(state: &State, done: &mut Reconciled) {
    for record in &state.sysctls {
        match sysctl::apply(&record.change.path, &record.change.after) {
            Ok(None) => {}
            Ok(Some(change)) => {
                done.changes.push(format!("set {} from {} to {}", change.path, change.before, change.after));
            }
            Err(error) => done.failures.push(error),
        }
    }
}

/// Indices of the bridges from which the host forwards nothing on its own.
pub(super) fn closed(state: &State) -> HashSet<u32> {
    let closed = state.sysctls.iter().filter(|record| !opened_since(record));
    closed.map(|record| record.ifindex).collect()
}

/// Puts a setting back; a line on what came of it, and none where it went with its interface.
///
/// # Errors
/// When the kernel refuses.
pub fn restore(record: &SysctlRecord, exists: bool) -> anyhow::Result<Option<String>> {
    let change = &record.change;
    if !exists {
        return Ok(None);
    }
    if opened_since(record) {
        return Ok(Some(format!("left {} at 1: ip_forward was turned on meanwhile", change.path)));
    }
    Ok(match sysctl::restore(change)? {
        Restored::Restored => Some(format!("set {} back to {}", change.path, change.before)),
        Restored::Gone => None,
        Restored::Foreign(value) => Some(format!("left {} at {value}, which vmnat did not set", change.path)),
    })
}

/// True when somebody turned on `ip_forward` after us, which opens every interface.
fn opened_since(record: &SysctlRecord) -> bool {
    record.ip_forward == "0" && sysctl::read(IP_FORWARD).is_ok_and(|value| value == "1")
}
