//! Port forwards: a packet for an external endpoint that leads to a guest opens a session to it.

use core::ffi::c_void;

use aya_ebpf::{
    helpers::generated::{bpf_ktime_get_boot_ns, bpf_loop},
    maps::lpm_trie::Key,
    programs::TcContext,
};
use vmnat_common::{
    Address, Outcome,
    bridge::BridgePort,
    endpoint::{Endpoint, Port, Protocol},
    flow::{FlowKey, Side},
    forward::{Forward, ForwardCount, ForwardFlags, STEPS, Search, Source, SourceKey, place},
    port_range::{NO_POOL, bit_of, pool_base},
    session::{Flags, Traffic},
    tcp_state::flag,
};

use crate::{
    access, bridge,
    classify::Way,
    filtering,
    maps::{
        BRIDGE_PORT, FORWARD, FORWARD_ACTIVE, FORWARD_COUNT, FORWARD_PORT, FORWARD_SOURCE, GATEWAY, NETWORK,
        UPLINK,
    },
    owner,
    parse::Packet,
    quota,
    route::{self, Route},
    session::{self, Invited},
    socket,
};

const NANOSECONDS: u64 = 1_000_000_000;

/// A port forward that serves, and the guest's endpoint that it leads to.
#[derive(Clone, Copy)]
pub struct Invitation {
    /// The forward.
    pub forward: &'static Forward,
    /// The guest's endpoint.
    pub target: Endpoint,
}

/// The port forward that a packet is addressed to. What no router forwards is none: the host's own 127.0.0.1 may have
/// forwards, which are for its own sockets (`host`) and not for frames.
#[inline(always)]
pub fn find(key: &FlowKey) -> Option<Invitation> {
    if key.destination.is_never_forwarded() {
        return None;
    }
    of(key.protocol, key.destination_endpoint())
}

/// The port forward of an external endpoint.
#[inline(always)]
pub fn of(protocol: u8, external: Endpoint) -> Option<Invitation> {
    let base = pool_base(protocol);
    let (word, bit) = bit_of(base, external.port.number());
    if base == NO_POOL || *FORWARD_PORT.get(word)? & bit == 0 {
        return None;
    }
    let place = place(protocol, external);
    let forward = FORWARD.get(search(place) as u32)?;
    let target = forward.target(place)?;
    // SAFETY: the helper takes nothing.
    if forward.expires != 0 && forward.has_expired(unsafe { bpf_ktime_get_boot_ns() } / NANOSECONDS) {
        return None;
    }
    Some(Invitation { forward, target })
}

/// A search of the bank in use.
struct Halving {
    place: u64,
    base: u32,
    search: Search,
}

/// Index of the last forward that begins at or before the place; `u32::MAX`, where no entry is, for none.
#[inline(never)]
fn search(place: u64) -> u64 {
    let Some(active) = FORWARD_ACTIVE.get(0) else { return u64::from(u32::MAX) };
    let mut halving = Halving { place, base: active.base(), search: Search::among(active.count()) };
    // SAFETY: the callback has the helper's signature and gets the very search that is passed here, which outlives the
    // call.
    unsafe { bpf_loop(STEPS, halve as *const () as *mut c_void, (&raw mut halving).cast(), 0) };
    halving.search.found().map_or(u64::from(u32::MAX), |at| u64::from(halving.base + at))
}

/// One step of the search: zero goes on, one ends it.
extern "C" fn halve(_step: u32, halving: *mut c_void) -> i64 {
    // SAFETY: `search` passes its own, and nothing else refers to it during the loop.
    let halving = unsafe { &mut *halving.cast::<Halving>() };
    let Some(at) = halving.search.next() else { return 1 };
    let Some(forward) = FORWARD.get(halving.base + at) else { return 1 };
    halving.search.narrow(at, forward.first <= halving.place);
    0
}

/// Opens the session of a packet from the world that a port forward or the guest's own mapping invites. Its answers leave by
/// the uplink `in_if` that it came in by, also where the host's routes prefer another of vmnat's uplinks; not where they lead to
/// what is no uplink (a VPN that owns the default route) or nowhere. All else is the host's own.
///
/// What a socket of the host's own conversation waits for is the host's, also on a port that was given to a guest; a socket that
/// waits for anybody keeps its port from mappings, not from forwards. Where somebody has emptied the flow table, and it
/// `REMEMBERS`, conversations are opened again (`owner`).
#[inline(always)]
pub fn open<const REMEMBERS: bool>(ctx: &TcContext, packet: &Packet, in_if: u32) -> Result<(), Outcome> {
    let remembered = || if REMEMBERS { remembered(packet) } else { None };
    let invited = invited(&packet.key).or_else(remembered).ok_or(Outcome::NoFlow)?;
    let holding = socket::holding(ctx, &packet.key, packet.key.destination_endpoint());
    let most = if invited.forward == 0 { socket::NONE } else { socket::WAITING };
    if holding > most {
        return Err(Outcome::NoFlow);
    }
    admit(&invited, packet.key.source)?;
    session::may_open(packet)?;
    quota::check(invited.target.address, packet.tcp_flags)?;
    let bridge = bridge_of(invited.bridge)?;
    let in_if = bridge::entrance(in_if);
    access::may_be_called(bridge, packet.key.source, packet.key.protocol, invited.target)?;
    // SAFETY: user space replaces whole values of this small map.
    let uplink = unsafe { UPLINK.get(in_if) }.ok_or(Outcome::Unmanaged)?;
    let (target, forward) = (invited.target, invited.forward);
    let mut back = Route::default();
    route::lookup(ctx, &packet.key.reverse(target), packet.tos, bridge.bridge, &mut back)?;
    if back.out_if != in_if {
        back.next_hop = answer_by(in_if, back.out_if, packet.key.source)?;
    }
    let flags = Flags::ANSWERS;
    let way = Way { out_if: in_if, next_hop: back.next_hop, address: uplink.address, mtu: uplink.mtu, flags };
    session::insert_invited(&Invited {
        key: &packet.key,
        target,
        forward,
        bridge,
        way,
        half_open: quota::opens_half(packet.tcp_flags),
    })?;
    quota::count(target.address, quota::opens_half(packet.tcp_flags) != 0);
    count_connection(forward);
    Ok(())
}

/// The next hop of answers to `remote` that leave by the uplink `by` although the host's route leads to `route_if`, which must be
/// an uplink as well.
#[inline(always)]
pub fn answer_by(by: u32, route_if: u32, remote: Address) -> Result<Address, Outcome> {
    // SAFETY: user space replaces whole values of these small maps.
    let (router, is_uplink) = unsafe { (GATEWAY.get(by), UPLINK.get(route_if).is_some()) };
    match router {
        Some(router) if is_uplink => Ok(if router.is_unspecified() { remote } else { *router }),
        _ => Err(Outcome::MovedRoute),
    }
}

/// Opens the session of a guest's packet that turns round on the host, under the tuple that it has as it turns.
#[inline(always)]
pub fn open_turned(ctx: &TcContext, packet: &Packet, key: &FlowKey) -> Result<(), Outcome> {
    let is_across = key.side == Side::Across as u8;
    let invited = if is_across { neighbour(key) } else { invited(key).or_else(|| itself(packet, key)) };
    let invited = invited.ok_or(Outcome::ToHost)?;
    // As towards the world: a socket of the host keeps its port from mappings, and loses it to port forwards.
    if invited.forward == 0
        && !is_across
        && socket::holding(ctx, key, key.destination_endpoint()) != socket::NONE
    {
        return Err(Outcome::ToHost);
    }
    admit(&invited, packet.key.source)?;
    session::may_open(packet)?;
    quota::check(invited.target.address, packet.tcp_flags)?;
    let bridge = bridge_of(invited.bridge)?;
    access::may_be_called(bridge, packet.key.source, packet.key.protocol, invited.target)?;
    let way = Way {
        out_if: bridge.bridge,
        next_hop: Address::UNSPECIFIED,
        address: key.destination,
        mtu: bridge.mtu,
        flags: Flags::HAIRPIN,
    };
    let (target, forward) = (invited.target, invited.forward);
    session::insert_invited(&Invited {
        key,
        target,
        forward,
        bridge,
        way,
        half_open: quota::opens_half(packet.tcp_flags),
    })?;
    quota::count(target.address, quota::opens_half(packet.tcp_flags) != 0);
    count_connection(forward);
    Ok(())
}

/// Whom a packet from outside is for.
#[derive(Clone, Copy)]
struct Guest {
    target: Endpoint,
    /// Interface index of the guest's bridge.
    bridge: u32,
    /// Number of the port forward; zero where the guest's own mapping invites.
    forward: u32,
    is_limited: bool,
}

/// Whom a tuple of the outside invites to: a port forward's guest, or the owner of a mapping that is open to all.
#[inline(always)]
fn invited(key: &FlowKey) -> Option<Guest> {
    if let Some(Invitation { forward, target }) = find(key) {
        let is_limited = forward.flags & ForwardFlags::LIMITED != 0;
        return Some(Guest { target, bridge: forward.bridge, forward: forward.id, is_limited });
    }
    let (target, bridge) = filtering::open_to_all(key)?;
    Some(Guest { target, bridge, forward: 0, is_limited: false })
}

/// Whose conversation a segment belongs to that has no flow, where somebody has emptied the flow table. Were it left to the host, the
/// host would reset the remote, and a guest that only listens would never hear of it.
#[inline(always)]
fn remembered(packet: &Packet) -> Option<Guest> {
    let key = &packet.key;
    let is_amidst = packet.tcp_flags & (flag::SYN | flag::RST | flag::ACK) == flag::ACK;
    if key.protocol != Protocol::Tcp.number() || !is_amidst {
        return None;
    }
    let found = owner::recall(key);
    if found == 0 {
        return None;
    }
    let target = Endpoint::new(Address::from_wire((found >> 16) as u32), Port::from_wire(found as u16));
    let network = NETWORK.get(Key::new(32, target.address))?;
    Some(Guest { target, bridge: network.bridge, forward: 0, is_limited: false })
}

/// A guest that calls a mapping of its own, which no filter keeps from itself (RFC 4787 REQ-9).
#[inline(always)]
fn itself(packet: &Packet, key: &FlowKey) -> Option<Guest> {
    let (target, network) = filtering::owner(key)?;
    let is_own = target.address == packet.key.source;
    is_own.then_some(Guest { target, bridge: network.bridge, forward: 0, is_limited: false })
}

/// A guest of another network that is called by its own address, which an access list has allowed.
#[inline(always)]
fn neighbour(key: &FlowKey) -> Option<Guest> {
    let network = NETWORK.get(Key::new(32, key.destination))?;
    let target = key.destination_endpoint();
    Some(Guest { target, bridge: network.bridge, forward: 0, is_limited: false })
}

#[inline(always)]
fn bridge_of(index: u32) -> Result<&'static BridgePort, Outcome> {
    // SAFETY: user space replaces whole values of this small map.
    unsafe { BRIDGE_PORT.get(index) }.ok_or(Outcome::Unmanaged)
}

/// Whether a source may use the forward.
#[inline(always)]
fn admit(guest: &Guest, source: Address) -> Result<(), Outcome> {
    if !guest.is_limited {
        return Ok(());
    }
    let key = Key::new(SourceKey::FORWARD_BITS + 32, Source { forward: guest.forward, address: source });
    if FORWARD_SOURCE.get(key).is_some() {
        return Ok(());
    }
    count(guest.forward, |count| count.refused = count.refused.wrapping_add(1));
    Err(Outcome::RefusedSource)
}

/// Counts a conversation that was opened.
#[inline(always)]
pub fn count_connection(id: u32) {
    count(id, |count| count.connections = count.connections.wrapping_add(1));
}

/// Adds what went through a session that ends to its forward's counts.
#[inline(always)]
pub fn settle_account(id: u32, outbound: Traffic, inbound: Traffic) {
    count(id, |count| {
        count.packets_in = count.packets_in.wrapping_add(inbound.packets);
        count.bytes_in = count.bytes_in.wrapping_add(inbound.bytes);
        count.packets_out = count.packets_out.wrapping_add(outbound.packets);
        count.bytes_out = count.bytes_out.wrapping_add(outbound.bytes);
    });
}

/// Changes a forward's counts. Two CPUs that do so at once may lose one of the changes; only openings, refusals and ends
/// count here, not packets.
#[inline(always)]
fn count(id: u32, change: impl FnOnce(&mut ForwardCount)) {
    if let Some(count) = FORWARD_COUNT.get_ptr_mut(id) {
        // SAFETY: the kernel keeps the element readable and writable for the program's run.
        change(unsafe { &mut *count });
    }
}
