//! Frames between the stations of one bridge.
//!
//! They need no router, but where `br_netfilter` is on the host's FORWARD rules apply to them. A frame whose receiver
//! is known goes straight to the other port; all others are the bridge's.

use aya_ebpf::programs::TcContext;
use vmnat_common::{
    Outcome,
    bridge::{BridgePort, BridgePortFlags},
};

use crate::{
    lease,
    maps::BRIDGE_PORT,
    parse::{self, Packet},
    route,
};

/// Sends a frame for another station to its port, where that is certain.
#[inline(always)]
pub fn to_station(ctx: &TcContext, packet: &Packet, port: &BridgePort) -> Result<Outcome, Outcome> {
    if packet.destination_mac.is_group() {
        return Err(Outcome::NotUnicast);
    }
    let direct = port.flags & (BridgePortFlags::DIRECT | BridgePortFlags::IS_BRIDGE);
    if direct != BridgePortFlags::DIRECT {
        return Err(Outcome::Bridged);
    }
    let Some(lease) = lease::of(packet.key.destination) else { return Err(Outcome::Bridged) };
    if lease.mac != packet.destination_mac
        || lease.bridge != port.bridge
        || lease.port == parse::interface(ctx)
        || !is_direct(lease.port)
    {
        return Err(Outcome::Bridged);
    }
    route::to_port(lease.port);
    Ok(Outcome::BridgedDirect)
}

/// True when frames may be redirected straight to this port.
#[inline(always)]
pub fn is_direct(port: u32) -> bool {
    // SAFETY: user space replaces whole values; a port that is read while it goes has no receiver either way.
    port != 0
        && unsafe { BRIDGE_PORT.get(port) }.is_some_and(|port| port.flags & BridgePortFlags::DIRECT != 0)
}
