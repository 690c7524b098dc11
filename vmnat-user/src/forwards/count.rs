//! What goes through port forwards: counted, and ended.

use std::collections::HashMap;

use anyhow::{Context as _, Result};
use vmnat_common::{
    flow::{FlowKey, Side},
    forward::{Forward, place},
    reap::{Mode, Verdict},
    session::{Flags, Session},
};

use crate::{flows::Traffic, tables::Tables};

/// What went through a port forward, ended conversations and live ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Conversations opened.
    pub connections: u64,
    /// Packets turned away because their source may not use it.
    pub refused: u64,
    /// To the guest.
    pub inbound: Traffic,
    /// From the guest.
    pub outbound: Traffic,
}

/// The counters of every port forward, by its number.
///
/// # Errors
/// What the kernel answers.
pub fn counts(tables: &Tables) -> Result<HashMap<u32, Count>> {
    let mut counts = HashMap::new();
    for (id, ended) in tables.forward_count.entries().context("read the counters of port forwards")? {
        let count = Count {
            connections: ended.connections,
            refused: ended.refused,
            inbound: Traffic { packets: ended.packets_in, bytes: ended.bytes_in },
            outbound: Traffic { packets: ended.packets_out, bytes: ended.bytes_out },
        };
        counts.insert(id, count);
    }
    for batch in tables.flows() {
        for (key, session) in batch.context("read the flow table")? {
            if !is_forwarded(&key, &session) {
                continue;
            }
            let reverse = key.reverse(session.rewritten());
            let back = tables.flow.get(&reverse).context("read the flow table")?;
            let count: &mut Count = counts.entry(session.forward()).or_default();
            let traffic = |key: &FlowKey, session: &Session| {
                tables.flow.traffic(key, session).context("read the counters of a flow")
            };
            add(&mut count.inbound, traffic(&key, &session)?);
            if let Some(back) = back {
                add(&mut count.outbound, traffic(&reverse, &back)?);
            }
        }
    }
    Ok(counts)
}

fn add(sum: &mut Traffic, more: Traffic) {
    sum.packets = sum.packets.saturating_add(more.packets);
    sum.bytes = sum.bytes.saturating_add(more.bytes);
}

/// True for the half that leads through a port forward to its guest.
const fn is_forwarded(key: &FlowKey, session: &Session) -> bool {
    key.side == Side::Uplink as u8 && session.has(Flags::FORWARDED)
}

/// Ends the conversations through port forwards: those to their guests, and the callers' halves of those that turn round
/// on the host. Tells how many.
///
/// # Errors
/// What the kernel answers; some may have ended by then.
pub fn end_flows(tables: &Tables, forwards: &[Forward]) -> Result<usize> {
    let mut doomed = Vec::new();
    for batch in tables.flows() {
        for (key, session) in batch.context("read the flow table")? {
            if is_forwarded(&key, &session) && forwards.iter().any(|forward| forward.id == session.forward())
            {
                doomed.push(key.reverse(session.rewritten()));
            } else if key.side == Side::Guest as u8 && session.has(Flags::HAIRPIN) && leads_to(&key, forwards)
            {
                doomed.push(key);
            }
        }
    }
    let verdicts = tables.reap(Mode::Remove, &doomed)?;
    Ok(verdicts.into_iter().filter(|verdict| *verdict == Verdict::Removed).count())
}

/// True when a guest's flow goes to an external endpoint of one of the forwards.
fn leads_to(key: &FlowKey, forwards: &[Forward]) -> bool {
    let place = place(key.protocol, key.destination_endpoint());
    forwards.iter().any(|forward| forward.target(place).is_some())
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;
    use vmnat_common::{Address, Endpoint, Port, Protocol};

    use super::*;

    #[test]
    fn callers_of_a_forward_are_told_from_others() {
        let endpoint = |octets, port| Endpoint::new(Address::new(octets), Port::new(port));
        let external = endpoint([203, 0, 113, 2], 8080);
        let forward = Forward { first: place(6, external), span: 9, ..Forward::zeroed() };
        let caller = endpoint([192, 168, 122, 11], 40_000);
        let calls = |protocol, port| {
            leads_to(&FlowKey::guest(protocol, caller, endpoint([203, 0, 113, 2], port)), &[forward])
        };
        assert!(calls(Protocol::Tcp, 8080) && calls(Protocol::Tcp, 8089));
        assert!(!calls(Protocol::Tcp, 8090) && !calls(Protocol::Udp, 8080));
    }
}
