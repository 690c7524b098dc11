//! ICMP errors about a flow: sent to whom the flow belongs, with the quote as that side knows it.
//!
//! Found by the quoted tuple, reversed. They neither refresh nor end a flow, whatever they say (RFC 4787 REQ-12, RFC 5508
//! REQ-6). The sender outside may be any router (RFC 5508 REQ-4); inside it must be the station whose flow it is.

use aya_ebpf::programs::TcContext;
use vmnat_common::{
    Outcome,
    flow::{FlowKey, Side},
    session::{Flags, Session},
    wire::icmp,
};

use crate::{
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

/// Sends an error of the world to the guest whose flow it quotes. The quote is a packet that left: its source is the
/// external endpoint. Other errors are the host's own.
#[inline(always)]
pub fn inbound(ctx: &TcContext, packet: &Packet) -> Result<Outcome, Outcome> {
    let mut quote = Quote::default();
    parse::quote(ctx, packet, &mut quote).map_err(|()| Outcome::NoFlow)?;
    let key = FlowKey::new(quote.protocol, Side::Uplink, quote.destination, quote.source);
    let session = session::find(&key)?.ok_or(Outcome::NoFlow)?;
    if session.has(Flags::HOST) || packet.key.destination != quote.source.address {
        return Err(Outcome::NoFlow);
    }
    if packet.ttl() <= 1 {
        return Err(Outcome::InboundTtlExpired);
    }
    let change = change_of(session);
    rewrite::quoted_source(ctx, packet, &quote, change)?;
    rewrite::outer_destination(ctx, packet, change)?;
    if session.has(Flags::VIA_NEIGHBOUR) {
        route::to_neighbour(session.out_if, session.address);
    } else {
        rewrite::macs(ctx, session.destination_mac, session.source_mac)?;
        route::to_port(session.out_if);
    }
    Ok(Outcome::ErrorInbound)
}

/// Sends a guest's error to the remote whose packet it quotes: that packet's destination was the guest, whose address its
/// sender may use (see `lease`).
#[inline(always)]
pub fn outbound(ctx: &TcContext, packet: &Packet) -> Result<Outcome, Outcome> {
    let mut quote = Quote::default();
    parse::quote(ctx, packet, &mut quote).map_err(|()| Outcome::ErrorWithoutFlow)?;
    let key = FlowKey::new(quote.protocol, Side::Guest, quote.destination, quote.source);
    let session = session::find(&key)?.ok_or(Outcome::ErrorWithoutFlow)?;
    let (source, destination) = (packet.key.source, packet.key.destination);
    if source != quote.destination.address || destination != quote.source.address {
        return Err(Outcome::ErrorWithoutFlow);
    }
    let change = change_of(session);
    rewrite::quoted_destination(ctx, packet, &quote, change)?;
    rewrite::outer_source(ctx, packet, change)?;
    verdict::leave(ctx, Mark::translated(settings::get()?));
    route::to_neighbour(session.out_if, session.next_hop);
    Ok(Outcome::ErrorOutbound)
}

#[inline(always)]
fn change_of(session: &Session) -> Change {
    Change {
        address: session.address,
        port: session.port,
        address_diff: session.address_diff,
        port_diff: session.port_diff,
    }
}
