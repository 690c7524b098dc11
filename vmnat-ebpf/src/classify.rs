//! Whose packet it is: where the host's routes lead it, and whether its sender may go there.

use aya_ebpf::{maps::lpm_trie::Key, programs::TcContext};
use vmnat_common::{
    Address, Outcome,
    bridge::{BridgePort, BridgePortFlags},
};

use crate::{
    maps::{NETWORK, UNTRANSLATED, UPLINK},
    parse::Packet,
    route::{self, Route},
};

/// The way of a guest's packet.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Way {
    /// Interface index that it leaves by: an uplink, or the guest's own bridge where it turns round on the host.
    pub out_if: u32,
    /// Next hop of the route.
    pub next_hop: Address,
    /// The external address; unspecified while there is none.
    pub address: Address,
    /// Largest IP packet of the way, bytes.
    pub mtu: u16,
    /// Flags of the guest's half of a session that takes it: [`vmnat_common::session::Flags::HAIRPIN`] or none.
    pub flags: u8,
}

/// The managed uplink that a packet from a port of the bridge leaves by; all else is an outcome.
#[inline(always)]
pub fn way_out(ctx: &TcContext, packet: &Packet, port: &BridgePort, way: &mut Way) -> Result<(), Outcome> {
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
    if destination.is_link_local() || destination.is_reserved() {
        return Err(Outcome::InvalidDestination);
    }
    if is_untranslated(destination) {
        return Err(Outcome::Untranslated);
    }
    check_sender(packet, port)?;
    *way = Way {
        out_if: route.out_if,
        next_hop: route.next_hop,
        address: uplink.address,
        mtu: uplink.mtu,
        flags: 0,
    };
    Ok(())
}

/// True for an address that guests reach without translation (RFC 6888 REQ-6).
#[inline(always)]
pub fn is_untranslated(remote: Address) -> bool {
    UNTRANSLATED.get(Key::new(32, remote)).is_some()
}

/// Whether the source address is a guest's of the port's bridge.
#[inline(always)]
pub fn check_sender(packet: &Packet, port: &BridgePort) -> Result<(), Outcome> {
    match NETWORK.get(Key::new(32, packet.key.source)) {
        None => Err(Outcome::ForeignSource),
        Some(network) if network.bridge != port.bridge => Err(Outcome::ForeignSource),
        Some(network) if network.gateway == packet.key.source => Err(Outcome::SpoofedSource),
        Some(_) => Ok(()),
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
        if is_untranslated(source) { Outcome::Untranslated } else { Outcome::PrivateDestination }
    } else if NETWORK.get(Key::new(32, source)).is_some() {
        Outcome::PrivateSource
    } else {
        Outcome::NoFlow
    }
}
