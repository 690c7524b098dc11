//! What one guest may take of what all share, so that none can starve the others.
//!
//! Counts are kept with the guest's address, changed when flows are opened and removed, never per packet. They are atomic
//! additions; the comparison before may let a few too many through when several CPUs open at once.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use vmnat_common::{
    Address, Outcome,
    quota::{Bucket, Guest, ROOM},
    session::{Flags, Session},
    tcp_state::flag,
};

use crate::{maps::GUEST, settings};

/// Whether the guest may open one more flow with a segment of these flags; zero for other protocols than TCP.
#[inline(always)]
pub fn check(guest: Address, tcp_flags: u8) -> Result<(), Outcome> {
    checked(guest, opens_half(tcp_flags) != 0, false)
}

/// The same, and counts the flow at once: one look-up instead of two. Who then cannot open it gives it back ([`release`]).
#[inline(always)]
pub fn take(guest: Address, tcp_flags: u8) -> Result<(), Outcome> {
    checked(guest, opens_half(tcp_flags) != 0, true)
}

#[inline(never)]
fn checked(guest: Address, is_half_open: bool, counts: bool) -> Result<(), Outcome> {
    let settings = settings::get()?;
    let Some(own) = of(guest) else { return Ok(()) };
    let quotas = settings.quotas;
    if quotas.flows != 0 && own.flows >= quotas.flows.cast_signed() {
        own.refused_flows = own.refused_flows.wrapping_add(1);
        return Err(Outcome::FlowQuota);
    }
    if is_half_open && quotas.half_open != 0 && own.half_open >= quotas.half_open.cast_signed() {
        own.refused_half_open = own.refused_half_open.wrapping_add(1);
        return Err(Outcome::HalfOpenQuota);
    }
    let bucket = Bucket { rate: quotas.rate, burst: quotas.burst };
    if !own.opening.take(bucket, settings::jiffies() as u32, settings.hertz) {
        own.refused_rate = own.refused_rate.wrapping_add(1);
        return Err(Outcome::RateQuota);
    }
    if counts {
        count_on(own, is_half_open, 1);
    }
    Ok(())
}

/// The flag of the half whose direction opens a flow with this segment, while the handshake is not complete.
#[inline(always)]
pub const fn opens_half(tcp_flags: u8) -> u8 {
    if tcp_flags & (flag::SYN | flag::ACK) == flag::SYN { Flags::HALF_OPEN } else { 0 }
}

/// Counts a flow that was opened.
#[inline(never)]
pub fn count(guest: Address, is_half_open: bool) -> u32 {
    if let Some(own) = of(guest) {
        count_on(own, is_half_open, 1);
    }
    0
}

/// Gives a flow back that has ended.
#[inline(never)]
pub fn release(guest: Address, is_half_open: bool) -> u32 {
    // SAFETY: as in `of`.
    if let Some(own) = GUEST.get_ptr_mut(guest).map(|own| unsafe { &mut *own }) {
        count_on(own, is_half_open, -1);
    }
    0
}

/// Notes a segment in the direction of who opened the flow: the first that acknowledges completes the handshake.
#[inline(always)]
pub fn follow(session: &mut Session, guest: Address, tcp_flags: u8) {
    if session.flags & Flags::HALF_OPEN != 0 && tcp_flags & (flag::SYN | flag::ACK) == flag::ACK {
        session.flags &= !Flags::HALF_OPEN;
        complete(guest);
    }
}

#[inline(never)]
fn complete(guest: Address) -> u32 {
    // SAFETY: as in `of`.
    if let Some(own) = GUEST.get_ptr_mut(guest).map(|own| unsafe { &mut *own }) {
        add(&mut own.half_open, -1);
    }
    0
}

/// True when the guest, or the world under the unspecified address, may send one more packet into the quiet room.
#[inline(always)]
pub fn admits_to_room(guest: Address) -> bool {
    let Ok(settings) = settings::get() else { return false };
    of(guest).is_none_or(|own| own.room.take(ROOM, settings::jiffies() as u32, settings.hertz))
}

/// True when the guest was not told of a refusal in this very tick of the clock.
#[inline(always)]
pub fn may_be_told(guest: Address) -> bool {
    let now = settings::jiffies() as u32;
    match of(guest) {
        Some(own) if own.told == now => false,
        Some(own) => {
            own.told = now;
            true
        }
        None => false,
    }
}

/// What a guest has taken; where there is no room to keep it, there is no quota.
#[inline(always)]
fn of(guest: Address) -> Option<&'static mut Guest> {
    let own = GUEST.get_ptr_mut(guest).or_else(|| {
        let fresh = Guest { told: (settings::jiffies() as u32).wrapping_sub(1), ..NOBODY };
        let _ = GUEST.insert(guest, fresh, u64::from(aya_ebpf::bindings::BPF_NOEXIST));
        GUEST.get_ptr_mut(guest)
    });
    // SAFETY: the kernel keeps the element readable and writable for the program's run. Buckets and refusals that two CPUs
    // change at once may lose a token or a count.
    own.map(|own| unsafe { &mut *own })
}

const NOBODY: Guest = Guest {
    flows: 0,
    half_open: 0,
    opening: vmnat_common::quota::Level { taken: 0, since: 0 },
    room: vmnat_common::quota::Level { taken: 0, since: 0 },
    refused_flows: 0,
    refused_half_open: 0,
    refused_rate: 0,
    told: 0,
};

#[inline(always)]
fn count_on(own: &mut Guest, is_half_open: bool, by: i32) {
    add(&mut own.flows, by);
    if is_half_open {
        add(&mut own.half_open, by);
    }
}

#[inline(always)]
fn add(count: &mut i32, by: i32) {
    // SAFETY: the reference is to a map's element, which the kernel keeps for the program's run.
    unsafe { atomic_xadd::<i32, i32, { AtomicOrdering::Relaxed }>(&raw mut *count, by) };
}
