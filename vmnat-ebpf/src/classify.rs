//! Whose packet it is: where the host's routes lead it, and whether its sender may go there.

use aya_ebpf::{maps::lpm_trie::Key, programs::TcContext};
use vmnat_common::{
    Address, Outcome,
    bridge::{BridgePort, BridgePortFlags},
    uplink::Uplink,
};

use crate::{
    maps::{NETWORK, UPLINK},
    parse::Packet,
    route::{self, Route},
};

/// The way out of a guest's packet.
#[derive(Clone, Copy)]
pub struct Way {
    /// Interface index of the uplink.
    pub out_if: u32,
    /// The uplink.
    pub uplink: &'static Uplink,
    /// Next hop of the route.
    pub next_hop: Address,
}

/// The managed uplink that a packet from a port of the bridge leaves by; all else is an outcome.
#[inline(always)]
pub fn way_out(ctx: &TcContext, packet: &Packet, port: &BridgePort) -> Result<Way, Outcome> {
    let destination = packet.key.destination;
    if destination.is_never_forwarded() {
        return Err(Outcome::NotUnicast);
    }
    let mut route = Route::default();
    route::lookup(ctx, &packet.key, packet.tos, port.bridge, &mut route)?;
    // SAFETY: user space replaces whole values of this small map, and never while flows stand on them.
    let Some(uplink) = (unsafe { UPLINK.get(route.out_if) }) else {
        return Err(other_exit(destination, port));
    };
    if destination.is_link_local() {
        return Err(Outcome::InvalidDestination);
    }
    match NETWORK.get(Key::new(32, packet.key.source)) {
        None => Err(Outcome::ForeignSource),
        Some(network) if network.bridge != port.bridge => Err(Outcome::ForeignSource),
        Some(network) if network.gateway == packet.key.source => Err(Outcome::SpoofedSource),
        Some(_) => Ok(Way { out_if: route.out_if, uplink, next_hop: route.next_hop }),
    }
}

/// What becomes of a packet whose route is no managed uplink.
#[inline(always)]
fn other_exit(destination: Address, port: &BridgePort) -> Outcome {
    match NETWORK.get(Key::new(32, destination)) {
        Some(network) if network.bridge == port.bridge => Outcome::Bridged,
        Some(_) => Outcome::OtherNetwork,
        None if port.flags & BridgePortFlags::HOST_DID_NOT_FORWARD != 0 => Outcome::ClosedExit,
        None => Outcome::OtherRoute,
    }
}

/// What a packet that arrived on an uplink for no flow and no port forward is.
#[inline(always)]
pub fn uninvited(source: Address, destination: Address) -> Outcome {
    if NETWORK.get(Key::new(32, destination)).is_some() {
        Outcome::PrivateDestination
    } else if NETWORK.get(Key::new(32, source)).is_some() {
        Outcome::PrivateSource
    } else {
        Outcome::NoFlow
    }
}
