//! The quiet room's ways out (see `vmnat_common::room`).

use aya_ebpf::programs::TcContext;
use vmnat_common::Outcome;

/// The program of the inner way out: what the world sent, in order and in size.
#[inline(always)]
pub fn inward(_ctx: &TcContext) -> Result<Outcome, Outcome> {
    Err(Outcome::Unmanaged)
}

/// The program of the outer way out: what guests sent, in order and in size.
#[inline(always)]
pub fn outward(_ctx: &TcContext) -> Result<Outcome, Outcome> {
    Err(Outcome::Unmanaged)
}
