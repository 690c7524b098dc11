//! Checksums of TCP and UDP: in place where they are complete, by the kernel where they may be partial.
//!
//! A partial checksum, whose rest is left to a device, holds the sum of the pseudo-header, or the result would be wrong on the wire
//! whatever is done here. So a field that differs from that sum is complete. One that equals it is partial, or does so by chance; the
//! helper is right for both, and dear: it makes the bytes writable once more.

use aya_ebpf::{
    bindings::BPF_F_PSEUDO_HDR,
    helpers::generated::{bpf_csum_update, bpf_l4_csum_replace},
    programs::TcContext,
};
use vmnat_common::{Outcome, checksum};

use super::Changes;
use crate::parse::{self, Packet};

/// Updates the checksum of TCP or UDP, `at` bytes behind the transport header, which the caller has compared with the packet's
/// end. In place, unless it is partial or may be.
///
/// # Safety
/// The transport header must have been compared with the packet's end, beyond that field.
#[inline(always)]
pub unsafe fn sum_in_place(
    ctx: &TcContext,
    packet: &Packet,
    (start, l4): (usize, usize),
    at: usize,
    changes: Changes,
    flags: u64,
) -> Result<(), Outcome> {
    let field = (l4 + at) as *mut u16;
    // SAFETY: the caller's.
    let old = unsafe { *field };
    if flags != 0 && old == 0 {
        return Ok(());
    }
    let length = parse::transport_length(start, packet);
    let pseudo =
        checksum::pseudo_header(packet.key.source, packet.key.destination, packet.key.protocol, length);
    if parse::is_segmented(ctx) || packet.is_fragment() || checksum::is_same(old, pseudo) {
        return sum(ctx, packet.l4() + at, changes, flags);
    }
    let address_diff = changes.address_diff();
    let new = checksum::update(old, checksum::sum(address_diff, changes.port_diff()));
    // SAFETY: the caller's; and the helper takes numbers only.
    unsafe {
        *field = if flags != 0 && new == 0 { 0xffff } else { new };
        bpf_csum_update(ctx.skb.skb, u32::from(!address_diff));
    }
    Ok(())
}

/// Updates a transport checksum by the kernel, which knows whether it is partial: one call for the port, and one with
/// `BPF_F_PSEUDO_HDR` for the address. A single call for both is wrong while the checksum is partial, because then the field holds
/// the pseudo-header's sum alone and must not learn the port.
#[inline(always)]
pub fn sum(ctx: &TcContext, at: usize, changes: Changes, flags: u64) -> Result<(), Outcome> {
    match kernel_sum(ctx, at as u32, changes.address_diff(), changes.port_diff(), flags) {
        0 => Ok(()),
        _ => Err(Outcome::RewriteFailed),
    }
}

/// Not zero where the kernel refused. A call of its own, with numbers only: the verifier meets what follows in fewer states.
#[inline(never)]
fn kernel_sum(ctx: &TcContext, at: u32, address_diff: u16, port_diff: u16, flags: u64) -> u32 {
    let skb = ctx.skb.skb;
    // SAFETY: the context is valid, and the helper checks the offset itself.
    let failed = unsafe {
        (port_diff != 0 && bpf_l4_csum_replace(skb, at, 0, u64::from(port_diff), flags) != 0)
            || bpf_l4_csum_replace(skb, at, 0, u64::from(address_diff), flags | u64::from(BPF_F_PSEUDO_HDR))
                != 0
    };
    u32::from(failed)
}
