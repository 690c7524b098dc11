//! Where a guest's address lives: learned from what guests say of themselves.
//!
//! A guest announces itself by ARP before its first packet, so a lease is there before it is needed, also while no
//! process of vmnat runs. An address that user space knows to be given to a guest ([`LeaseFlags::BOUND`]) is that guest's while
//! its port is there; who holds any other in doubt is decided by the host's neighbour table. In a strict network
//! ([`BridgePortFlags::STRICT`]) nobody may use an address that was not given to it.

use aya_ebpf::{maps::lpm_trie::Key, programs::TcContext};
use vmnat_common::{
    Address, Mac, Outcome, Port,
    bridge::{BridgePort, BridgePortFlags},
    endpoint::Protocol,
    lease::{Lease, LeaseFlags},
    station::StationKey,
};

use crate::{
    bridge,
    maps::{BRIDGE_PORT, LEASE, NETWORK, STATION},
    parse::{self, Packet},
    route::{self, Route},
    settings,
};

/// Bits that user space alone sets.
const BINDING: u16 = LeaseFlags::BOUND | LeaseFlags::PORT_BOUND;

/// Learns from an ARP frame whose sender speaks for itself. In a strict network, a claim of what the sender was not given is an
/// error, and goes no further.
#[inline(never)]
pub fn hear_arp(ctx: &TcContext, port: &BridgePort) -> Result<(), Outcome> {
    let refused = if is_strict(port) { Err(Outcome::UnboundSource) } else { Ok(()) };
    let Some(sender) = parse::arp_sender(ctx) else { return refused };
    if sender.mac.is_group() || sender.station.is_group() {
        return refused;
    }
    let in_if = interface(ctx, port);
    if is_strict(port) {
        // A probe for duplicates claims nothing yet (RFC 5227 section 2.1.1).
        let is_probe = sender.address.is_unspecified();
        if sender.mac != sender.station || !(is_probe || is_given(sender.address, sender.mac, in_if, port)) {
            return refused;
        }
    }
    // What was addressed to the host alone comes by the bridge's hook too, but says nothing about the port.
    if in_if == 0 {
        return Ok(());
    }
    if !is_strict(port) || may_move(port.bridge, sender.station, in_if) {
        bridge::learn(port.bridge, sender.station, in_if);
    }
    let Some(network) = NETWORK.get(Key::new(32, sender.address)) else { return Ok(()) };
    if network.bridge == port.bridge && network.gateway != sender.address {
        claim(sender.address, sender.mac, in_if, port.bridge);
    }
    Ok(())
}

/// A guest says that an address is its own. It is believed, unless the address was given to somebody else who is there.
#[inline(always)]
fn claim(address: Address, mac: Mac, in_if: u32, bridge: u32) {
    if let Some(lease) = of(address)
        && (is_anothers(lease, mac) || is_barred(lease, in_if))
    {
        return;
    }
    learn(address, mac, in_if, bridge);
}

/// In a strict network, whether the sender of a packet was given its source address: nothing else leaves its port, to whomever. A
/// guest without an address yet asks for one.
#[inline(never)]
pub fn hold(ctx: &TcContext, packet: &Packet, port: &BridgePort) -> Result<(), Outcome> {
    let (address, mac) = (packet.key.source, packet.stations.source);
    if !is_strict(port) || asks_for_lease(packet) || is_given(address, mac, interface(ctx, port), port) {
        return Ok(());
    }
    Err(Outcome::UnboundSource)
}

/// Whether the sender of `packet` may use its source address; learns it where nobody holds the address.
///
/// Another MAC is believed when the host's neighbour table has it, unless the address was given to a guest that is there. The
/// same MAC at another port is believed when the old port has gone, or once an ARP frame has come in by the new one.
#[inline(never)]
pub fn admit(ctx: &TcContext, packet: &Packet, port: &BridgePort) -> Result<(), Outcome> {
    let (address, mac) = (packet.key.source, packet.stations.source);
    let in_if = interface(ctx, port);
    if is_strict(port) && !is_given(address, mac, in_if, port) {
        return Err(Outcome::UnboundSource);
    }
    let Some(lease) = LEASE.get_ptr_mut(address) else {
        learn(address, mac, in_if, port.bridge);
        return Ok(());
    };
    // SAFETY: the kernel keeps the element readable and writable for the program's run. A stale answer sends one packet to the
    // wrong port of the same bridge.
    let lease = unsafe { &mut *lease };
    if is_barred(lease, in_if) {
        return Err(Outcome::SpoofedSource);
    }
    let is_holder = lease.mac == mac;
    if is_holder {
        if in_if != 0 && lease.port != in_if && bridge::is_direct(lease.port) {
            return Err(Outcome::SpoofedSource);
        }
    } else if is_anothers(lease, mac) || neighbour(ctx, packet, port) != mac {
        return Err(Outcome::SpoofedSource);
    }
    let known_port = if in_if == 0 { lease.port } else { in_if };
    if !is_holder || lease.port != known_port || lease.bridge != port.bridge {
        learn(address, mac, known_port, port.bridge);
        if known_port != 0 {
            bridge::learn(port.bridge, mac, known_port);
        }
    } else {
        confirm(lease);
    }
    Ok(())
}

/// True where guests may use the addresses alone that were given to them.
#[inline(always)]
pub fn is_strict(port: &BridgePort) -> bool {
    port.flags & BridgePortFlags::STRICT != 0
}

/// The port that a frame came in by; zero at the bridge's hook, which sees stations whose port has no hook of its own, and cannot tell
/// those ports apart.
#[inline(always)]
fn interface(ctx: &TcContext, port: &BridgePort) -> u32 {
    if port.flags & BridgePortFlags::IS_BRIDGE == 0 { parse::interface(ctx) } else { 0 }
}

/// True where the address was given to this MAC, and it comes by the port where it lives, or that one has gone: a guest that
/// was moved here has another.
#[inline(always)]
fn is_given(address: Address, mac: Mac, in_if: u32, port: &BridgePort) -> bool {
    let Some(lease) = of(address) else { return false };
    let is_here = in_if == 0 || lease.port == in_if || (!is_barred(lease, in_if) && !stands(lease.port));
    lease.flags & LeaseFlags::BOUND != 0 && lease.mac == mac && lease.bridge == port.bridge && is_here
}

/// True where the address was given to another MAC whose port is there.
#[inline(always)]
fn is_anothers(lease: &Lease, mac: Mac) -> bool {
    lease.flags & LeaseFlags::BOUND != 0 && lease.mac != mac && stands(lease.port)
}

/// True where the address was given to a guest at another port, and nowhere else.
#[inline(always)]
fn is_barred(lease: &Lease, in_if: u32) -> bool {
    lease.flags & LeaseFlags::PORT_BOUND != 0 && in_if != 0 && lease.port != in_if
}

/// True for a port of some bridge, with a hook of its own or without.
#[inline(always)]
fn stands(port: u32) -> bool {
    // SAFETY: user space replaces whole values of this small map.
    port != 0 && unsafe { BRIDGE_PORT.get(port) }.is_some()
}

/// In a strict network, a station moves where its old port has gone.
#[inline(always)]
fn may_move(bridge: u32, mac: Mac, in_if: u32) -> bool {
    // SAFETY: as in `bridge::to_station`.
    let known = unsafe { STATION.get(StationKey::new(bridge, mac)) };
    known.is_none_or(|station| station.port == in_if || !stands(station.port))
}

/// A DHCP client's message (RFC 2131 section 4.1). From whatever address: a server goes by what stands inside.
#[inline(always)]
fn asks_for_lease(packet: &Packet) -> bool {
    packet.tracked.is_ok()
        && packet.key.protocol == Protocol::Udp.number()
        && packet.key.source_port == Port::new(68)
        && packet.key.destination_port == Port::new(67)
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

/// Notes where an address lives. To whom it was given stays with the MAC.
#[inline(always)]
fn learn(address: Address, mac: Mac, port: u32, bridge: u32) {
    let binding = of(address).filter(|lease| lease.mac == mac).map_or(0, |lease| lease.flags & BINDING);
    let flags = LeaseFlags::FROM_TRAFFIC | binding;
    let lease = Lease { port, bridge, mac, flags, last_seen: settings::jiffies() as u32 };
    // A full table costs the guest direct return only.
    let _ = LEASE.insert(address, lease, 0);
}

/// Notes that the guest was seen where it is known to be. One that is replaced at this instant gets a fresh time, and that it was
/// heard; user space settles what it has bound at its next look. Written only where it differs: CPUs that open flows of one guest
/// would take the line from each other.
#[inline(always)]
fn confirm(lease: &mut Lease) {
    let now = settings::jiffies() as u32;
    if lease.last_seen != now || lease.flags & LeaseFlags::FROM_TRAFFIC == 0 {
        lease.last_seen = now;
        lease.flags |= LeaseFlags::FROM_TRAFFIC;
    }
}
