//! Port forwards: a packet from the world that opens a session to a guest.

use aya_ebpf::programs::TcContext;
use vmnat_common::{
    Outcome,
    endpoint::Protocol,
    forward::{Forward, ForwardKey},
};

use crate::{
    classify::Way,
    maps::{BRIDGE_PORT, FORWARD, UPLINK},
    parse::{self, Packet},
    route::{self, Route},
    session,
};

/// The port forward that a packet on the uplink is addressed to.
#[inline(always)]
pub fn find(packet: &Packet) -> Option<(Protocol, &'static mut Forward)> {
    let protocol = packet.protocol()?;
    if protocol == Protocol::Icmp {
        return None;
    }
    let key = ForwardKey::new(protocol.number(), packet.key.destination_endpoint());
    // SAFETY: user space replaces whole values; a count that two CPUs add to at once may be short by one.
    FORWARD.get_ptr_mut(key).map(|forward| (protocol, unsafe { &mut *forward }))
}

/// Opens the session, if answers leave by the uplink that the packet came in by.
#[inline(always)]
pub fn open(
    ctx: &TcContext,
    packet: &Packet,
    protocol: Protocol,
    forward: &mut Forward,
) -> Result<(), Outcome> {
    session::may_open(protocol, packet)?;
    let in_if = parse::interface(ctx);
    // SAFETY: user space replaces whole values of these small maps.
    let (bridge, uplink) = unsafe { (BRIDGE_PORT.get(forward.bridge), UPLINK.get(in_if)) };
    let (Some(bridge), Some(uplink)) = (bridge, uplink) else { return Err(Outcome::Unmanaged) };
    let target = forward.target();
    let mut back = Route::default();
    route::lookup(ctx, &packet.key.reverse(target), packet.tos, forward.bridge, &mut back)?;
    if back.out_if != in_if {
        return Err(Outcome::MovedRoute);
    }
    let way = Way { out_if: in_if, uplink, next_hop: back.next_hop };
    session::insert_forwarded(ctx, &packet.key, target, bridge, &way)?;
    forward.connections = forward.connections.wrapping_add(1);
    Ok(())
}
