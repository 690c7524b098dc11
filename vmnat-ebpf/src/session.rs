//! Sessions: found, opened, checked again, removed.
//!
//! Opening inserts the uplink's entry first and then the guest's, both `NOEXIST`; the loser of a race takes back what it
//! inserted. Removing deletes the guest's entry first, and who deleted it goes on to the uplink's. So whoever finds a
//! guest's entry finds a session, and two guests never hold one uplink tuple.

mod invited;

use core::{ffi::c_void, mem::offset_of};

use aya_ebpf::{helpers::generated::bpf_loop, programs::TcContext};
use vmnat_common::{
    Address, Mac, Outcome, Port,
    bridge::{BridgePort, BridgePortFlags},
    endpoint::{Endpoint, Protocol, may_change_port},
    flow::{FlowKey, Side},
    session::{Flags, Session, Traffic},
    tcp_state,
};

use crate::{
    bridge,
    classify::Way,
    flow_table::{self, Refusal},
    forward, lease, mapping,
    maps::{DRAFT, UPLINK},
    parse::{self, Packet},
    quota, settings,
};

pub use self::invited::{Invited, insert_invited};

/// Attempts to find a port for one flow alone.
const OVERLOAD_PROBES: u32 = 8;

/// The session of a tuple.
#[inline(always)]
pub fn find(key: &FlowKey) -> Option<&'static mut Session> {
    flow_table::find(key).map(|entry| &mut entry.session)
}

/// The session of the packet in hand, on the road of packets whose session is known.
#[inline(always)]
pub fn find_at_once(key: &FlowKey) -> Option<&'static mut Session> {
    flow_table::find_at_once(key).map(|entry| &mut entry.session)
}

/// True when the session was checked in this epoch, and the frame comes from the station and port that it belongs to and is
/// addressed to the bridge. One comparison of all of it: each of its own would have the verifier walk the judgement once more.
#[inline(always)]
pub fn is_current(ctx: &TcContext, packet: &Packet, session: &Session, epoch: u16) -> bool {
    let [theirs, its] = [stations(session), packet.stations.words()];
    let stations = (theirs[0] ^ its[0]) | (theirs[1] ^ its[1]) | (theirs[2] ^ its[2]);
    stations | (session.in_if ^ parse::interface(ctx)) | u32::from(session.epoch ^ epoch) == 0
}

/// Both MACs of a session as they lie in a frame, the destination first. In words: a comparison of MACs takes them byte by byte.
#[inline(always)]
pub fn stations(session: &Session) -> [u32; 3] {
    const AT: usize = offset_of!(Session, destination_mac);
    const { assert!(AT.is_multiple_of(4) && offset_of!(Session, source_mac) == AT + size_of::<Mac>()) };
    // SAFETY: the twelve bytes lie inside the session, and begin on a word, as asserted.
    unsafe { *(&raw const *session).byte_add(AT).cast::<[u32; 3]>() }
}

/// Notes a packet in its direction's entry, which has this key.
#[inline(always)]
pub fn touch(ctx: &TcContext, key: &FlowKey, session: &mut Session, packet: &Packet, now: u64) {
    session.last_seen = now as u32;
    let (packets, is_packet_over) = session.packets.overflowing_add(1);
    let (bytes, is_byte_over) = session.bytes.overflowing_add(parse::bytes(ctx));
    if is_packet_over | is_byte_over {
        carry(key, session, [packets, bytes], is_packet_over, is_byte_over);
    } else {
        session.packets = packets;
        session.bytes = bytes;
    }
    // Of a segment in fragments, the first one alone has flags.
    if packet.tcp_flags != 0 {
        let guest = if packet.key.side == Side::Guest as u8 { packet.key.source } else { session.address };
        quota::follow(session, guest, packet.tcp_flags);
        session.tcp_seen = tcp_state::observe(session.tcp_seen, packet.tcp_flags);
    }
}

/// Stores counters that have run over, and carries. Of two CPUs that see one run over at once, one does it.
#[inline(always)]
fn carry(key: &FlowKey, session: &mut Session, now: [u32; 2], is_packet_over: bool, is_byte_over: bool) {
    const AT: usize = offset_of!(Session, packets);
    const { assert!(AT.is_multiple_of(8) && offset_of!(Session, bytes) == AT + size_of::<u32>()) };
    let seen = bytemuck::cast([session.packets, session.bytes]);
    // SAFETY: both counters are one aligned word of the session, as asserted.
    let counters = unsafe { (&raw mut *session).byte_add(AT).cast::<u64>() };
    if flow_table::exchange(counters, seen, bytemuck::cast(now))
        && flow_table::carry(key, session, is_packet_over, is_byte_over)
    {
        session.tcp_seen |= Session::CARRIES;
    }
}

/// What a packet's visit writes down between its stages: on the stack it would not fit.
#[repr(C)]
pub struct Draft {
    /// An entry before it is inserted.
    half: Session,
    /// The way that was found for the packet.
    way: Way,
}

/// This CPU's draft.
#[inline(always)]
fn draft() -> Result<&'static mut Draft, Outcome> {
    let draft = DRAFT.get_ptr_mut(0).ok_or(Outcome::FlowTableFull)?;
    // SAFETY: the slot is this CPU's own, and no other program of this CPU runs while this one does. Its two members are
    // never borrowed at once by the same stage.
    Ok(unsafe { &mut *draft })
}

/// The half of a session that is to be inserted.
#[inline(always)]
pub fn half() -> Result<&'static mut Session, Outcome> {
    Ok(&mut draft()?.half)
}

/// Where the way of the packet that is being judged is noted, for [`open`]. Of what lies here the verifier knows nothing, so it walks
/// what follows once, and not for each of the ways.
#[inline(always)]
pub fn way() -> Result<&'static mut Way, Outcome> {
    Ok(&mut draft()?.way)
}

/// Opens the session of a guest's packet, whose way was noted. Called from the program itself, beside the judgement: the
/// frames of both do not fit the stack. The flow was taken from its guest's quota in advance, and is given back by who called
/// where this fails.
#[inline(never)]
pub fn open(ctx: &TcContext, packet: &Packet, port: &BridgePort) -> Result<(), Outcome> {
    let way = &draft()?.way;
    may_open(packet)?;
    if way.address.is_unspecified() {
        return Err(Outcome::NoUplinkAddress);
    }
    let key = &packet.key;
    let external = Endpoint::new(way.address, Port::new(0));
    let mut opening = Opening {
        ctx,
        packet,
        port,
        external,
        flags: Flags::MAPPED | way.flags,
        result: Err(Outcome::PortsExhausted),
    };
    // Most keep their port.
    flow_table::foresee(&key.reverse(Endpoint::new(way.address, key.source_port)));
    flow_table::foresee(key);
    let is_across = way.address == key.source;
    let mapped = may_change_port(key.protocol) && !is_across;
    let has_endpoint = if mapped {
        mapping::find_or_claim(ctx, key, &mut opening.external)
    } else {
        // The port stays, and so there is nothing to map: the tuple is free or not.
        opening.flags = way.flags;
        opening.external.port = key.source_port;
        if is_across || mapping::may_keep(key) { Ok(()) } else { Err(Outcome::FlowConflict) }
    };
    let opened = match has_endpoint {
        Ok(()) => insert(&opening),
        refused => refused,
    };
    if !mapped || !matches!(opened, Err(Outcome::FlowConflict | Outcome::PortsExhausted)) {
        return opened;
    }
    // The mapping's endpoint is taken towards this remote, or the pool is full: a port for this flow alone.
    opening.flags = way.flags;
    // SAFETY: the callback has the helper's signature and gets the very opening that is passed here, which outlives the
    // call.
    unsafe {
        bpf_loop(OVERLOAD_PROBES, open_overloaded as *const () as *mut c_void, (&raw mut opening).cast(), 0);
    }
    opening.result
}

/// One turn of the search for a port that this flow shares with others: zero goes on, one ends it.
extern "C" fn open_overloaded(_attempt: u32, opening: *mut c_void) -> i64 {
    // SAFETY: `open` passes its own opening, and nothing else refers to it during the loop.
    let opening = unsafe { &mut *opening.cast::<Opening<'_>>() };
    if !mapping::offer_overloaded(opening.ctx, &opening.packet.key, &mut opening.external) {
        return 0;
    }
    match insert(opening) {
        // Taken towards this remote; the result stays "exhausted" unless another turn finds a port.
        Err(Outcome::FlowConflict) => 0,
        result => {
            opening.result = result;
            1
        }
    }
}

/// Checks a session against the way that was noted, and the present sender. True when it stands, with its way refreshed; false when it was
/// removed, because its external address is no longer the way out or because a race left it without its other half. What the
/// world has opened stays on its uplink.
#[inline(never)]
pub fn renew(
    ctx: &TcContext,
    packet: &Packet,
    session: &mut Session,
    port: &BridgePort,
) -> Result<bool, Outcome> {
    let way = &draft()?.way;
    let own_address = session.flags & (Flags::FORWARDED | Flags::IMPORTED | Flags::ANSWERS) != 0;
    // An uplink that was made again has another number, and its address.
    // SAFETY: only whether there is one matters.
    if session.address == way.address && unsafe { UPLINK.get(session.out_if) }.is_none() {
        session.out_if = way.out_if;
    }
    let mut moved = session.out_if != way.out_if || (!own_address && session.address != way.address);
    let (mut next_hop, mut mtu) = (way.next_hop, way.mtu);
    if moved && own_address {
        if !session.has(Flags::ANSWERS) {
            return Err(Outcome::MovedRoute);
        }
        next_hop = forward::answer_by(session.out_if, way.out_if, packet.key.destination)?;
        mtu = session.mtu;
        moved = false;
    }
    let back = find(&packet.key.reverse(session.rewritten()));
    let (false, Some(back)) = (moved, back) else {
        remove(&packet.key, session);
        return Ok(false);
    };
    back.destination_mac = packet.stations.source;
    (back.out_if, back.flags) = way_back(ctx, packet, port, back.flags);
    session.next_hop = next_hop;
    session.mtu = mtu;
    session.in_if = parse::interface(ctx);
    session.source_mac = packet.stations.source;
    session.destination_mac = packet.stations.destination;
    session.epoch = settings::get()?.epoch(settings::jiffies());
    Ok(true)
}

/// Points an inbound session at where the guest's lease says that it lives, and holds it to the size of that network.
#[inline(always)]
pub fn follow_lease(session: &mut Session, epoch: u16) {
    session.epoch = epoch;
    let Some(lease) = lease::of(session.address) else { return };
    session.destination_mac = lease.mac;
    session.mtu = bridge::mtu(lease.bridge, session.mtu);
    if bridge::is_direct(lease.port) {
        session.out_if = lease.port;
        session.flags &= !Flags::VIA_NEIGHBOUR;
    } else {
        session.out_if = lease.bridge;
        session.flags |= Flags::VIA_NEIGHBOUR;
    }
}

/// Notes that the host itself has sent a query with this tuple, so that its answer is the host's. A guest that has the
/// same tuple loses it, and gets another identifier with its next packet.
#[inline(always)]
pub fn note_host(key: &FlowKey) {
    let uplink = FlowKey::new(key.protocol, Side::Uplink, key.destination_endpoint(), key.source_endpoint());
    let Ok(Draft { half: draft, .. }) = draft() else { return };
    if let Some(session) = find(&uplink) {
        if session.has(Flags::HOST) {
            session.last_seen = settings::jiffies() as u32;
            return;
        }
        let guest = uplink.reverse(session.rewritten());
        match find(&guest) {
            Some(theirs) if theirs.rewritten() == uplink.destination_endpoint() => {
                remove(&guest, theirs);
            }
            _ => {
                flow_table::remove(&uplink);
            }
        }
    }
    write_half(draft, Endpoint::default(), Flags::HOST);
    // Where the table is full the host shares the fate of every NAT: identifiers meet by chance.
    let _ = flow_table::insert(&uplink);
}

/// Removes a session by its guest's key and value; true when this call did it.
#[inline(always)]
pub fn remove(guest: &FlowKey, session: &Session) -> bool {
    // Once it is removed, the slot may be another's.
    let mut flags = session.flags;
    let (mapped, forwarded) = (session.has(Flags::MAPPED), session.has(Flags::FORWARDED));
    let outbound = if forwarded { flow_table::traffic(guest, session) } else { Traffic::default() };
    let external = session.rewritten();
    if !flow_table::remove(guest) {
        return false;
    }
    let reverse = guest.reverse(external);
    if let Some(back) = find(&reverse)
        && back.rewritten() == guest.source_endpoint()
    {
        flags |= back.flags;
        if forwarded {
            forward::settle_account(back.forward(), outbound, flow_table::traffic(&reverse, back));
        }
        flow_table::remove(&reverse);
    }
    if mapped {
        mapping::count_flow(guest.protocol, guest.source_endpoint(), external, -1);
    }
    // What was taken over from the kernel was never counted.
    if flags & Flags::IMPORTED == 0 {
        quota::release(guest.source, flags & Flags::HALF_OPEN != 0);
    }
    true
}

/// What a packet must be to open a session.
#[inline(always)]
pub fn may_open(packet: &Packet) -> Result<(), Outcome> {
    if packet.key.protocol == Protocol::Tcp.number() {
        if tcp_state::is_nonsense(packet.tcp_flags) {
            return Err(Outcome::BadTcpFlags);
        }
        if !tcp_state::may_open(packet.tcp_flags) {
            return Err(Outcome::ResetWithoutFlow);
        }
    }
    Ok(())
}

/// What both halves of a guest's session are made of.
struct Opening<'a> {
    ctx: &'a TcContext,
    packet: &'a Packet,
    port: &'a BridgePort,
    external: Endpoint,
    flags: u8,
    /// What the search for a shared port came to.
    result: Result<(), Outcome>,
}

/// Inserts both halves of a guest's session, which was counted on its mapping in advance.
#[inline(never)]
fn insert(opening: &Opening<'_>) -> Result<(), Outcome> {
    let (key, external) = (&opening.packet.key, opening.external);
    let reverse = key.reverse(external);
    write_inbound(opening)?;
    let inserted = match flow_table::insert(&reverse) {
        Ok(()) => true,
        // Its own uplink entry, from another CPU's race or a removal in progress, serves as well.
        Err(Refusal::Exists) if rewritten(&reverse) == Some(key.source_endpoint()) => false,
        Err(error) => {
            uncount(opening);
            return Err(refusal(error));
        }
    };
    write_outbound(opening)?;
    let Err(error) = flow_table::insert(key) else {
        return Ok(());
    };
    // When another CPU opened this flow, ours gives way, unless both chose the same endpoint.
    if inserted && !(error == Refusal::Exists && rewritten(key) == Some(external)) {
        flow_table::remove(&reverse);
    }
    uncount(opening);
    if error != Refusal::Exists {
        return Err(Outcome::FlowTableFull);
    }
    // Who opened the flow has counted it, as only who removes it gives it back.
    quota::release(key.source, quota::opens_half(opening.packet.tcp_flags) != 0);
    Ok(())
}

/// Takes a flow that was not opened off its mapping.
#[inline(never)]
fn uncount(opening: &Opening<'_>) -> u32 {
    let Opening { packet, external, flags, .. } = *opening;
    if flags & Flags::MAPPED != 0 {
        mapping::count_flow(packet.key.protocol, packet.key.source_endpoint(), external, -1);
    }
    0
}

/// Writes the part of a session that both directions share. In place: built as a value it would be copied on the stack.
#[inline(always)]
fn write_half(half: &mut Session, new: Endpoint, flags: u8) {
    let now = settings::jiffies();
    half.address = new.address;
    half.port = new.port;
    half.tcp_seen = 0;
    half.flags = flags;
    half.next_hop = Address::UNSPECIFIED;
    half.epoch = settings::get().map_or(0, |settings| settings.epoch(now));
    half.last_seen = now as u32;
    half.packets = 0;
    half.bytes = 0;
}

/// Writes the guest's half into the draft; this one and the next are calls of their own for the sake of the stack.
#[inline(never)]
fn write_outbound(opening: &Opening<'_>) -> Result<(), Outcome> {
    let Draft { half, way } = draft()?;
    let Opening { ctx, packet, external, flags, .. } = *opening;
    let flags = flags | quota::opens_half(packet.tcp_flags);
    write_half(half, external, flags);
    half.out_if = way.out_if;
    half.in_if = parse::interface(ctx);
    half.next_hop = way.next_hop;
    half.destination_mac = packet.stations.destination;
    half.source_mac = packet.stations.source;
    half.mtu = way.mtu;
    Ok(())
}

/// Writes the uplink's half into the draft.
#[inline(never)]
fn write_inbound(opening: &Opening<'_>) -> Result<(), Outcome> {
    let Draft { half, way } = draft()?;
    let Opening { ctx, packet, port, flags, .. } = *opening;
    let (out_if, flags) = way_back(ctx, packet, port, flags & !Flags::HAIRPIN);
    write_half(half, packet.key.source_endpoint(), flags);
    half.out_if = out_if;
    half.in_if = way.out_if;
    half.destination_mac = packet.stations.source;
    half.source_mac = packet.stations.destination;
    half.mtu = port.mtu;
    Ok(())
}

/// Where replies to this packet's sender go, and the flags that say so: its port where frames may be sent straight to
/// it, else the bridge.
#[inline(always)]
fn way_back(ctx: &TcContext, packet: &Packet, port: &BridgePort, flags: u8) -> (u32, u8) {
    let direct = if port.flags & BridgePortFlags::IS_BRIDGE == 0 {
        if port.flags & BridgePortFlags::DIRECT == 0 { 0 } else { parse::interface(ctx) }
    } else {
        match lease::of(packet.key.source) {
            Some(lease) if lease.mac == packet.stations.source && bridge::is_direct(lease.port) => lease.port,
            _ => 0,
        }
    };
    if direct == 0 {
        (port.bridge, flags | Flags::VIA_NEIGHBOUR)
    } else {
        (direct, flags & !Flags::VIA_NEIGHBOUR)
    }
}

/// What the flow's packets become, where it exists.
#[inline(always)]
fn rewritten(key: &FlowKey) -> Option<Endpoint> {
    find(key).map(|session| session.rewritten())
}

/// What becomes of a packet whose entry was refused.
#[inline(always)]
fn refusal(error: Refusal) -> Outcome {
    if error == Refusal::Exists { Outcome::FlowConflict } else { Outcome::FlowTableFull }
}
