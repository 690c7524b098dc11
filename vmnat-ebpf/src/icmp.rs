//! ICMP errors about a flow: sent to whom the flow belongs, with the quote as that side knows it.
//!
//! Found by the quoted tuple, reversed. They neither refresh nor end a flow, whatever they say (RFC 4787 REQ-12, RFC 5508
//! REQ-6). The sender outside may be any router (RFC 5508 REQ-4); inside it must be the station whose flow it is.

use aya_ebpf::{maps::lpm_trie::Key, programs::TcContext};
use vmnat_common::{
    Outcome,
    endpoint::Endpoint,
    flow::{FlowKey, Side},
    session::{Flags, Session},
    wire::icmp,
};

use crate::{
    maps::NETWORK,
    parse::{self, Packet, Quote},
    rewrite::{self, Change},
    route, session, settings,
    verdict::{self, Mark},
};

/// True for a message that reports about another packet.
#[inline(always)]
pub fn is_error(packet: &Packet) -> bool {
    packet.tracked == Err(Outcome::IcmpNotQuery) && icmp::class(packet.icmp_type) == icmp::Class::Error
}

/// True for an error of the world that quotes a guest's flow.
#[inline(always)]
pub fn concerns_guest(ctx: &TcContext, packet: &Packet) -> bool {
    let mut quote = Quote::default();
    if parse::quote(ctx, packet, &mut quote).is_err() {
        return false;
    }
    let key = FlowKey::new(quote.protocol, Side::Uplink, quote.destination, quote.source);
    session::find(&key).is_some_and(|session| !session.has(Flags::HOST))
}

/// Sends an error of the world to the guest whose flow it quotes. The quote is a packet that left: its source is the
/// external endpoint. Other errors are the host's own.
#[inline(always)]
pub fn inbound(ctx: &TcContext, packet: &Packet) -> Result<Outcome, Outcome> {
    let mut quote = Quote::default();
    parse::quote(ctx, packet, &mut quote).map_err(|()| Outcome::NoFlow)?;
    let key = FlowKey::new(quote.protocol, Side::Uplink, quote.destination, quote.source);
    let session = session::find(&key).ok_or(Outcome::NoFlow)?;
    if session.has(Flags::HOST) || packet.key.destination != quote.source.address {
        return Err(Outcome::NoFlow);
    }
    if packet.ttl() <= 1 {
        return Err(Outcome::InboundTtlExpired);
    }
    let change = Change::of(session, quote.source);
    rewrite::quoted_source(ctx, packet, &quote, change)?;
    rewrite::outer_destination(ctx, packet, change)?;
    route::to_guest(ctx, session)?;
    Ok(Outcome::ErrorInbound)
}

/// Sends a guest's error to the remote whose packet it quotes: that packet's destination was the guest, whose address its
/// sender may use (see `lease`).
#[inline(always)]
pub fn outbound(ctx: &TcContext, packet: &Packet) -> Result<Outcome, Outcome> {
    let mut quote = Quote::default();
    parse::quote(ctx, packet, &mut quote).map_err(|()| Outcome::ErrorWithoutFlow)?;
    let key = FlowKey::new(quote.protocol, Side::Guest, quote.destination, quote.source);
    let session = session::find(&key).ok_or(Outcome::ErrorWithoutFlow)?;
    let (source, destination) = (packet.key.source, packet.key.destination);
    if source != quote.destination.address || destination != quote.source.address {
        return Err(Outcome::ErrorWithoutFlow);
    }
    let change = Change::of(session, quote.destination);
    // Found before a byte is changed: the host may yet get the packet as its own.
    let onward = if session.has(Flags::HAIRPIN) { Some(onward(&quote, change)?) } else { None };
    rewrite::quoted_destination(ctx, packet, &quote, change)?;
    if let Some(onward) = onward {
        return turn(ctx, packet, &quote, change, onward);
    }
    rewrite::outer_source(ctx, packet, change)?;
    verdict::leave(ctx, Mark::translated(settings::get()?));
    route::to_neighbour(session.out_if, session.next_hop);
    Ok(Outcome::ErrorOutbound)
}

/// Puts the external endpoint into the quote of an error that the host's kernel sends to the world about a packet for a guest.
/// One that quotes a guest and no flow of it does not leave.
#[inline(never)]
pub fn disguise(ctx: &TcContext, packet: &Packet) -> Outcome {
    let (Ok(outcome) | Err(outcome)) = disguised(ctx, packet);
    outcome
}

#[inline(always)]
fn disguised(ctx: &TcContext, packet: &Packet) -> Result<Outcome, Outcome> {
    let mut quote = Quote::default();
    if parse::quote(ctx, packet, &mut quote).is_err()
        || NETWORK.get(Key::new(32, quote.destination.address)).is_none()
    {
        return Ok(Outcome::Clean);
    }
    let key = FlowKey::new(quote.protocol, Side::Guest, quote.destination, quote.source);
    let session = session::find(&key).ok_or(Outcome::LeakedSource)?;
    rewrite::quoted_destination(ctx, packet, &quote, Change::of(session, quote.destination))?;
    Ok(Outcome::Disguised)
}

/// The session by which the packet came that a guest's error is about, where that turned round on the host.
#[inline(always)]
fn onward(quote: &Quote, change: Change) -> Result<&'static Session, Outcome> {
    let called = Endpoint::new(change.address, change.port);
    let side = if called == quote.destination { Side::Across } else { Side::Uplink };
    let key = FlowKey::new(quote.protocol, side, called, quote.source);
    session::find(&key).map(|session| &*session).ok_or(Outcome::ErrorWithoutFlow)
}

/// Takes an error about a packet that turned round on the host to the guest that had sent it. The quote's destination is
/// the external endpoint by now, as the sender knows it.
#[inline(always)]
fn turn(
    ctx: &TcContext,
    packet: &Packet,
    quote: &Quote,
    change: Change,
    onward: &Session,
) -> Result<Outcome, Outcome> {
    let back = Change::of(onward, quote.source);
    rewrite::quoted_source(ctx, packet, quote, back)?;
    rewrite::outer_both(ctx, packet, change, back)?;
    route::to_guest(ctx, onward)?;
    Ok(Outcome::Hairpin)
}
