//! Where a guest's address lives: learned from what guests say of themselves.
//!
//! A guest announces itself by ARP before its first packet, so a lease is there before it is needed, also while no
//! process of vmnat runs. Who holds an address in doubt is decided by the host's neighbour table.

use aya_ebpf::{maps::lpm_trie::Key, programs::TcContext};
use vmnat_common::{
    Address, Mac, Outcome,
    bridge::{BridgePort, BridgePortFlags},
    lease::{Lease, LeaseFlags},
};

use crate::{
    maps::{LEASE, NETWORK},
    parse::{self, Packet},
    route::{self, Route},
    settings,
};

/// Learns from an ARP frame whose sender speaks for itself.
#[inline(always)]
pub fn learn_from_arp(ctx: &TcContext, port: &BridgePort) {
    let Some((address, mac)) = parse::arp_sender(ctx) else { return };
    if address.is_unspecified() || mac.is_group() || port.flags & BridgePortFlags::IS_BRIDGE != 0 {
        return;
    }
    let Some(network) = NETWORK.get(Key::new(32, address)) else { return };
    if network.bridge == port.bridge && network.gateway != address {
        learn(address, mac, parse::interface(ctx), port.bridge);
    }
}

/// Whether the sender of `packet` may use its source address; learns it where nobody holds the address.
#[inline(never)]
pub fn admit(ctx: &TcContext, packet: &Packet, port: &BridgePort) -> Result<(), Outcome> {
    let in_if = parse::interface(ctx);
    let at_bridge = port.flags & BridgePortFlags::IS_BRIDGE != 0;
    let (address, mac) = (packet.key.source, packet.source_mac);
    // SAFETY: the map is preallocated; a lease that is replaced while it is read shows another guest's MAC at worst,
    // and then the neighbour table decides.
    let Some(lease) = (unsafe { LEASE.get(address) }).copied() else {
        learn(address, mac, if at_bridge { 0 } else { in_if }, port.bridge);
        return Ok(());
    };
    if lease.mac != mac && neighbour(ctx, packet, port) != mac {
        return Err(Outcome::SpoofedSource);
    }
    let known_port = if at_bridge { lease.port } else { in_if };
    if lease.mac != mac || lease.port != known_port || lease.bridge != port.bridge {
        learn(address, mac, known_port, port.bridge);
    }
    Ok(())
}

/// The lease of an address.
#[inline(always)]
pub fn of(address: Address) -> Option<Lease> {
    // SAFETY: as in `admit`; a stale answer sends one packet to the wrong port of the same bridge.
    unsafe { LEASE.get(address) }.copied()
}

/// The MAC that the host's neighbour table has for the packet's source; zero where it has none.
#[inline(always)]
fn neighbour(ctx: &TcContext, packet: &Packet, port: &BridgePort) -> Mac {
    let mut key = packet.key;
    key.destination = packet.key.source;
    key.source = Address::UNSPECIFIED;
    let mut answer = Route::default();
    match route::lookup(ctx, &key, 0, port.bridge, &mut answer) {
        Ok(()) if answer.out_if == port.bridge => answer.neighbour,
        _ => Mac::ZERO,
    }
}

#[inline(always)]
fn learn(address: Address, mac: Mac, port: u32, bridge: u32) {
    let lease =
        Lease { port, bridge, mac, flags: LeaseFlags::FROM_TRAFFIC, last_seen: settings::jiffies() as u32 };
    // A full table costs the guest direct return only.
    let _ = LEASE.insert(address, lease, 0);
}
