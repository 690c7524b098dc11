//! From the world: the stages in the order a packet meets them.
//!
//! What belongs to no session and no port forward is the host's own and passes untouched.

use aya_ebpf::programs::TcContext;
use vmnat_common::{
    Outcome,
    flow::Side,
    fragment::Place,
    session::{Flags, Session},
};

use crate::{
    bridge, classify, forward, fragment, hairpin, icmp, mss,
    parse::{self, BARE, Frame, Packet},
    rewrite::{self, Change},
    room, route, session, settings,
};

/// The program of an uplink's ingress.
#[inline(always)]
pub fn at_uplink(ctx: &TcContext) -> Result<Outcome, Outcome> {
    if parse::frame(ctx)? == Frame::Arp {
        return Ok(Outcome::NotIpv4);
    }
    let mut packet = Packet::unread();
    parse::ipv4(ctx, Side::Uplink, &mut packet)?;
    fragment::recall(ctx, &mut packet, Place::Uplink);
    let found = if packet.tracked.is_ok() { session::find_at_once(&packet.key) } else { None };
    let session = if let Some(session) = found {
        session
    } else {
        invite(ctx, &packet)?;
        session::find(&packet.key).ok_or(Outcome::StaleFlow)?
    };
    let now = settings::jiffies();
    if session.has(Flags::HOST) {
        session.last_seen = now as u32;
        return Ok(Outcome::NoFlow);
    }
    let epoch = settings::get()?.epoch(now);
    if session.epoch != epoch {
        session::follow_lease(session, epoch);
    }
    if let Err(reason) = fits(&packet, session) {
        return Err(room::send_worlds(ctx, &packet, reason));
    }
    session::touch(ctx, &packet.key, session, &packet, now);
    if packet.is_fragment() {
        fragment::carry(ctx, &packet, Place::Uplink, session.address)?;
    }
    mss::clamp_inbound(ctx, &packet, session);
    rewrite::destination(ctx, &packet, Change::of(session, packet.key.destination_endpoint()))?;
    route::to_guest(ctx, session)?;
    Ok(Outcome::TranslatedInbound)
}

/// The program of a port of an uplink that is a bridge, before `br_netfilter` and the bridge's own rules see the frame. Frames for
/// other stations of that bridge are none of vmnat's.
#[inline(always)]
pub fn at_port(ctx: &TcContext) -> Result<Outcome, Outcome> {
    if parse::frame(ctx)? == Frame::Ipv4 && parse::destination_mac(ctx) != bridge::port_of(ctx)?.mac {
        return Err(Outcome::Bridged);
    }
    at_uplink(ctx)
}

/// The program of the ingress of an uplink without Ethernet. What is a guest's gets the header that its bridge wants, and goes
/// on as everywhere; what is the host's stays as it came.
#[inline(always)]
pub fn at_bare_uplink(ctx: &TcContext) -> Result<Outcome, Outcome> {
    if parse::frame(ctx)? == Frame::Arp {
        return Ok(Outcome::NotIpv4);
    }
    concerns_guests(ctx)?;
    rewrite::add_ethernet(ctx)?;
    at_uplink(ctx)
}

/// Whether a bare IP packet may be any of vmnat's. Fragments are, until their first one is known.
#[inline(never)]
fn concerns_guests(ctx: &TcContext) -> Result<(), Outcome> {
    let mut packet = Packet::unread();
    parse::ipv4_at::<BARE>(ctx, Side::Uplink, &mut packet)?;
    if classify::uninvited(packet.key.source, packet.key.destination) != Outcome::NoFlow {
        return Ok(());
    }
    let concerns = match packet.tracked {
        Ok(()) => match session::find(&packet.key) {
            Some(session) if session.has(Flags::HOST) => {
                session.last_seen = settings::jiffies() as u32;
                false
            }
            Some(_) => true,
            None => hairpin::calls_guest(&packet.key) != 0,
        },
        Err(Outcome::Fragment) => true,
        Err(_) => icmp::is_error(&packet) && icmp::concerns_guest(ctx, &packet),
    };
    if concerns { Ok(()) } else { Err(Outcome::NoFlow) }
}

/// Opens the session of a packet that a port forward invites; every other packet ends here.
#[inline(never)]
fn invite(ctx: &TcContext, packet: &Packet) -> Result<(), Outcome> {
    if packet.tracked.is_ok() {
        match forward::open::<true>(ctx, packet, parse::interface(ctx)) {
            Err(Outcome::NoFlow) => {}
            result => return result,
        }
    }
    // Any router may report an error (RFC 5508 REQ-4), but none outside has an address of a guest's network.
    let uninvited = classify::uninvited(packet.key.source, packet.key.destination);
    if uninvited == Outcome::NoFlow && icmp::is_error(packet) {
        match icmp::inbound(ctx, packet) {
            Err(Outcome::NoFlow) => {}
            Ok(outcome) | Err(outcome) => return Err(outcome),
        }
    }
    match (uninvited, packet.tracked) {
        (Outcome::NoFlow, Err(Outcome::Fragment)) => {
            Err(room::send_worlds(ctx, packet, Outcome::InboundFragment))
        }
        (Outcome::NoFlow, tracked) => {
            fragment::note_hosts(ctx, packet);
            Err(tracked.err().filter(|reason| *reason == Outcome::InboundFragment).unwrap_or(Outcome::NoFlow))
        }
        (outcome, _) => Err(outcome),
    }
}

#[inline(always)]
fn fits(packet: &Packet, session: &Session) -> Result<(), Outcome> {
    if packet.ttl() <= 1 {
        return Err(Outcome::InboundTtlExpired);
    }
    if packet.size > u32::from(session.mtu) {
        return Err(Outcome::InboundTooBig);
    }
    Ok(())
}
