//! From a guest to an external endpoint that leads to a guest (RFC 4787 REQ-9, RFC 5382 REQ-8).
//!
//! Such a conversation is two ordinary sessions that face each other, as if the packet had gone out by an uplink and come in
//! again: the sender's, whose remote is the external endpoint that it calls, and the receiver's, whose remote is the external
//! endpoint that the sender has. The receiver sees the sender's external address and port, and so it answers the same way
//! round. The packet turns here: source as the first session says, destination as the second.

use aya_ebpf::programs::TcContext;
use vmnat_common::{
    Address, Outcome,
    bridge::BridgePort,
    flow::{FlowKey, Side},
    session::{Flags, Session},
};

use crate::{
    classify::Way,
    filtering, forward, mss,
    parse::Packet,
    rewrite::{self, Change},
    route, session, settings,
};

/// Whether the packet turns round on the host: its session does, or it calls a port forward or a guest's mapping.
#[inline(always)]
pub fn concerns(packet: &Packet, known: Option<&Session>) -> bool {
    match known {
        Some(session) => session.has(Flags::HAIRPIN),
        None => packet.tracked.is_ok() && calls_guest(&packet.key) != 0,
    }
}

/// Not zero for a tuple that calls a port forward or a guest's mapping. A call of its own, so that the verifier meets what follows
/// once and not for each of the ways through.
#[inline(never)]
pub fn calls_guest(key: &FlowKey) -> u32 {
    u32::from(forward::find(key).is_some() || filtering::owner(key).is_some())
}

/// The way of a packet that turns round: to the bridge that it came from, with the external address that it calls. Of a session that keeps
/// its guest's address, with that.
#[inline(always)]
pub fn way(packet: &Packet, port: &BridgePort, known: Option<&Session>) -> Way {
    let is_across = known.is_some_and(|known| known.address == packet.key.source);
    if is_across {
        return across(packet, port);
    }
    from(port, packet.key.destination)
}

/// The way to a guest of another network, which sees its caller's own address.
#[inline(always)]
pub fn across(packet: &Packet, port: &BridgePort) -> Way {
    from(port, packet.key.source)
}

#[inline(always)]
fn from(port: &BridgePort, address: Address) -> Way {
    Way { out_if: port.bridge, next_hop: Address::UNSPECIFIED, address, mtu: port.mtu, flags: Flags::HAIRPIN }
}

/// Takes the packet, whose sender has `session`, on to whom its destination leads.
#[inline(never)]
pub fn turn(ctx: &TcContext, packet: &Packet, session: &Session) -> Outcome {
    let (Ok(outcome) | Err(outcome)) = turned(ctx, packet, session);
    outcome
}

#[inline(always)]
fn turned(ctx: &TcContext, packet: &Packet, session: &Session) -> Result<Outcome, Outcome> {
    if packet.ttl() <= 1 {
        return Err(Outcome::InboundTtlExpired);
    }
    let own = session.rewritten();
    let side = if own == packet.key.source_endpoint() { Side::Across } else { Side::Uplink };
    let key = FlowKey::new(packet.key.protocol, side, own, packet.key.destination_endpoint());
    let onward = if let Some(onward) = session::find(&key) {
        onward
    } else {
        forward::open_turned(ctx, packet, &key)?;
        session::find(&key).ok_or(Outcome::StaleFlow)?
    };
    let now = settings::jiffies();
    let epoch = settings::get()?.epoch(now);
    if onward.epoch != epoch {
        session::follow_lease(onward, epoch);
    }
    if packet.size > u32::from(onward.mtu) {
        return Err(Outcome::InboundTooBig);
    }
    session::touch(ctx, &key, onward, packet, now);
    mss::clamp(ctx, packet, onward.mtu);
    rewrite::both(
        ctx,
        packet,
        Change::of(session, packet.key.source_endpoint()),
        Change::of(onward, packet.key.destination_endpoint()),
    )?;
    route::to_guest(ctx, onward)?;
    Ok(Outcome::Hairpin)
}
