//! The sentry: looks whether those stand at the hooks who stood there after the last reconcile. tcx announces neither a program
//! that somebody adds nor a link that is detached by force, and a question a hook costs next to nothing.

use crate::{
    link::{Hook, Point},
    rawbpf::{self, TcxEntry},
};

/// A hook, and who stood there.
type Seen = (u32, Point, Vec<TcxEntry>);

/// What stood at each hook.
#[derive(Debug, Default)]
pub(super) struct Sentry {
    seen: Vec<Seen>,
}

impl Sentry {
    /// Takes what is there now for granted.
    pub(super) fn learn(&mut self, hooks: &[Hook]) {
        self.seen = hooks.iter().map(|hook| look(hook.ifindex, hook.point)).collect();
    }

    /// True where somebody has come or gone.
    pub(super) fn has_moved(&self) -> bool {
        self.seen.iter().any(|seen| look(seen.0, seen.1) != *seen)
    }
}

/// Who stands at a hook; nobody where the kernel has no tcx, or the interface has gone.
fn look(ifindex: u32, point: Point) -> Seen {
    (ifindex, point, rawbpf::query_tcx(ifindex, point.tcx()).unwrap_or_default())
}
