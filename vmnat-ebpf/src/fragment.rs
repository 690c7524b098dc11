//! Fragments: the first has the ports, the others borrow them.
//!
//! A datagram whose first fragment comes first, as all present systems send them, is translated as it passes. One that begins
//! with another fragment goes to the quiet room as a whole and comes out of it in order. What guests send leaves with an
//! identification that no other guest's datagram to that remote has (RFC 6864 section 5.2): its own, wherever that is free.

use aya_ebpf::{helpers::generated::bpf_get_prandom_u32, programs::TcContext};
use vmnat_common::{
    Address, Outcome, Port,
    fragment::{Fate, Fragment, FragmentKey, Place, SECONDS},
    timeout::age,
    wire::ipv4,
};

use crate::{
    bridge,
    maps::FRAGMENT,
    parse::{self, L3, Packet},
    rewrite, settings,
};

/// Identifications that are tried before a datagram is refused.
const TRIES: u32 = 4;

/// Gives a fragment its datagram's ports, where they can be known; where not, the packet stays untracked for the reason
/// [`Outcome::Fragment`], or [`Outcome::InboundFragment`] where the datagram is the host's.
#[inline(always)]
pub fn recall(ctx: &TcContext, packet: &mut Packet, place: Place) {
    if packet.tracked == Err(Outcome::Fragment) {
        packet.tracked = recalled(ctx, packet, place);
    }
}

#[inline(never)]
fn recalled(ctx: &TcContext, packet: &mut Packet, place: Place) -> Result<(), Outcome> {
    let known = find(&key(packet, place, identification(ctx)?));
    let fate = known.map(|fragment| fragment.fate);
    if fate == Some(Fate::Waits as u8) {
        return Err(Outcome::Fragment);
    }
    if !packet.is_later_fragment() {
        return parse::transport_of_first(ctx, packet);
    }
    let known = known.ok_or(Outcome::Fragment)?;
    if fate == Some(Fate::Hosts as u8) {
        return Err(Outcome::InboundFragment);
    }
    packet.key.source_port = known.source_port;
    packet.key.destination_port = known.destination_port;
    packet.size = parse::bytes(ctx);
    Ok(())
}

/// Notes the datagram of a first fragment for those that follow, and gives a guest's an identification that is free on the
/// external address.
#[inline(never)]
pub fn carry(ctx: &TcContext, packet: &Packet, place: Place, external: Address) -> Result<(), Outcome> {
    let identification = identification(ctx)?;
    let key = key(packet, place, identification);
    let leaves = match find(&key) {
        Some(known) if known.fate == Fate::Follows as u8 => known.identification,
        _ if packet.is_later_fragment() => return Err(Outcome::Fragment),
        _ => {
            let leaves = if is_guests(place) {
                claim(packet, external, identification).ok_or(Outcome::Fragment)?
            } else {
                identification
            };
            note(&key, packet, Fate::Follows, leaves, 0);
            leaves
        }
    };
    if leaves == identification {
        return Ok(());
    }
    rewrite::identification(ctx, identification, leaves)
}

/// Notes that a datagram's fragments are the host's own.
#[inline(always)]
pub fn note_hosts(ctx: &TcContext, packet: &Packet) {
    if packet.is_first_fragment()
        && let Ok(identification) = identification(ctx)
    {
        note(&key(packet, Place::Uplink, identification), packet, Fate::Hosts, identification, 0);
    }
}

/// Notes that a datagram waits in the quiet room for its first fragment.
#[inline(always)]
pub fn note_waiting(ctx: &TcContext, packet: &Packet, place: Place) -> Result<(), Outcome> {
    let identification = identification(ctx)?;
    let key = key(packet, place, identification);
    if find(&key).is_none() {
        note(&key, packet, Fate::Waits, identification, bridge::entrance(parse::interface(ctx)));
    }
    Ok(())
}

/// Interface index by which the fragments of a datagram came in that was put in order; zero where that is not known.
#[inline(always)]
pub fn came_by(ctx: &TcContext, packet: &Packet) -> u32 {
    let Ok(identification) = identification(ctx) else { return 0 };
    find(&key(packet, Place::Uplink, identification)).map_or(0, |fragment| fragment.via)
}

/// Takes an identification on the external address for the datagram: its own, or one by chance.
#[inline(always)]
fn claim(packet: &Packet, external: Address, own: u16) -> Option<u16> {
    let mut key = key(packet, Place::Claim, own);
    key.source = external;
    let guest = packet.key.source.to_wire();
    for _ in 0..TRIES {
        if find(&key).is_none_or(|claim| claim.via == guest) {
            note(&key, packet, Fate::Follows, key.identification, guest);
            return Some(key.identification);
        }
        // SAFETY: the helper takes nothing.
        key.identification = unsafe { bpf_get_prandom_u32() } as u16;
    }
    None
}

const fn is_guests(place: Place) -> bool {
    matches!(place, Place::Guest | Place::GuestOrdered)
}

#[inline(always)]
fn identification(ctx: &TcContext) -> Result<u16, Outcome> {
    ctx.load::<u16>(L3 + ipv4::IDENTIFICATION).map_err(|_| Outcome::Truncated)
}

#[inline(always)]
fn key(packet: &Packet, place: Place, identification: u16) -> FragmentKey {
    FragmentKey {
        source: packet.key.source,
        destination: packet.key.destination,
        identification,
        protocol: packet.key.protocol,
        place: place as u8,
    }
}

/// An entry that is not out of date.
#[inline(always)]
fn find(key: &FragmentKey) -> Option<&'static Fragment> {
    // SAFETY: the kernel keeps the element readable for the program's run. One that is replaced at this instant gives a fragment
    // the ports of another datagram; then it is dropped for want of a session, or its receiver's checksum refuses it.
    let fragment = unsafe { FRAGMENT.get(key) }?;
    let hertz = settings::get().ok()?.hertz;
    (age(settings::jiffies() as u32, fragment.since) < hertz * SECONDS).then_some(fragment)
}

#[inline(always)]
fn note(key: &FragmentKey, packet: &Packet, fate: Fate, identification: u16, via: u32) {
    let fragment = Fragment {
        source_port: packet.key.source_port,
        destination_port: if matches!(fate, Fate::Follows) {
            packet.key.destination_port
        } else {
            Port::new(0)
        },
        identification,
        fate: fate as u8,
        reserved: 0,
        via,
        since: settings::jiffies() as u32,
    };
    let _ = FRAGMENT.insert(key, fragment, 0);
}
