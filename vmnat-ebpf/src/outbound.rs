//! From a guest: the stages in the order a packet meets them.
//!
//! The hot path is: parse, one look-up, the change, the redirect. Everything that asks a second question (no session, a
//! sender that does not match, a route that is due for a check) is in [`judge`].

use aya_ebpf::programs::TcContext;
use vmnat_common::{
    Outcome,
    bridge::{BridgePort, BridgePortFlags},
    flow::Side,
    fragment::Place,
    session::{Flags, Session},
};

use crate::{
    access, bridge, classify, fragment, hairpin, icmp, lease, mss, next_hop,
    parse::{self, Frame, Packet},
    quota,
    rewrite::{self, Change},
    room, service, session, settings,
    verdict::{self, Mark},
};

/// The program of a bridge's port.
#[inline(always)]
pub fn at_port(ctx: &TcContext) -> Result<Outcome, Outcome> {
    if parse::frame(ctx)? == Frame::Arp {
        return hear_arp(ctx);
    }
    translate(ctx)
}

/// The program of a bridge.
#[inline(always)]
pub fn at_bridge(ctx: &TcContext) -> Result<Outcome, Outcome> {
    if parse::frame(ctx)? == Frame::Arp {
        return hear_arp(ctx);
    }
    translate(ctx)
}

#[inline(always)]
fn hear_arp(ctx: &TcContext) -> Result<Outcome, Outcome> {
    lease::hear_arp(ctx, bridge::port_of(ctx)?)?;
    Ok(Outcome::NotIpv4)
}

#[inline(always)]
fn translate(ctx: &TcContext) -> Result<Outcome, Outcome> {
    let mut packet = Packet::unread();
    parse::ipv4(ctx, Side::Guest, &mut packet)?;
    fragment::recall(ctx, &mut packet, Place::Guest);
    let now = settings::jiffies();
    let settings = settings::get()?;
    let epoch = settings.epoch(now);
    let found = if packet.tracked.is_ok() { session::find_at_once(&packet.key) } else { None };
    let session = match found {
        Some(session) if session::is_current(ctx, &packet, session, epoch) => session,
        found => {
            let port = bridge::port_of(ctx)?;
            match judge(ctx, &packet, port, found.as_deref()) {
                Ok(Judged::Passes) => {}
                Ok(Judged::Fragment) => return Err(room::send_guests(ctx, &packet, Outcome::Fragment)),
                Ok(Judged::Error) => return Err(answer(ctx, &packet)),
                Ok(Judged::ErrorToHost) => return Err(answer_or_host(ctx, &packet)),
                Err(reason) => return Err(refused(ctx, &packet, reason)),
            }
            let stands = match found {
                Some(session) => session::renew(ctx, &packet, session, port)?.then_some(session),
                None => None,
            };
            if let Some(session) = stands {
                session
            } else {
                if let Err(reason) = open(ctx, &packet, port) {
                    return Err(room::refuse(ctx, &packet, reason));
                }
                session::find(&packet.key).ok_or(Outcome::StaleFlow)?
            }
        }
    };
    let turns = session.has(Flags::HAIRPIN);
    if !turns && let Err(reason) = fits(&packet, session) {
        return Err(room::send_guests(ctx, &packet, reason));
    }
    session::touch(ctx, &packet.key, session, &packet, now);
    if packet.is_fragment() {
        fragment::carry(ctx, &packet, Place::Guest, session.address)?;
    }
    if turns {
        return Ok(hairpin::turn(ctx, &packet, session));
    }
    mss::clamp(ctx, &packet, session.mtu);
    rewrite::source(ctx, &packet, Change::of(session, packet.key.source_endpoint()))?;
    verdict::leave(ctx, Mark::translated(settings));
    next_hop::leave(ctx, &packet, session, now)?;
    Ok(Outcome::TranslatedOutbound)
}

/// What a guest's packet without a valid session is, whose sender and way are in order. What each takes is done where the judgement is
/// over: within it, the verifier would walk that for each of the ways there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Judged {
    /// One of the session that is known, if that stands, or one that may open a session; by the way that was noted.
    Passes,
    /// A fragment that came before the one that tells whose it is.
    Fragment,
    /// An ICMP error.
    Error,
    /// An ICMP error to the host, about a packet that turned round there or about the host's own.
    ErrorToHost,
}

/// Decides about a packet without a valid session.
#[inline(never)]
fn judge(
    ctx: &TcContext,
    packet: &Packet,
    port: &BridgePort,
    known: Option<&Session>,
) -> Result<Judged, Outcome> {
    if lease::is_strict(port) {
        lease::hold(ctx, packet, port)?;
    }
    if packet.stations.destination != port.mac {
        return Err(bridge::to_station(ctx, packet, port).unwrap_or_else(|outcome| outcome));
    }
    let way = service::way(ctx, packet, port.bridge);
    if way != service::NONE {
        classify::check_sender(packet, port)?;
        lease::admit(ctx, packet, port)?;
        return Err(service::lead(ctx, packet, way).unwrap_or_else(|outcome| outcome));
    }
    let is_error = icmp::is_error(packet);
    let turns = hairpin::concerns(packet, known);
    let way = session::way()?;
    *way = hairpin::way(packet, port, known);
    let mut is_hosts = false;
    if turns {
        classify::check_sender(packet, port)?;
    } else if let Err(reason) = classify::way_out(ctx, packet, port, way) {
        // An error to the host itself may be about a packet that turned round there.
        is_hosts = is_error && reason == Outcome::ToHost && classify::check_sender(packet, port).is_ok();
        if !is_hosts {
            // An error may cross networks if its conversation does.
            let is_answer =
                is_error && reason == Outcome::OtherNetwork && port.flags & BridgePortFlags::ACCESS != 0;
            if is_answer {
                classify::check_sender(packet, port)?;
            } else {
                access::elsewhere(packet, port, reason, way)?;
            }
        }
    }
    if !is_error && packet.tracked != Err(Outcome::Fragment) {
        packet.tracked?;
    }
    if packet.ttl() <= 1 {
        return Err(Outcome::TtlExpired);
    }
    lease::admit(ctx, packet, port)?;
    if packet.tracked == Err(Outcome::Fragment) {
        return Ok(Judged::Fragment);
    }
    if is_error {
        return Ok(if is_hosts { Judged::ErrorToHost } else { Judged::Error });
    }
    // An answer is no call.
    let answers = known.is_some_and(|known| known.has(Flags::FORWARDED));
    if !answers {
        access::may_call(packet, port, way.address == packet.key.source)?;
    }
    Ok(Judged::Passes)
}

/// Tells the guest where it may be told, and gives the reason.
#[inline(always)]
fn refused(ctx: &TcContext, packet: &Packet, reason: Outcome) -> Outcome {
    if reason == Outcome::AccessDenied { room::refuse(ctx, packet, reason) } else { reason }
}

/// Opens the session of a packet that may have one, within its guest's quota.
#[inline(always)]
pub fn open(ctx: &TcContext, packet: &Packet, port: &BridgePort) -> Result<(), Outcome> {
    quota::take(packet.key.source, packet.tcp_flags)?;
    let opened = session::open(ctx, packet, port);
    if opened.is_err() {
        quota::release(packet.key.source, quota::opens_half(packet.tcp_flags) != 0);
    }
    opened
}

/// Sends a guest's ICMP error; a call of its own for the sake of the stack.
#[inline(never)]
fn answer(ctx: &TcContext, packet: &Packet) -> Outcome {
    let (Ok(outcome) | Err(outcome)) = icmp::outbound(ctx, packet);
    outcome
}

/// The same for one to the host itself.
#[inline(always)]
fn answer_or_host(ctx: &TcContext, packet: &Packet) -> Outcome {
    match answer(ctx, packet) {
        // About a conversation with the host itself.
        Outcome::ErrorWithoutFlow => Outcome::ToHost,
        outcome => outcome,
    }
}

/// Whether the packet may take one more hop and fits the uplink. The kernel answers the guest where it can: before any
/// FORWARD rule, with the guest's own packet quoted.
#[inline(always)]
fn fits(packet: &Packet, session: &Session) -> Result<(), Outcome> {
    if packet.ttl() <= 1 {
        return Err(Outcome::TtlExpired);
    }
    if packet.size > u32::from(session.mtu) {
        return Err(if packet.must_not_fragment() { Outcome::TooBig } else { Outcome::TooBigToFragment });
    }
    Ok(())
}
