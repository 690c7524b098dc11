//! Hooks: programs attached to interfaces, by pinned tcx links or by filters in a clsact queueing discipline.
//!
//! [`sync`] makes the hooks what they should be and touches nothing that is right already. A tcx link is known by
//! the interface index that the kernel reports for it: 0 means severed, because the interface was deleted (and
//! perhaps made again under its old name). A newer program goes under a running link in one step
//! (`BPF_LINK_UPDATE`). Filters outlive the process by themselves and cannot be pinned, so their preference and
//! handle are kept in the state; a queueing discipline that vmnat did not add is never removed.

mod admission;
mod clsact;
mod host;
mod tcx;

use std::fmt;

use anyhow::Result;
use aya::programs::TcAttachType;
use rtnetlink::Handle;
use serde::{Deserialize, Serialize};

pub use self::{
    admission::admit,
    clsact::own_programs,
    host::{cgroup_root, stands, sync_host},
};
use crate::{
    dataplane::program,
    facts::LinkFact,
    paths::Instance,
    rawbpf::{self, TcxPoint},
    state::{HookMode, State},
};

/// Which hook of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Point {
    /// Packets that come in by the interface.
    Ingress,
    /// Packets that leave by it.
    Egress,
}

impl Point {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    /// As `bpf(2)` names it.
    #[must_use]
    pub const fn tcx(self) -> TcxPoint {
        match self {
            Self::Ingress => TcxPoint::Ingress,
            Self::Egress => TcxPoint::Egress,
        }
    }

    const fn attach_type(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }
}

/// A program that shall stand at a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// Name of the interface.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// Which hook of it.
    pub point: Point,
    /// Name of the program.
    pub program: &'static str,
}

impl Hook {
    /// The hook at which nothing leaves an interface with a guest's source.
    #[must_use]
    pub fn guard(link: &LinkFact) -> Self {
        let program = if link.bare { program::GUARD_BARE } else { program::GUARD };
        Self { interface: link.name.clone(), ifindex: link.index, point: Point::Egress, program }
    }

    /// The hooks of an uplink: the guard stands before the first packet is let in.
    #[must_use]
    pub fn of_uplink(link: &LinkFact) -> [Self; 2] {
        let program = match link {
            LinkFact { bare: true, .. } => program::INBOUND_BARE,
            LinkFact { is_bridge: true, .. } => program::INBOUND_BRIDGE,
            _ => program::INBOUND,
        };
        let inbound =
            Self { interface: link.name.clone(), ifindex: link.index, point: Point::Ingress, program };
        [Self::guard(link), inbound]
    }

    /// The hook of a port of an uplink that is a bridge.
    #[must_use]
    pub fn of_uplinks_port(interface: &str, ifindex: u32) -> Self {
        let program = program::INBOUND_PORT;
        Self { interface: interface.to_owned(), ifindex, point: Point::Ingress, program }
    }

    /// The hook of a bridge.
    #[must_use]
    pub fn of_bridge(interface: &str, ifindex: u32) -> Self {
        let program = program::OUTBOUND_BRIDGE;
        Self { interface: interface.to_owned(), ifindex, point: Point::Ingress, program }
    }

    /// The hook of a bridge's port.
    #[must_use]
    pub fn of_port(interface: &str, ifindex: u32) -> Self {
        let program = program::OUTBOUND_PORT;
        Self { interface: interface.to_owned(), ifindex, point: Point::Ingress, program }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {} of {}", self.program, self.point.name(), self.interface)
    }
}

/// What [`sync`] did.
#[derive(Debug, Default)]
pub struct Synced {
    /// A line for each change.
    pub changes: Vec<String>,
    /// What could not be done.
    pub failures: Vec<anyhow::Error>,
    /// The hooks that do not stand.
    pub missing: Vec<Hook>,
}

/// Finds out whether the kernel has tcx, by asking who stands at the loopback's hook.
#[must_use]
pub fn kernel_mode() -> HookMode {
    const LOOPBACK: u32 = 1;
    match rawbpf::query_tcx(LOOPBACK, TcxPoint::Ingress) {
        Ok(_) => HookMode::Tcx,
        Err(_) => HookMode::Clsact,
    }
}

/// Makes the hooks those that are wanted: attaches what is missing, in the given order, and then detaches what
/// is not wanted.
///
/// # Errors
/// When the pins cannot be read; what fails at one interface is in [`Synced::failures`].
pub async fn sync(
    instance: &Instance,
    handle: &Handle,
    state: &mut State,
    wanted: &[Hook],
) -> Result<Synced> {
    match state.hook {
        HookMode::Tcx => tcx::sync(instance, state, wanted),
        HookMode::Clsact => clsact::sync(instance, handle, state, wanted).await,
    }
}

/// Puts on record, before [`sync`], the queueing disciplines that it will add.
pub fn foresee(state: &mut State, wanted: &[Hook]) {
    if state.hook == HookMode::Clsact {
        clsact::foresee(state, wanted);
    }
}

/// Detaches everything, ports first and uplinks last; returns a line for each interface, and what failed.
pub async fn detach_all(instance: &Instance, handle: &Handle, state: &mut State) -> Synced {
    let mut synced = tcx::detach_all(instance);
    match host::detach(instance) {
        Ok(changes) => synced.changes.extend(changes),
        Err(error) => synced.failures.push(error),
    }
    let filters = clsact::detach_all(instance, handle, state).await;
    synced.changes.extend(filters.changes);
    synced.failures.extend(filters.failures);
    synced
}
