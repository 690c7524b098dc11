//! Sessions that somebody outside has opened: by a port forward, or by a mapping that is open to all.

use vmnat_common::{Mac, Outcome, bridge::BridgePort, endpoint::Endpoint, flow::FlowKey, session::Flags};

use super::{draft, follow_lease, put, refusal, write_half};
use crate::{classify::Way, mapping, maps::FLOW};

/// What both halves of a session are made of that a port forward or an open mapping invites.
pub struct Invited<'a> {
    /// The uplink's tuple.
    pub key: &'a FlowKey,
    /// The guest's endpoint.
    pub target: Endpoint,
    /// Number of the port forward; zero where it is the guest's own mapping that invites.
    pub forward: u32,
    /// The guest's bridge.
    pub bridge: &'a BridgePort,
    /// The way of the guest's answers.
    pub way: Way,
    /// [`Flags::HALF_OPEN`] for a TCP handshake that begins, or none.
    pub half_open: u8,
}

/// Inserts both halves of a session that came in from outside.
///
/// The guest's port and MAC are the lease's. Where it has none, the bridge's neighbour table delivers; the first answer
/// then does not match its entry, is checked against what its sender has said of itself, and completes it.
#[inline(never)]
pub fn insert_invited(invited: &Invited<'_>) -> Result<(), Outcome> {
    let Invited { key, target, forward, bridge, ref way, half_open } = *invited;
    let external = key.destination_endpoint();
    let half = &mut draft()?.half;
    // Across networks, nothing is mapped.
    let kind = if forward == 0 && target != external { Flags::MAPPED } else { Flags::FORWARDED };
    write_half(half, key, external, target, kind | half_open | Flags::VIA_NEIGHBOUR);
    half.set_forward(forward);
    half.out_if = bridge.bridge;
    half.in_if = way.out_if;
    half.destination_mac = Mac::ZERO;
    half.source_mac = bridge.mac;
    half.mtu = bridge.mtu;
    let epoch = half.epoch;
    follow_lease(half, epoch);
    put(key, half).map_err(refusal)?;
    let guest = key.reverse(target);
    let (port, station) =
        (if half.has(Flags::VIA_NEIGHBOUR) { 0 } else { half.out_if }, half.destination_mac);
    write_half(half, &guest, target, external, kind | way.flags);
    half.out_if = way.out_if;
    half.in_if = port;
    half.next_hop = way.next_hop;
    half.destination_mac = bridge.mac;
    half.source_mac = station;
    half.mtu = way.mtu;
    let Err(error) = put(&guest, half) else {
        if kind & Flags::MAPPED != 0 {
            mapping::count_flow(guest.protocol, target, external, 1);
        }
        return Ok(());
    };
    let _ = FLOW.remove(key);
    Err(refusal(error))
}
