//! Flows as people see them: both halves in one row, filtered, counted, removed; and the nomination of those that
//! have outlived their timeout.
//!
//! The table is read in batches and never held whole. The guest's half decides whether a row is wanted; only then is
//! the other half looked up. Removal is the reaper's: what is read here may be out of date when it arrives there.

mod expire;

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use ipnet::Ipv4Net;
use vmnat_common::{
    Endpoint, Protocol,
    flow::{FlowKey, Side},
    reap::{BATCH, Mode, Verdict},
    session::{Flags, Session},
    timeout::{Life, age},
};

pub use vmnat_common::session::Traffic;

pub use self::expire::{Expired, expire};
use crate::tables::Tables;

/// Which flows are meant; an empty filter means all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// The guest lies in this network.
    pub guest: Option<Ipv4Net>,
    /// One of the three addresses is this one.
    pub address: Option<Ipv4Addr>,
    /// One of the three ports (of an ICMP query, its identifier) is this one.
    pub port: Option<u16>,
    /// The protocol.
    pub protocol: Option<Protocol>,
}

impl Filter {
    /// True when it excludes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// True when the flow with this guest-side half is meant.
    #[must_use]
    pub fn matches(&self, key: &FlowKey, session: &Session) -> bool {
        let Self { guest, address, port, protocol } = self;
        let addresses = [key.source, key.destination, session.address];
        let is_icmp = key.protocol == Protocol::Icmp.number();
        let remote_port = if is_icmp { key.source_port } else { key.destination_port };
        let ports = [key.source_port, remote_port, session.port];
        guest.is_none_or(|net| net.contains(&Ipv4Addr::from(key.source)))
            && address.is_none_or(|wanted| addresses.into_iter().any(|found| Ipv4Addr::from(found) == wanted))
            && port.is_none_or(|wanted| ports.into_iter().any(|found| found.number() == wanted))
            && protocol.is_none_or(|wanted| key.protocol == wanted.number())
    }
}

/// A flow, from both of its halves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// IP protocol number.
    pub protocol: u8,
    /// The guest's endpoint.
    pub guest: Endpoint,
    /// The external endpoint.
    pub external: Endpoint,
    /// The remote's endpoint; of an ICMP query, its port is the query's type.
    pub remote: Endpoint,
    /// Stage of the conversation.
    pub stage: &'static str,
    /// Seconds since the last packet of either direction.
    pub idle_seconds: u64,
    /// From the guest.
    pub outbound: Traffic,
    /// To the guest.
    pub inbound: Traffic,
    /// Index of the interface by which it leaves.
    pub out_if: u32,
    /// Opened from outside through a port forward.
    pub forwarded: bool,
    /// Taken over from the kernel's connection tracking.
    pub imported: bool,
}

/// Calls `each` with every flow that is meant, in the order of the table, until it answers false.
///
/// # Errors
/// What the kernel answers, or `each`.
pub fn each(tables: &Tables, filter: &Filter, mut each: impl FnMut(Flow) -> Result<bool>) -> Result<()> {
    let now = tables.clock()?.stamp();
    let hertz = tables.settings()?.hertz;
    each_guest_half(tables, filter, |key, session| {
        let back = other_half(tables, key, session)?;
        let traffic = |key: &FlowKey, session: &Session| {
            tables.flow.traffic(key, session).context("read the counters of a flow")
        };
        let outbound = traffic(key, session)?;
        let inbound = match &back {
            Some(back) => traffic(&key.reverse(session.rewritten()), back)?,
            None => Traffic::default(),
        };
        each(Flow { outbound, inbound, ..join(key, session, back.as_ref(), now, hertz) })
    })
}

/// Puts flows in order: by guest, protocol and remote.
pub fn sort(rows: &mut [Flow]) {
    rows.sort_unstable_by_key(|flow| {
        let order = |endpoint: Endpoint| (endpoint.address, endpoint.port);
        (order(flow.guest), flow.protocol, order(flow.remote))
    });
}

/// The number of flows that are meant.
///
/// # Errors
/// What the kernel answers.
pub fn count(tables: &Tables, filter: &Filter) -> Result<u64> {
    let mut flows = 0_u64;
    each_guest_half(tables, filter, |_, _| {
        flows = flows.saturating_add(1);
        Ok(true)
    })?;
    Ok(flows)
}

/// Removes the flows that are meant, and returns how many that were.
///
/// # Errors
/// What the kernel answers; some may have been removed by then.
pub fn remove(tables: &Tables, filter: &Filter) -> Result<u64> {
    let mut removed = 0_u64;
    let mut nominees = Vec::with_capacity(BATCH);
    each_guest_half(tables, filter, |key, _| {
        nominees.push(*key);
        if nominees.len() >= BATCH {
            removed = removed.saturating_add(reap(tables, Mode::Remove, &mut nominees)?);
        }
        Ok(true)
    })?;
    Ok(removed.saturating_add(reap(tables, Mode::Remove, &mut nominees)?))
}

/// Hands the nominees to the reaper, empties the list, and returns how many were removed.
fn reap(tables: &Tables, mode: Mode, nominees: &mut Vec<FlowKey>) -> Result<u64> {
    if nominees.is_empty() {
        return Ok(0);
    }
    let verdicts = tables.reap(mode, nominees)?;
    nominees.clear();
    Ok(removals(&verdicts))
}

fn removals(verdicts: &[Verdict]) -> u64 {
    let removed = verdicts.iter().filter(|verdict| **verdict == Verdict::Removed).count();
    u64::try_from(removed).unwrap_or(u64::MAX)
}

/// Calls `each` with the guest's half of every flow that is meant, until it answers false.
fn each_guest_half(
    tables: &Tables,
    filter: &Filter,
    mut each: impl FnMut(&FlowKey, &Session) -> Result<bool>,
) -> Result<()> {
    for batch in tables.flows() {
        let batch = batch.context("read the flow table")?;
        for (key, session) in &batch {
            if key.side == Side::Guest as u8 && filter.matches(key, session) && !each(key, session)? {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The half of the other direction; none in the instants of opening and removal.
fn other_half(tables: &Tables, key: &FlowKey, session: &Session) -> Result<Option<Session>> {
    let found = tables.flow.get(&key.reverse(session.rewritten())).context("read the flow table")?;
    Ok(found)
}

/// What a conversation's timeout depends on.
fn life(key: &FlowKey, session: &Session, back: Option<&Session>) -> Life {
    Life {
        protocol: key.protocol,
        remote_port: key.destination_port,
        outbound_seen: session.tcp_seen,
        inbound_seen: back.map_or(0, |back| back.tcp_seen),
        is_replied: session.has_packets() && back.is_some_and(Session::has_packets),
    }
}

/// Jiffies since the last packet of either direction.
fn idle(session: &Session, back: Option<&Session>, now: u32) -> u32 {
    let there = age(now, session.last_seen);
    back.map_or(there, |back| there.min(age(now, back.last_seen)))
}

/// A row, but for what went through it.
fn join(key: &FlowKey, session: &Session, back: Option<&Session>, now: u32, hertz: u32) -> Flow {
    let idle = idle(session, back, now);
    Flow {
        protocol: key.protocol,
        guest: key.near(),
        external: session.rewritten(),
        remote: key.remote(),
        stage: life(key, session, back).name(),
        idle_seconds: u64::from(idle.checked_div(hertz).unwrap_or(0)),
        outbound: Traffic::default(),
        inbound: Traffic::default(),
        out_if: session.out_if,
        forwarded: session.has(Flags::FORWARDED),
        imported: session.has(Flags::IMPORTED),
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;
    use vmnat_common::{Address, Port, tcp_state::Seen};

    use super::*;

    fn endpoint(octets: [u8; 4], port: u16) -> Endpoint {
        Endpoint::new(Address::new(octets), Port::new(port))
    }

    fn half(protocol: Protocol) -> (FlowKey, Session) {
        let key = FlowKey::guest(
            protocol,
            endpoint([192, 168, 122, 10], 40_000),
            endpoint([203, 0, 113, 9], if protocol == Protocol::Icmp { 8 } else { 443 }),
        );
        let session = Session {
            address: Address::new([198, 51, 100, 2]),
            port: Port::new(40_002),
            tcp_seen: Seen::SYN | Seen::ACK,
            packets: 5,
            bytes: 500,
            last_seen: 1000,
            out_if: 3,
            ..Session::zeroed()
        };
        (key, session)
    }

    #[test]
    fn a_filter_means_what_all_its_parts_mean() {
        let (key, session) = half(Protocol::Tcp);
        let all = Filter::default();
        assert!(all.is_empty() && all.matches(&key, &session));
        let guest = |text: &str| Filter { guest: Some(text.parse().unwrap()), ..all };
        let address = |octets: [u8; 4]| Filter { address: Some(octets.into()), ..all };
        let port = |port| Filter { port: Some(port), ..all };
        for (filter, expected) in [
            (guest("192.168.122.10/32"), true),
            (guest("192.168.122.0/24"), true),
            (guest("203.0.113.0/24"), false),
            (address([192, 168, 122, 10]), true),
            (address([203, 0, 113, 9]), true),
            (address([198, 51, 100, 2]), true),
            (address([198, 51, 100, 3]), false),
            (port(40_000), true),
            (port(40_002), true),
            (port(443), true),
            (port(80), false),
            (Filter { protocol: Some(Protocol::Tcp), ..all }, true),
            (Filter { protocol: Some(Protocol::Udp), ..all }, false),
            (Filter { protocol: Some(Protocol::Udp), ..port(443) }, false),
        ] {
            assert_eq!(filter.matches(&key, &session), expected, "{filter:?}");
        }
    }

    #[test]
    fn the_type_of_an_echo_is_no_port() {
        let (key, session) = half(Protocol::Icmp);
        assert!(!Filter { port: Some(8), ..Filter::default() }.matches(&key, &session));
        assert!(Filter { port: Some(40_000), ..Filter::default() }.matches(&key, &session));
    }

    #[test]
    fn a_row_takes_from_both_halves() {
        let (key, session) = half(Protocol::Tcp);
        let back = Session { last_seen: 1500, packets: 7, bytes: 7000, flags: 0, ..session };
        let row = join(&key, &session, Some(&back), 2000, 250);
        assert_eq!((row.stage, row.idle_seconds, row.out_if), ("established", 2, 3));
        assert_eq!(row.external, endpoint([198, 51, 100, 2], 40_002));
        let alone = join(&key, &session, None, 2000, 250);
        assert_eq!((alone.stage, alone.idle_seconds), ("half-open", 4));
    }
}
