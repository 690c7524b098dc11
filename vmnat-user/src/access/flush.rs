//! Live flows that the access lists forbid.

use std::{collections::HashMap, net::Ipv4Addr};

use vmnat_common::{
    Address, Endpoint,
    access::{Verdict, Way},
    flow::FlowKey,
    session::{Flags, Session},
};

use super::Compiled;

/// The keys of those among the guests' entries that the lists forbid; `bridge_of` tells behind which bridge an address is.
#[must_use]
pub fn forbidden(
    lists: &Compiled,
    guests: &[(FlowKey, Session)],
    bridge_of: impl Fn(Address) -> Option<u32>,
) -> Vec<FlowKey> {
    // Who turned round on the host is known to the other side by the endpoint that it has outside.
    let turned = guests.iter().filter(|(_, session)| session.has(Flags::HAIRPIN));
    let callers: HashMap<(u8, Endpoint), Address> =
        turned.map(|(key, session)| ((key.protocol, session.rewritten()), key.source)).collect();
    let is_forbidden = |(key, session): &&(FlowKey, Session)| {
        let Some(bridge) = bridge_of(key.source) else { return false };
        let remote = key.destination_endpoint();
        if session.has(Flags::FORWARDED) {
            let caller = callers.get(&(key.protocol, remote)).copied().unwrap_or(remote.address);
            let port = key.source_port.number();
            return lists.ask(bridge, Way::From, caller.into(), key.protocol, port) == Verdict::Denied;
        }
        let address = Ipv4Addr::from(remote.address);
        let verdict = lists.ask(bridge, Way::To, address, key.protocol, remote.port.number());
        let is_across = session.address == key.source;
        verdict == Verdict::Denied || (is_across && verdict != Verdict::Allowed)
    };
    guests.iter().filter(is_forbidden).map(|(key, _)| *key).collect()
}
