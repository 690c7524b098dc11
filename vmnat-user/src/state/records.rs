//! What `down` must put back: settings, filters, and how programs were attached.

use serde::{Deserialize, Serialize};

use crate::{link::Point, sysctl::Change};

/// How programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HookMode {
    /// Pinned tcx links (Linux 6.6).
    Tcx,
    /// Filters in a clsact queueing discipline.
    Clsact,
}

impl HookMode {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// A kernel setting that was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SysctlRecord {
    /// What was changed, and from what.
    pub change: Change,
    /// Index of the interface that it belongs to.
    pub ifindex: u32,
    /// `net.ipv4.ip_forward` at that moment.
    pub ip_forward: String,
}

/// A filter that was attached to a clsact queueing discipline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterRecord {
    /// Name of the interface.
    pub interface: String,
    /// Its index; a re-created interface has another.
    pub ifindex: u32,
    /// Which hook.
    pub point: Point,
    /// The filter's preference.
    pub priority: u16,
    /// The filter's handle.
    pub handle: u32,
    /// Name of the program.
    pub program: String,
    /// The kernel's number of the program.
    pub program_id: u32,
}
