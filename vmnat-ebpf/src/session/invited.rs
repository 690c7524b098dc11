//! Sessions that somebody outside has opened: by a port forward, or by a mapping that is open to all.

use vmnat_common::{Mac, Outcome, bridge::BridgePort, endpoint::Endpoint, flow::FlowKey, session::Flags};

use super::{follow_lease, half, refusal, rewritten, write_half};
use crate::{
    classify::Way,
    flow_table::{self, Refusal},
    mapping,
};

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
    let Invited { key, target, .. } = *invited;
    write_called(invited)?;
    flow_table::insert(key).map_err(refusal)?;
    let guest = key.reverse(target);
    write_answering(invited)?;
    let Err(error) = flow_table::insert(&guest) else {
        if invited.kind() & Flags::MAPPED != 0 {
            mapping::count_flow(guest.protocol, target, key.destination_endpoint(), 1);
        }
        return Ok(());
    };
    // The guest's half of this very conversation, whose other half somebody has wiped, serves as well.
    if error == Refusal::Exists && rewritten(&guest) == Some(key.destination_endpoint()) {
        return Ok(());
    }
    flow_table::remove(key);
    Err(refusal(error))
}

impl Invited<'_> {
    #[inline(always)]
    fn kind(&self) -> u8 {
        // Across networks, nothing is mapped.
        let is_mapped = self.forward == 0 && self.target != self.key.destination_endpoint();
        if is_mapped { Flags::MAPPED } else { Flags::FORWARDED }
    }
}

/// Writes the uplink's half into the draft; this one and the next are calls of their own for the sake of the stack.
#[inline(never)]
fn write_called(invited: &Invited<'_>) -> Result<(), Outcome> {
    let Invited { target, forward, bridge, ref way, half_open, .. } = *invited;
    let half = half()?;
    let flags = invited.kind() | half_open | Flags::VIA_NEIGHBOUR;
    write_half(half, target, flags);
    half.set_forward(forward);
    half.out_if = bridge.bridge;
    half.in_if = way.out_if;
    half.destination_mac = Mac::ZERO;
    half.source_mac = bridge.mac;
    half.mtu = bridge.mtu;
    let epoch = half.epoch;
    follow_lease(half, epoch);
    Ok(())
}

/// Writes the guest's half into the draft, where the uplink's stands still.
#[inline(never)]
fn write_answering(invited: &Invited<'_>) -> Result<(), Outcome> {
    let Invited { key, bridge, ref way, .. } = *invited;
    let half = half()?;
    let port = if half.has(Flags::VIA_NEIGHBOUR) { 0 } else { half.out_if };
    let station = half.destination_mac;
    write_half(half, key.destination_endpoint(), invited.kind() | way.flags);
    half.out_if = way.out_if;
    half.in_if = port;
    half.next_hop = way.next_hop;
    half.destination_mac = bridge.mac;
    half.source_mac = station;
    half.mtu = way.mtu;
    Ok(())
}
