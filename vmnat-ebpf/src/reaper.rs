//! Removal: user space nominates, the reaper looks again and decides.
//!
//! Deciding in the kernel leaves an instant between the look and the removal instead of the time of two system calls.
//! A flow that is refreshed in that instant is opened again by its next packet, with the same mapping.

use core::ffi::c_void;

use aya_ebpf::{helpers::generated::bpf_loop, programs::TcContext};
use vmnat_common::{
    endpoint::Endpoint,
    flow::{FlowKey, Side},
    mapping::{End, Mapping, MappingKey},
    reap::{BATCH, COUNT_OFFSET, HEADER, MODE_OFFSET, Mode, Verdict},
    session::Session,
    settings::Settings,
    timeout::{Life, age},
};

use crate::{flow_table, maps::MAPPING, owner, session, settings};

/// Offset of the answer within a slot.
const ANSWER: usize = core::mem::offset_of!(FlowKey, reserved);

/// The letter in hand.
struct Letter<'a> {
    ctx: &'a TcContext,
    mode: Mode,
    now: u32,
    removed: i32,
}

/// Works through the letter; returns the number of removals.
#[inline(always)]
pub fn reap(ctx: &TcContext) -> i32 {
    let (Ok(mode), Ok(count)) = (ctx.load::<u8>(MODE_OFFSET), ctx.load::<u8>(COUNT_OFFSET)) else { return 0 };
    let Some(mode) = Mode::from_byte(mode) else { return 0 };
    let count = if usize::from(count) > BATCH { BATCH as u32 } else { u32::from(count) };
    let mut letter = Letter { ctx, mode, now: settings::jiffies() as u32, removed: 0 };
    // SAFETY: the callback has the helper's signature and gets the very letter that is passed here, which outlives
    // the call.
    unsafe { bpf_loop(count, answer as *const () as *mut c_void, (&raw mut letter).cast(), 0) };
    letter.removed
}

/// Decides about one key and writes the answer into its slot.
extern "C" fn answer(index: u32, letter: *mut c_void) -> i64 {
    // SAFETY: `reap` passes its own letter, and nothing else refers to it during the loop.
    let letter = unsafe { &mut *letter.cast::<Letter<'_>>() };
    let Ok(settings) = settings::get() else { return 1 };
    let slot = HEADER + (index as usize & (BATCH - 1)) * size_of::<FlowKey>();
    let verdict = decide(letter.ctx, slot, letter.mode, settings, letter.now);
    letter.removed += i32::from(verdict == Verdict::Removed);
    let _ = letter.ctx.store(slot + ANSWER, &(verdict as u16), 0);
    0
}

#[inline(always)]
fn decide(ctx: &TcContext, slot: usize, mode: Mode, settings: &Settings, now: u32) -> Verdict {
    if mode == Mode::Mapping {
        return match ctx.load::<MappingKey>(slot) {
            Ok(key) => mapping(&key, settings, now),
            Err(_) => Verdict::Absent,
        };
    }
    let Ok(mut key) = ctx.load::<FlowKey>(slot) else { return Verdict::Absent };
    key.reserved = 0;
    let Some(session) = session::find(&key) else { return Verdict::Absent };
    if key.side == Side::Guest as u8 {
        flow(&key, session, mode, settings, now)
    } else {
        uplink_half(&key, session, mode, settings, now)
    }
}

#[inline(always)]
fn flow(key: &FlowKey, session: &Session, mode: Mode, settings: &Settings, now: u32) -> Verdict {
    if mode == Mode::Expire && !has_expired(key, session, settings, now) {
        return Verdict::Kept;
    }
    if session::remove(key, session) { Verdict::Removed } else { Verdict::Absent }
}

#[inline(always)]
fn has_expired(key: &FlowKey, session: &Session, settings: &Settings, now: u32) -> bool {
    let back = session::find(&key.reverse(session.rewritten()));
    let (inbound_seen, is_answered, inbound_age) = match back {
        Some(back) => (back.tcp_seen, back.has_packets(), age(now, back.last_seen)),
        None => (0, false, u32::MAX),
    };
    let life = Life {
        protocol: key.protocol,
        remote_port: key.destination_port,
        outbound_seen: session.tcp_seen,
        inbound_seen,
        is_replied: session.has_packets() & is_answered,
    };
    let idle = inbound_age.min(age(now, session.last_seen));
    idle >= settings.timeouts.of(&life)
}

/// An uplink's entry goes with its guest's; alone it goes once it has been silent for a while.
#[inline(always)]
fn uplink_half(key: &FlowKey, session: &Session, mode: Mode, settings: &Settings, now: u32) -> Verdict {
    let guest = key.reverse(session.rewritten());
    if let Some(forward) = session::find(&guest)
        && forward.rewritten() == key.destination_endpoint()
    {
        return if mode == Mode::Remove && session::remove(&guest, forward) {
            Verdict::Removed
        } else {
            Verdict::Kept
        };
    }
    if mode == Mode::Expire && age(now, session.last_seen) < settings.timeouts.icmp {
        return Verdict::Kept;
    }
    if flow_table::remove(key) { Verdict::Removed } else { Verdict::Absent }
}

/// A mapping goes when it holds no flow and its port has rested. A flow that is opened on it in this very instant keeps
/// its exact tuple, since the uplink's entry is its own.
#[inline(always)]
fn mapping(key: &MappingKey, settings: &Settings, now: u32) -> Verdict {
    if key.end != End::Internal as u8 {
        return Verdict::Absent;
    }
    // SAFETY: the map is preallocated; what is read may be replaced meanwhile, and then the owner below differs.
    let Some(mapping) = (unsafe { MAPPING.get(key) }).copied() else { return Verdict::Absent };
    if mapping.flows > 0 || age(now, mapping.last_used) < settings.timeouts.mapping_rest {
        return Verdict::Kept;
    }
    if MAPPING.remove(key).is_err() {
        return Verdict::Absent;
    }
    let external = MappingKey::external(key.protocol, mapping.other());
    // SAFETY: as above.
    let holder = unsafe { MAPPING.get(external) }.map(Mapping::other);
    let internal = Endpoint::new(key.address, key.port);
    if holder == Some(internal) {
        let _ = MAPPING.remove(external);
        owner::forget(key.protocol, internal, mapping.other());
    }
    Verdict::Removed
}
