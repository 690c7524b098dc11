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
    bridge,
    maps::{LEASE, NETWORK},
    parse::{self, Packet},
    route::{self, Route},
    settings,
};

/// Learns from an ARP frame whose sender speaks for itself.
#[inline(always)]
pub fn learn_from_arp(ctx: &TcContext, port: &BridgePort) {
    let Some(sender) = parse::arp_sender(ctx) else { return };
    if sender.mac.is_group() || sender.station.is_group() {
        return;
    }
    let in_if = parse::interface(ctx);
    bridge::learn(port.bridge, sender.station, in_if);
    let Some(network) = NETWORK.get(Key::new(32, sender.address)) else { return };
    if network.bridge == port.bridge && network.gateway != sender.address {
        learn(sender.address, sender.mac, in_if, port.bridge);
    }
}

/// Whether the sender of `packet` may use its source address; learns it where nobody holds the address.
///
/// Another MAC is believed when the host's neighbour table has it. The same MAC at another port is believed when the
/// old port has gone, or once an ARP frame has come in by the new one.
#[inline(never)]
pub fn admit(ctx: &TcContext, packet: &Packet, port: &BridgePort) -> Result<(), Outcome> {
    let (address, mac) = (packet.key.source, packet.source_mac);
    // The bridge's hook sees stations whose port has no hook of its own, and cannot tell those ports apart.
    let in_if = if port.flags & BridgePortFlags::IS_BRIDGE == 0 { parse::interface(ctx) } else { 0 };
    let Some(lease) = of(address) else {
        learn(address, mac, in_if, port.bridge);
        return Ok(());
    };
    let moved = in_if != 0 && lease.port != in_if && bridge::is_direct(lease.port);
    if (moved || lease.mac != mac) && (lease.mac == mac || neighbour(ctx, packet, port) != mac) {
        return Err(Outcome::SpoofedSource);
    }
    let known_port = if in_if == 0 { lease.port } else { in_if };
    if lease.mac != mac || lease.port != known_port || lease.bridge != port.bridge {
        learn(address, mac, known_port, port.bridge);
        if known_port != 0 {
            bridge::learn(port.bridge, mac, known_port);
        }
    }
    Ok(())
}

/// The lease of an address.
#[inline(always)]
pub fn of(address: Address) -> Option<&'static Lease> {
    // SAFETY: as in `admit`; a stale answer sends one packet to the wrong port of the same bridge.
    unsafe { LEASE.get(address) }
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
