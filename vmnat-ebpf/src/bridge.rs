//! Frames between the stations of one bridge.
//!
//! They need no router, but where `br_netfilter` is on the host's FORWARD rules apply to them. A frame whose receiver
//! is known goes straight to the other port; all others are the bridge's.

use aya_ebpf::programs::TcContext;
use vmnat_common::{
    Mac, Outcome,
    bridge::{BridgePort, BridgePortFlags},
    station::{Station, StationKey},
};

use crate::{
    maps::{BRIDGE_PORT, STATION},
    parse::{self, Packet},
    route,
};

/// Sends a frame for another station to its port, where that is certain.
#[inline(always)]
pub fn to_station(ctx: &TcContext, packet: &Packet, port: &BridgePort) -> Result<Outcome, Outcome> {
    if packet.stations.destination.is_group() {
        return Err(Outcome::NotUnicast);
    }
    let direct = port.flags & (BridgePortFlags::DIRECT | BridgePortFlags::IS_BRIDGE);
    if direct != BridgePortFlags::DIRECT {
        return Err(Outcome::Bridged);
    }
    // SAFETY: the map is preallocated: a station that is replaced at this instant sends one frame to another port of
    // some bridge, as a bridge's own table may.
    let Some(station) = (unsafe { STATION.get(StationKey::new(port.bridge, packet.stations.destination)) })
    else {
        return Err(Outcome::Bridged);
    };
    let out_if = station.port;
    if out_if == parse::interface(ctx) || !is_direct(out_if) {
        return Err(Outcome::Bridged);
    }
    route::to_port(out_if);
    Ok(Outcome::BridgedDirect)
}

/// The bridge port or bridge whose hook this is.
#[inline(always)]
pub fn port_of(ctx: &TcContext) -> Result<&'static BridgePort, Outcome> {
    // SAFETY: the kernel keeps a map's element readable for the program's run; user space replaces whole values of this
    // small map. By reference, as a copy would take a share of the stack.
    unsafe { BRIDGE_PORT.get(parse::interface(ctx)) }.ok_or(Outcome::Unmanaged)
}

/// The interface that packets come in by that the hook at `port` sees: the bridge, where that is an uplink.
#[inline(always)]
pub fn entrance(port: u32) -> u32 {
    // SAFETY: as in `port_of`.
    match unsafe { BRIDGE_PORT.get(port) } {
        Some(entry) if entry.flags & BridgePortFlags::OF_UPLINK != 0 => entry.bridge,
        _ => port,
    }
}

/// The largest IP packet of a bridge; what was known where the bridge has gone.
#[inline(always)]
pub fn mtu(bridge: u32, known: u16) -> u16 {
    // SAFETY: as in `port_of`.
    unsafe { BRIDGE_PORT.get(bridge) }.map_or(known, |bridge| bridge.mtu)
}

/// Notes behind which port a station is.
#[inline(always)]
pub fn learn(bridge: u32, mac: Mac, port: u32) {
    let key = StationKey::new(bridge, mac);
    // SAFETY: as in `to_station`.
    if unsafe { STATION.get(key) }.is_none_or(|station| station.port != port) {
        // A full table costs the direct way only.
        let _ = STATION.insert(key, Station { port }, 0);
    }
}

/// True when frames may be redirected straight to this port.
#[inline(always)]
pub fn is_direct(port: u32) -> bool {
    // SAFETY: user space replaces whole values; a port that is read while it goes has no receiver either way.
    port != 0
        && unsafe { BRIDGE_PORT.get(port) }.is_some_and(|port| port.flags & BridgePortFlags::DIRECT != 0)
}
