//! Who may answer to a mapping: its own remotes alone, or everybody (RFC 4787 REQ-8, RFC 5382 REQ-3).
//!
//! Filtering is address- and port-dependent: what comes in for no session is not a guest's. A network may be opened to all
//! that call the external endpoints of its guests, as games and WebRTC want it.

use aya_ebpf::maps::lpm_trie::Key;
use vmnat_common::{
    endpoint::Endpoint,
    flow::FlowKey,
    mapping::{Mapping, MappingKey},
    network::{Network, NetworkFlags},
    port_range::{NO_POOL, bit_of, pool_base},
};

use crate::maps::{MAPPING, NETWORK, PORT_POOL};

/// The guest's endpoint whose mapping a packet calls, and its network. Off the hot path; for most of the host's own packets
/// the pool's bit alone says no, because the host's ports are not in the pool.
#[inline(always)]
pub fn owner(key: &FlowKey) -> Option<(Endpoint, &'static Network)> {
    let base = pool_base(key.protocol);
    let (word, bit) = bit_of(base, key.destination_port.number());
    // Where there is no pool, there is no mapping, but for ICMP identifiers, which nobody calls.
    if base == NO_POOL || *PORT_POOL.get(word)? & bit == 0 {
        return None;
    }
    // SAFETY: the map is preallocated: a mapping that is removed at this instant may show another's owner. What is opened for
    // it is refused by the tuple of whoever holds it, or ends with its timeout.
    let owner = unsafe { MAPPING.get(MappingKey::external(key.protocol, key.destination_endpoint())) };
    let owner = owner.map(Mapping::other)?;
    Some((owner, NETWORK.get(Key::new(32, owner.address))?))
}

/// The guest's endpoint whose mapping a packet calls, where its network admits everybody.
#[inline(always)]
pub fn open_to_all(key: &FlowKey) -> Option<(Endpoint, u32)> {
    let (owner, network) = owner(key)?;
    (network.flags & NetworkFlags::OPEN_TO_ALL != 0).then_some((owner, network.bridge))
}
