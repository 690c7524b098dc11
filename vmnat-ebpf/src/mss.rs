//! The largest segment that a TCP handshake may announce: what fits the narrower of uplink and bridge.
//!
//! A path whose routers send no errors (or whose firewalls drop them) would else lose every full segment (RFC 2923 section 2.1).

use core::ffi::c_void;

use aya_ebpf::{
    helpers::generated::{bpf_l4_csum_replace, bpf_loop},
    programs::TcContext,
};
use vmnat_common::{
    session::Session,
    tcp_state::flag,
    wire::{ipv4, tcp},
};

use crate::{maps::UPLINK, parse::Packet};

/// A walk through the options of a segment.
struct Walk<'a> {
    ctx: &'a TcContext,
    /// Where the transport header begins.
    l4: u32,
    /// Where the option to look at begins.
    at: u32,
    /// Where the options end.
    end: u32,
    /// The largest segment to be announced.
    most: u16,
}

/// Lowers what a segment that opens a connection announces to what an IP packet of `mtu` bytes carries.
#[inline(always)]
pub fn clamp(ctx: &TcContext, packet: &Packet, mtu: u16) {
    if packet.tcp_flags & flag::SYN != 0 {
        lower(ctx, packet, mtu);
    }
}

/// The same for a segment of the world, whose answers have to fit the uplink that it came in by.
#[inline(always)]
pub fn clamp_inbound(ctx: &TcContext, packet: &Packet, session: &Session) {
    if packet.tcp_flags & flag::SYN != 0 {
        // SAFETY: user space replaces whole values of this small map.
        let uplink = unsafe { UPLINK.get(session.in_if) }.map_or(session.mtu, |uplink| uplink.mtu);
        lower(ctx, packet, if uplink < session.mtu { uplink } else { session.mtu });
    }
}

#[inline(never)]
fn lower(ctx: &TcContext, packet: &Packet, mtu: u16) -> u32 {
    let l4 = packet.l4() as u32;
    let Ok(offset) = ctx.load::<u8>(packet.l4() + tcp::FLAGS - 1) else { return 0 };
    let most = mtu.saturating_sub((ipv4::LEN + tcp::LEN) as u16);
    let mut walk = Walk { ctx, l4, at: l4 + tcp::LEN as u32, end: l4 + u32::from(offset >> 4) * 4, most };
    // SAFETY: the callback has the helper's signature and gets the very walk that is passed here, which outlives the call.
    unsafe { bpf_loop(tcp::MOST_OPTIONS, look as *const () as *mut c_void, (&raw mut walk).cast(), 0) };
    walk.at
}

/// One option: zero goes on, one ends the walk.
extern "C" fn look(_step: u32, walk: *mut c_void) -> i64 {
    // SAFETY: `lower` passes its own walk, and nothing else refers to it during the loop.
    let walk = unsafe { &mut *walk.cast::<Walk<'_>>() };
    if walk.at >= walk.end {
        return 1;
    }
    let at = (walk.at & 0xff) as usize;
    match walk.ctx.load::<u8>(at) {
        Ok(tcp::OPTION_NONE) => {
            walk.at += 1;
            return 0;
        }
        Ok(tcp::OPTION_MSS) => {
            lower_option(walk, at);
            return 1;
        }
        Ok(tcp::OPTION_END) | Err(_) => return 1,
        Ok(_) => {}
    }
    match walk.ctx.load::<u8>(at + 1) {
        Ok(length) if length >= 2 => {
            walk.at += u32::from(length);
            0
        }
        _ => 1,
    }
}

#[inline(always)]
fn lower_option(walk: &Walk<'_>, at: usize) {
    let (Ok(4), Ok(announced)) = (walk.ctx.load::<u8>(at + 1), walk.ctx.load::<u16>(at + 2)) else { return };
    if u16::from_be(announced) <= walk.most || walk.at + 4 > walk.end {
        return;
    }
    let lowered = walk.most.to_be();
    if walk.ctx.store(at + 2, &lowered, 0).is_err() {
        return;
    }
    // The checksum adds up pairs of bytes from the transport header on; at an odd place the pair is the other way round.
    let (from, to) = if (walk.at - walk.l4) & 1 == 0 {
        (announced, lowered)
    } else {
        (announced.swap_bytes(), lowered.swap_bytes())
    };
    // SAFETY: the context is valid, and the helper checks the offset itself. Without `BPF_F_PSEUDO_HDR` it leaves a checksum
    // alone that the device has yet to compute.
    unsafe {
        bpf_l4_csum_replace(
            walk.ctx.skb.skb,
            walk.l4 + tcp::CHECKSUM as u32,
            u64::from(from),
            u64::from(to),
            2,
        );
    }
}
