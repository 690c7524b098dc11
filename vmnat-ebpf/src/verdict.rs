//! The end of a packet's visit: counts its outcome and turns it into the kernel's return code.
//!
//! Only this file knows return codes. What is not vmnat's is passed with -1, which lets the next program of the
//! hook look at it (`TCX_NEXT`, and `TC_ACT_UNSPEC` for clsact); 0 would hide it from them.

use aya_ebpf::{
    bindings::{TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC},
    programs::TcContext,
};
use aya_log_ebpf::debug;
use vmnat_common::{Outcome, outcome::Kind, settings::Settings};

use crate::{maps::OUTCOMES, parse};

/// Lets the kernel go on with the packet.
pub const PASS: i32 = TC_ACT_UNSPEC;

/// A mark that one hook leaves for another in `tc_index`, which survives the bridge and redirects (measured on 6.18).
/// `skb->mark` would not do: firewalls rewrite it and policy routing reads it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Mark(u16);

impl Mark {
    /// A port's hook has passed the packet, so the bridge's hook does not count it again. Who forges it (a container's owner
    /// can, on its way to a port without a hook) gains nothing: the guard drops whatever would leave untranslated.
    pub const JUDGED: Self = Self(0x564d);

    /// The packet was translated: the guard need not look at its source, nor take it for the host's own. Part of the
    /// loader's secret, since who could forge it would pass the guard.
    #[inline(always)]
    pub const fn translated(settings: &Settings) -> Self {
        Self((settings.secret[1] >> 16) as u16 | 1)
    }

    /// The quiet room has put the host's own datagram in order, so it does not go there again. Even, and so never the other.
    #[inline(always)]
    pub const fn ordered(settings: &Settings) -> Self {
        Self(settings.secret[1] as u16 & !1 | 2)
    }
}

/// Leaves a mark.
#[inline(always)]
pub fn leave(ctx: &TcContext, mark: Mark) {
    // SAFETY: the context is valid for the program's run, and the kernel lets tc programs write `tc_index`.
    unsafe { core::ptr::write_volatile(&raw mut (*ctx.skb.skb).tc_index, u32::from(mark.0)) };
}

/// True when that mark was left.
#[inline(always)]
pub fn finds(ctx: &TcContext, mark: Mark) -> bool {
    // SAFETY: the context is valid for the program's run.
    unsafe { core::ptr::read_volatile(&raw const (*ctx.skb.skb).tc_index) == u32::from(mark.0) }
}

/// Counts the outcome and returns the kernel's code.
#[inline(always)]
pub fn settle(ctx: &TcContext, result: Result<Outcome, Outcome>) -> i32 {
    let (Ok(outcome) | Err(outcome)) = result;
    count(outcome);
    match outcome.kind() {
        // A stage that forwards has called a redirect helper, which leaves the target with this CPU.
        Kind::Forwarded => TC_ACT_REDIRECT,
        Kind::Passed => PASS,
        Kind::Dropped => {
            log(ctx, outcome);
            TC_ACT_SHOT
        }
    }
}

/// Counts the outcome of a hook on the guests' side, and marks what it passes: at a port so that the bridge's hook leaves it
/// alone, at both so that no forged mark goes on.
#[inline(always)]
pub fn settle_outbound(ctx: &TcContext, result: Result<Outcome, Outcome>) -> i32 {
    let code = settle(ctx, result);
    if code == PASS {
        leave(ctx, Mark::JUDGED);
    }
    code
}

/// Counts the outcome of a hook at a port of an uplink that is a bridge, and marks what it passes to that bridge, so that the
/// bridge's hook does not count it again. Frames for other stations go on as they came.
#[inline(always)]
pub fn settle_inbound(ctx: &TcContext, result: Result<Outcome, Outcome>) -> i32 {
    if result == Err(Outcome::Bridged) { settle(ctx, result) } else { settle_outbound(ctx, result) }
}

#[inline(always)]
fn count(outcome: Outcome) {
    if let Some(counter) = OUTCOMES.get_ptr_mut(outcome.index()) {
        // SAFETY: the slot is this CPU's own, and programs of one CPU do not interrupt each other here.
        unsafe { *counter = (*counter).wrapping_add(1) };
    }
}

/// Tells the log of a drop. The loader fixes the level before it loads; while it is off, as it is by default, the verifier
/// removes the body.
#[inline(never)]
fn log(ctx: &TcContext, outcome: Outcome) {
    debug!(ctx, "dropped: outcome {} at interface {}", outcome.index(), parse::interface(ctx));
}
