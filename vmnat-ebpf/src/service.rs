//! From a guest to a service of its gateway that is allowed: past the host's INPUT rules.
//!
//! The frame comes in by the loopback as if the host had sent it to itself, which every ruleset lets in, and the host's own
//! server answers by the usual way. Both MACs are zero then, as on the loopback: any other would make it a frame for another
//! station. Where nobody listens, or the loopback would refuse it, the relay in the quiet room answers.
//!
//! Fragments are left to the kernel and its rules, since the later ones do not say what port they are for; so are ICMP
//! errors about such conversations, which any rule for related packets lets in.

use aya_ebpf::{maps::lpm_trie::Key, programs::TcContext};
use vmnat_common::{
    Mac, Outcome,
    bridge::BridgePort,
    endpoint::Protocol,
    flow::Side,
    room,
    service::{LOOPBACK, ServiceKey, ServiceWay},
};

use crate::{
    bridge, lease,
    maps::{BRIDGE_PORT, NETWORK, SERVICE},
    parse::Packet,
    quota, rewrite, route, settings, socket,
};

/// The packet is for no allowed service.
pub const NONE: u32 = 0;

/// The host's own server answers.
const HOST: u32 = ServiceWay::Host as u32;

/// The relay answers.
const RELAY: u32 = ServiceWay::Relay as u32;

/// Who answers the packet of a guest behind `bridge`, or [`NONE`]. A number, since a real call returns nothing else.
#[inline(never)]
pub fn way(ctx: &TcContext, packet: &Packet, bridge: u32) -> u32 {
    let key = &packet.key;
    if packet.tracked.is_err() || packet.is_fragment() || !has_ports(key.protocol) {
        return NONE;
    }
    let service = ServiceKey::new(bridge, key.destination, key.protocol, key.destination_port);
    // SAFETY: user space replaces whole values of this small map.
    let Some(service) = (unsafe { SERVICE.get(service) }) else { return NONE };
    if service.way == HOST || !settings::get().is_ok_and(|settings| settings.room.exists()) {
        return HOST;
    }
    if service.way == RELAY {
        return RELAY;
    }
    let mut seen_from_guest = *key;
    seen_from_guest.side = Side::Uplink as u8;
    let holding = socket::holding(ctx, &seen_from_guest, key.destination_endpoint());
    if holding == socket::NONE { RELAY } else { HOST }
}

/// Leads the packet, whose sender was admitted, to who answers it.
#[inline(always)]
pub fn lead(ctx: &TcContext, packet: &Packet, way: u32) -> Result<Outcome, Outcome> {
    if way == HOST {
        rewrite::macs(ctx, Mac::ZERO, Mac::ZERO)?;
        route::into(LOOPBACK);
        return Ok(Outcome::GatewayService);
    }
    if !quota::admits_to_room(packet.key.source) {
        return Err(Outcome::ServiceQuota);
    }
    rewrite::macs(ctx, room::INNER_MAC, packet.stations.destination)?;
    route::to_port(settings::get()?.room.inner);
    Ok(Outcome::GatewayService)
}

/// Takes what the relay in the room sends to its guest; [`Outcome::NoFlow`] for everything else that comes out of it.
#[inline(never)]
pub fn answer(ctx: &TcContext, packet: &Packet) -> Outcome {
    let (Ok(outcome) | Err(outcome)) = answered(ctx, packet);
    outcome
}

#[inline(always)]
fn answered(ctx: &TcContext, packet: &Packet) -> Result<Outcome, Outcome> {
    let key = &packet.key;
    if packet.tracked.is_err() || !has_ports(key.protocol) {
        return Err(Outcome::NoFlow);
    }
    let network = NETWORK.get(Key::new(32, key.destination)).ok_or(Outcome::NoFlow)?;
    let service = ServiceKey::new(network.bridge, key.source, key.protocol, key.source_port);
    // SAFETY: as in `way`.
    match unsafe { SERVICE.get(service) } {
        Some(service) if service.way != HOST => {}
        _ => return Err(Outcome::NoFlow),
    }
    match lease::of(key.destination) {
        Some(lease) if bridge::is_direct(lease.port) && lease.bridge == network.bridge => {
            // SAFETY: as in `way`.
            let port: &BridgePort = unsafe { BRIDGE_PORT.get(network.bridge) }.ok_or(Outcome::Unmanaged)?;
            rewrite::macs(ctx, lease.mac, port.mac)?;
            route::to_port(lease.port);
        }
        _ => route::to_neighbour(network.bridge, key.destination),
    }
    Ok(Outcome::GatewayService)
}

#[inline(always)]
fn has_ports(protocol: u8) -> bool {
    protocol == Protocol::Tcp.number() || protocol == Protocol::Udp.number()
}
