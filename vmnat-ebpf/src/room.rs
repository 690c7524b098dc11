//! The quiet room (see `vmnat_common::room`): the ways in for packets that need a whole stack, and its two ways out.
//!
//! What a guest sends goes in only after its sender was admitted, so what comes out on that side is believed. The room takes one
//! hop, so packets get one more on their way in, and the programs behind it translate as everywhere.

use aya_ebpf::programs::TcContext;
use vmnat_common::{
    Address, Mac, Outcome,
    bridge::BridgePort,
    checksum::address_diff,
    flow::{FlowKey, Side},
    fragment::Place,
    room,
    session::Flags,
};

use crate::{
    access, bridge, classify, forward, fragment, hairpin, icmp, lease,
    maps::{BRIDGE_PORT, NETWORK},
    mss, outbound,
    parse::{self, Frame, Packet, Quote},
    quota,
    rewrite::{self, Change},
    route, service, session, settings,
    verdict::{self, Mark},
};

/// Sends a guest's packet through the room that is larger than the uplink carries and may be fragmented, or a fragment whose
/// first one is not known; otherwise the `reason` stands.
#[inline(never)]
pub fn send_guests(ctx: &TcContext, packet: &Packet, reason: Outcome) -> Outcome {
    let (Ok(outcome) | Err(outcome)) = enter(ctx, packet, reason, Place::Guest);
    outcome
}

/// Sends a packet of the world through the room that is larger than the guest's network carries, has no hop left, or is a
/// fragment whose first one is not known; otherwise the `reason` stands.
#[inline(never)]
pub fn send_worlds(ctx: &TcContext, packet: &Packet, reason: Outcome) -> Outcome {
    let (Ok(outcome) | Err(outcome)) = enter(ctx, packet, reason, Place::Uplink);
    outcome
}

#[inline(always)]
fn enter(ctx: &TcContext, packet: &Packet, reason: Outcome, place: Place) -> Result<Outcome, Outcome> {
    let settings = settings::get()?;
    let room = settings.room;
    let serves = matches!(
        reason,
        Outcome::Fragment
            | Outcome::TooBigToFragment
            | Outcome::InboundFragment
            | Outcome::InboundTooBig
            | Outcome::InboundTtlExpired
    );
    if !room.exists() || !serves || verdict::finds(ctx, Mark::ordered(settings)) {
        return Err(reason);
    }
    let payer = if matches!(place, Place::Guest) { packet.key.source } else { Address::UNSPECIFIED };
    if !quota::admits_to_room(payer) {
        return Err(reason);
    }
    if matches!(reason, Outcome::Fragment | Outcome::InboundFragment) {
        fragment::note_waiting(ctx, packet, place)?;
    }
    if reason != Outcome::InboundTtlExpired {
        rewrite::one_hop_more(ctx, packet)?;
    }
    let (mac, out_if) = match place {
        Place::Guest => (room::INNER_MAC, room.inner),
        _ => (room::OUTER_MAC, room.outer),
    };
    rewrite::macs(ctx, mac, packet.stations.destination)?;
    route::to_port(out_if);
    Ok(Outcome::QuietRoom)
}

/// Has the room tell a guest that its flow is refused (ICMP 3/13; RFC 5508 REQ-8), at most once in a tick of the clock. The
/// packet itself is dropped for the `reason`; the room gets a copy.
#[inline(never)]
pub fn refuse(ctx: &TcContext, packet: &Packet, reason: Outcome) -> Outcome {
    let tells = matches!(
        reason,
        Outcome::FlowQuota
            | Outcome::HalfOpenQuota
            | Outcome::RateQuota
            | Outcome::PortsExhausted
            | Outcome::FlowTableFull
            | Outcome::FlowConflict
            | Outcome::NoUplinkAddress
            | Outcome::AccessDenied
    );
    if let Ok(settings) = settings::get()
        && settings.room.refusing != 0
        && tells
        && quota::may_be_told(packet.key.source)
        && rewrite::macs(ctx, room::REFUSING_MAC, packet.stations.destination).is_ok()
    {
        route::copy_to(ctx, settings.room.refusing);
    }
    reason
}

/// The program of the outer way out: what guests sent, in order and in size, and what the room tells the world.
#[inline(always)]
pub fn outward(ctx: &TcContext) -> Result<Outcome, Outcome> {
    if parse::frame(ctx)? == Frame::Arp {
        return Ok(Outcome::NotIpv4);
    }
    let mut packet = Packet::unread();
    parse::ipv4(ctx, Side::Guest, &mut packet)?;
    if packet.key.source == room::ADDRESS {
        return Ok(tell_world(ctx, &packet));
    }
    fragment::recall(ctx, &mut packet, Place::GuestOrdered);
    packet.tracked?;
    let session = if let Some(session) = session::find(&packet.key) {
        session
    } else {
        judge(ctx, &mut packet)?;
        outbound::open(ctx, &packet, bridge_of(packet.key.source)?)?;
        session::find(&packet.key).ok_or(Outcome::StaleFlow)?
    };
    session::touch(ctx, &packet.key, session, &packet, settings::jiffies());
    if packet.is_fragment() {
        fragment::carry(ctx, &packet, Place::GuestOrdered, session.address)?;
    }
    if session.has(Flags::HAIRPIN) {
        return Ok(hairpin::turn(ctx, &packet, session));
    }
    if packet.ttl() <= 1 || packet.size > u32::from(session.mtu) {
        return Err(Outcome::TooBigToFragment);
    }
    mss::clamp(ctx, &packet, session.mtu);
    rewrite::source(ctx, &packet, Change::of(session, packet.key.source_endpoint()))?;
    verdict::leave(ctx, Mark::translated(settings::get()?));
    route::to_neighbour(session.out_if, session.next_hop);
    Ok(Outcome::TranslatedOutbound)
}

/// Notes the way of a datagram that was put in order before anything was known of its flow, and makes it look as its guest's own
/// first packet would have.
#[inline(never)]
fn judge(ctx: &TcContext, packet: &mut Packet) -> Result<(), Outcome> {
    let port = bridge_of(packet.key.source)?;
    packet.stations.source = lease::of(packet.key.source).map_or(Mac::ZERO, |lease| lease.mac);
    packet.stations.destination = port.mac;
    let way = session::way()?;
    *way = hairpin::way(packet, port, None);
    if !hairpin::concerns(packet, None)
        && let Err(reason) = classify::way_out(ctx, packet, port, way)
    {
        access::elsewhere(packet, port, reason, way)?;
    }
    access::may_call(packet, port, way.address == packet.key.source)
}

/// The bridge of a guest.
#[inline(always)]
fn bridge_of(guest: Address) -> Result<&'static BridgePort, Outcome> {
    let network = NETWORK.get(network_key(guest)).ok_or(Outcome::ForeignSource)?;
    // SAFETY: user space replaces whole values of this small map.
    unsafe { BRIDGE_PORT.get(network.bridge) }.ok_or(Outcome::Unmanaged)
}

/// The program of the inner way out: what the world sent, in order and in size, and what the room tells guests.
#[inline(always)]
pub fn inward(ctx: &TcContext) -> Result<Outcome, Outcome> {
    if parse::frame(ctx)? == Frame::Arp {
        return Ok(Outcome::NotIpv4);
    }
    let mut packet = Packet::unread();
    parse::ipv4(ctx, Side::Uplink, &mut packet)?;
    if packet.key.source == room::ADDRESS {
        return Ok(tell_guest(ctx, &packet));
    }
    let answered = service::answer(ctx, &packet);
    if answered != Outcome::NoFlow {
        return Ok(answered);
    }
    fragment::recall(ctx, &mut packet, Place::UplinkOrdered);
    let found = if packet.tracked.is_ok() { session::find(&packet.key) } else { None };
    let session = if let Some(session) = found {
        session
    } else {
        let via = fragment::came_by(ctx, &packet);
        match forward::open::<false>(ctx, &packet, via) {
            Ok(()) => {}
            Err(Outcome::NoFlow) => return give_back(ctx, via),
            Err(reason) => return Err(reason),
        }
        session::find(&packet.key).ok_or(Outcome::StaleFlow)?
    };
    if session.has(Flags::HOST) {
        return give_back(ctx, fragment::came_by(ctx, &packet));
    }
    // A fragment went in before it was known whose it is, and so whether its last hop ends here.
    if packet.ttl() <= 1 {
        return Err(Outcome::InboundTtlExpired);
    }
    let now = settings::jiffies();
    let epoch = settings::get()?.epoch(now);
    if session.epoch != epoch {
        session::follow_lease(session, epoch);
    }
    session::touch(ctx, &packet.key, session, &packet, now);
    if packet.is_fragment() {
        fragment::carry(ctx, &packet, Place::UplinkOrdered, session.address)?;
    }
    mss::clamp_inbound(ctx, &packet, session);
    rewrite::destination(ctx, &packet, Change::of(session, packet.key.destination_endpoint()))?;
    route::to_guest(ctx, session)?;
    Ok(Outcome::TranslatedInbound)
}

/// Gives the host a datagram of its own that was put in order, as if it had just come in.
#[inline(always)]
fn give_back(ctx: &TcContext, via: u32) -> Result<Outcome, Outcome> {
    if via == 0 {
        return Err(Outcome::Fragment);
    }
    verdict::leave(ctx, Mark::ordered(settings::get()?));
    route::into(via);
    Ok(Outcome::QuietRoom)
}

/// Sends an ICMP error of the room to the world: about a packet for an external endpoint, and from that address.
#[inline(never)]
fn tell_world(ctx: &TcContext, packet: &Packet) -> Outcome {
    let (Ok(outcome) | Err(outcome)) = told_world(ctx, packet);
    outcome
}

#[inline(always)]
fn told_world(ctx: &TcContext, packet: &Packet) -> Result<Outcome, Outcome> {
    let mut quote = Quote::default();
    if !icmp::is_error(packet) || parse::quote(ctx, packet, &mut quote).is_err() {
        return Err(Outcome::ErrorWithoutFlow);
    }
    let key = FlowKey::new(quote.protocol, Side::Uplink, quote.source, quote.destination);
    let session = session::find(&key).ok_or(Outcome::ErrorWithoutFlow)?;
    let guests = session::find(&key.reverse(session.rewritten())).ok_or(Outcome::ErrorWithoutFlow)?;
    rewrite::outer_source(ctx, packet, from_room(quote.destination.address))?;
    verdict::leave(ctx, Mark::translated(settings::get()?));
    route::to_neighbour(guests.out_if, guests.next_hop);
    Ok(Outcome::QuietRoom)
}

/// Sends an ICMP error of the room to a guest, from its gateway.
#[inline(never)]
fn tell_guest(ctx: &TcContext, packet: &Packet) -> Outcome {
    let (Ok(outcome) | Err(outcome)) = told_guest(ctx, packet);
    outcome
}

#[inline(always)]
fn told_guest(ctx: &TcContext, packet: &Packet) -> Result<Outcome, Outcome> {
    let guest = packet.key.destination;
    let network = NETWORK.get(network_key(guest)).ok_or(Outcome::ErrorWithoutFlow)?;
    if !icmp::is_error(packet) {
        return Err(Outcome::ErrorWithoutFlow);
    }
    rewrite::outer_source(ctx, packet, from_room(network.gateway))?;
    match lease::of(guest) {
        Some(lease) if bridge::is_direct(lease.port) => {
            rewrite::macs(ctx, lease.mac, bridge_of(guest)?.mac)?;
            route::to_port(lease.port);
        }
        _ => route::to_neighbour(network.bridge, guest),
    }
    Ok(Outcome::QuietRoom)
}

/// Puts another address in the place of the room's own.
#[inline(always)]
fn from_room(address: Address) -> Change {
    Change {
        address,
        port: vmnat_common::Port::new(0),
        address_diff: address_diff(room::ADDRESS, address),
        port_diff: 0,
    }
}

#[inline(always)]
fn network_key(address: Address) -> aya_ebpf::maps::lpm_trie::Key<Address> {
    aya_ebpf::maps::lpm_trie::Key::new(32, address)
}
