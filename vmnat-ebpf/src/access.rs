//! Access lists: whether a guest may call a remote, and whether it may be called. Asked when a flow is opened, and each time its way
//! is checked again; never for a packet of an established flow between two checks.
//!
//! What the host itself offers is not judged here but by its INPUT rules, and neighbours of one bridge are no router's to part.

use core::ffi::c_void;

use aya_ebpf::{helpers::generated::bpf_loop, maps::lpm_trie::Key};
use vmnat_common::{
    Address, Outcome,
    access::{AccessKey, Peer, Verdict, Way, place, scope},
    bridge::{BridgePort, BridgePortFlags},
    endpoint::Endpoint,
    forward::{STEPS, Search},
};

use crate::{
    classify,
    classify::Way as WayOut,
    hairpin,
    maps::{ACCESS, ACCESS_RANGE},
    parse::Packet,
};

/// Whether a guest may send what it was about to by another way than an uplink: a network that a rule opens is reached by `way`, what
/// a rule denies ends here, and for all else the `reason` stands.
#[inline(always)]
pub fn elsewhere(
    packet: &Packet,
    port: &BridgePort,
    reason: Outcome,
    way: &mut WayOut,
) -> Result<(), Outcome> {
    let opens = reason == Outcome::OtherNetwork;
    // Before the lists are asked, also for the verifier's sake: it would walk them for each reason.
    if !opens && !matches!(reason, Outcome::OtherRoute | Outcome::Untranslated | Outcome::ClosedExit) {
        return Err(reason);
    }
    let counts = if opens { Verdict::Allowed } else { Verdict::Denied };
    if of_call(packet, port) != counts as u32 {
        return Err(reason);
    }
    classify::check_sender(packet, port)?;
    if !opens {
        return Err(Outcome::AccessDenied);
    }
    *way = hairpin::across(packet, port);
    Ok(())
}

/// Whether a guest may call whom its packet is for; across networks only what a rule opens.
#[inline(always)]
pub fn may_call(packet: &Packet, port: &BridgePort, is_across: bool) -> Result<(), Outcome> {
    let verdict = of_call(packet, port);
    if is_across && verdict != Verdict::Allowed as u32 {
        return Err(Outcome::OtherNetwork);
    }
    if verdict == Verdict::Denied as u32 { Err(Outcome::AccessDenied) } else { Ok(()) }
}

/// Whether `caller` may call a guest's endpoint behind the bridge.
#[inline(never)]
pub fn may_be_called(
    bridge: &BridgePort,
    caller: Address,
    protocol: u8,
    guest: Endpoint,
) -> Result<(), Outcome> {
    if bridge.flags & BridgePortFlags::ACCESS == 0 {
        return Ok(());
    }
    let place = place(protocol, guest.port.number());
    let verdict = ask(scope(bridge.bridge, Way::From), caller.to_wire(), place);
    if verdict == Verdict::Denied as u32 { Err(Outcome::AccessDenied) } else { Ok(()) }
}

#[inline(always)]
fn of_call(packet: &Packet, port: &BridgePort) -> u32 {
    if port.flags & BridgePortFlags::ACCESS == 0 {
        return Verdict::Silent as u32;
    }
    let place = place(packet.key.protocol, packet.key.destination_port.number());
    ask(scope(port.bridge, Way::To), packet.key.destination.to_wire(), place)
}

/// A search of one list.
struct Halving {
    place: u32,
    first: u32,
    search: Search,
}

/// The verdict of the lists, as a number.
#[inline(never)]
fn ask(scope: u32, address: u32, place: u32) -> u32 {
    let peer = Peer { scope, address: Address::from_wire(address) };
    let Some(list) = ACCESS.get(Key::new(AccessKey::SCOPE_BITS + 32, peer)) else {
        return Verdict::Silent as u32;
    };
    let mut halving = Halving { place, first: list.first, search: Search::among(list.count) };
    // SAFETY: the callback has the helper's signature and gets the very search that is passed here, which outlives the
    // call.
    unsafe { bpf_loop(STEPS, halve as *const () as *mut c_void, (&raw mut halving).cast(), 0) };
    let found = halving.search.found().and_then(|at| ACCESS_RANGE.get(halving.first + at));
    found.filter(|range| place <= range.last).map_or(Verdict::Silent as u32, |range| range.verdict)
}

/// One step of the search: zero goes on, one ends it.
extern "C" fn halve(_step: u32, halving: *mut c_void) -> i64 {
    // SAFETY: `ask` passes its own, and nothing else refers to it during the loop.
    let halving = unsafe { &mut *halving.cast::<Halving>() };
    let Some(at) = halving.search.next() else { return 1 };
    let Some(range) = ACCESS_RANGE.get(halving.first + at) else { return 1 };
    halving.search.narrow(at, range.first <= halving.place);
    0
}
