//! The way of a translated packet out of an uplink: straight to the next hop's station, whose MAC is remembered for a moment.
//!
//! `bpf_redirect_neigh` looks the neighbour up for every packet and keeps the kernel's view of it alive. Here a frame leaves with
//! the header that the kernel's own table gave at most a quarter of a second ago. When that time is over one packet takes the
//! kernel's way again, so that the neighbour is confirmed, probed and resolved as ever, and asks for what the table
//! says by then. No process takes part: a router that changes its MAC is followed while no agent runs.

use aya_ebpf::programs::TcContext;
use vmnat_common::{
    Address, Outcome, Port,
    endpoint::Endpoint,
    flow::{FlowKey, Side},
    next_hop::{header, hop, slot},
    session::Session,
    uplink::UplinkFlags,
};

use crate::{
    bridge,
    maps::{NEXT_HOP, UPLINK},
    parse::Packet,
    rewrite, route, settings,
};

/// Sends the packet to its session's next hop.
#[inline(always)]
pub fn leave(ctx: &TcContext, packet: &Packet, session: &Session, now: u64) -> Result<(), Outcome> {
    let own = hop(session.out_if, session.next_hop);
    if let Some(known) = NEXT_HOP.get_ptr_mut(slot(own)) {
        // SAFETY: the kernel keeps an array's element readable and writable. Another CPU may write it meanwhile: every word is
        // whole, and a slot changes hands only after its time.
        let known = unsafe { &mut *known };
        if known.until > now {
            if known.hop == own && known.macs != 0 {
                rewrite::ethernet(ctx, known.macs, known.rest)?;
                route::to_port(session.out_if);
                return Ok(());
            }
        } else {
            renew(ctx, session.out_if, session.next_hop.to_wire(), packet.key.source.to_wire());
        }
    }
    route::to_neighbour(session.out_if, session.next_hop);
    Ok(())
}

/// Asks the kernel for the next hop's MAC. Where it has none, where its routes lead there otherwise or the uplink has no Ethernet,
/// packets go the kernel's way until the next look. Numbers only, so that the verifier meets it in few states.
#[inline(never)]
fn renew(ctx: &TcContext, out_if: u32, next_hop: u32, guest: u32) -> u32 {
    let (next_hop, guest) = (Address::from_wire(next_hop), Address::from_wire(guest));
    let own = hop(out_if, next_hop);
    let (Ok(settings), Some(known)) = (settings::get(), NEXT_HOP.get_ptr_mut(slot(own))) else { return 0 };
    // SAFETY: as in `leave`.
    let known = unsafe { &mut *known };
    let (macs, rest) = station(ctx, out_if, next_hop, guest).unwrap_or((0, 0));
    // Whoever looks meanwhile finds no station, and goes the kernel's way.
    store(&mut known.macs, 0);
    store(&mut known.hop, own);
    store(&mut known.rest, rest);
    store(&mut known.macs, macs);
    store(&mut known.until, settings::jiffies() + u64::from(settings.hertz / 4));
    0
}

/// The header of frames to the next hop.
#[inline(always)]
fn station(ctx: &TcContext, out_if: u32, next_hop: Address, guest: Address) -> Option<(u64, u32)> {
    // SAFETY: user space replaces whole values of this small map.
    let uplink = unsafe { UPLINK.get(out_if) }?;
    if uplink.flags & UplinkFlags::NO_ETHERNET != 0 {
        return None;
    }
    let bridge = bridge::port_of(ctx).ok()?.bridge;
    let none = Port::new(0);
    let key = FlowKey::new(0, Side::Guest, Endpoint::new(guest, none), Endpoint::new(next_hop, none));
    let (destination, source) = route::station(ctx, &key, bridge, out_if)?;
    Some(header(destination, source))
}

#[inline(always)]
fn store<T>(place: &mut T, value: T) {
    // SAFETY: the reference is valid. Volatile, because the order of these stores matters.
    unsafe { core::ptr::write_volatile(place, value) };
}
