//! From a guest: the stages in the order a packet meets them.
//!
//! The hot path is: parse, one look-up, the change, the redirect. Everything that asks a second question (no session, a
//! sender that does not match, a route that is due for a check) is in [`judge`].

use aya_ebpf::programs::TcContext;
use vmnat_common::{Outcome, bridge::BridgePort, flow::Side, session::Session};

use crate::{
    bridge, classify, icmp, lease,
    maps::BRIDGE_PORT,
    parse::{self, Frame, Packet},
    rewrite, route, session, settings,
    verdict::{self, Mark},
};

/// The program of a bridge's port.
#[inline(always)]
pub fn at_port(ctx: &TcContext) -> Result<Outcome, Outcome> {
    if parse::frame(ctx)? == Frame::Arp {
        lease::learn_from_arp(ctx, port_of(ctx)?);
        return Ok(Outcome::NotIpv4);
    }
    translate(ctx)
}

/// The program of a bridge. Replies to ARP that were addressed to the host alone are seen here too, but say nothing about
/// the port.
#[inline(always)]
pub fn at_bridge(ctx: &TcContext) -> Result<Outcome, Outcome> {
    if parse::frame(ctx)? == Frame::Arp {
        return Ok(Outcome::NotIpv4);
    }
    translate(ctx)
}

#[inline(always)]
fn translate(ctx: &TcContext) -> Result<Outcome, Outcome> {
    let mut packet = Packet::unread();
    parse::ipv4(ctx, Side::Guest, &mut packet)?;
    let now = settings::jiffies();
    let settings = settings::get()?;
    let epoch = settings.epoch(now);
    let found = if packet.tracked.is_ok() { session::find(&packet.key)? } else { None };
    let session = match found {
        Some(session) if session.epoch == epoch && session::is_senders(ctx, &packet, session) => session,
        _ => {
            judge(ctx, &packet)?;
            session::find(&packet.key)?.ok_or(Outcome::StaleFlow)?
        }
    };
    fits(&packet, session)?;
    session::touch(ctx, session, &packet, now);
    let change = rewrite::Change {
        address: session.address,
        port: session.port,
        address_diff: session.address_diff,
        port_diff: session.port_diff,
    };
    rewrite::source(ctx, &packet, change)?;
    verdict::leave(ctx, Mark::translated(settings));
    route::to_neighbour(session.out_if, session.next_hop);
    Ok(Outcome::TranslatedOutbound)
}

/// Decides about a packet without a valid session; when it returns `Ok` there is one.
#[inline(never)]
fn judge(ctx: &TcContext, packet: &Packet) -> Result<(), Outcome> {
    let port = port_of(ctx)?;
    if packet.destination_mac != port.mac {
        return Err(bridge::to_station(ctx, packet, port).unwrap_or_else(|outcome| outcome));
    }
    let way = classify::way_out(ctx, packet, port)?;
    let is_error = icmp::is_error(packet);
    if !is_error {
        packet.tracked?;
    }
    if packet.ttl() <= 1 {
        return Err(Outcome::TtlExpired);
    }
    lease::admit(ctx, packet, port)?;
    if is_error {
        return Err(answer(ctx, packet));
    }
    if let Some(session) = session::find(&packet.key)?
        && session::renew(ctx, packet, session, port, &way)?
    {
        return Ok(());
    }
    session::open(ctx, packet, port, &way)
}

/// Sends a guest's ICMP error; a call of its own for the sake of the stack.
#[inline(never)]
fn answer(ctx: &TcContext, packet: &Packet) -> Outcome {
    let (Ok(outcome) | Err(outcome)) = icmp::outbound(ctx, packet);
    outcome
}

/// Whether the packet may take one more hop and fits the uplink. The kernel answers the guest where it can: before any
/// FORWARD rule, with the guest's own packet quoted.
#[inline(always)]
fn fits(packet: &Packet, session: &Session) -> Result<(), Outcome> {
    if packet.ttl() <= 1 {
        return Err(Outcome::TtlExpired);
    }
    if packet.size > u32::from(session.mtu) {
        return Err(if packet.must_not_fragment { Outcome::TooBig } else { Outcome::TooBigToFragment });
    }
    Ok(())
}

#[inline(always)]
fn port_of(ctx: &TcContext) -> Result<&'static BridgePort, Outcome> {
    // SAFETY: the kernel keeps a map's element readable for the program's run; user space replaces whole values of this
    // small map. By reference, as a copy would take a share of the stack.
    unsafe { BRIDGE_PORT.get(parse::interface(ctx)) }.ok_or(Outcome::Unmanaged)
}
