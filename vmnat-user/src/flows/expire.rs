//! Nomination: which flows and mappings seem to have outlived their time, for the reaper to look at again.
//!
//! Every entry is read, but the other half of a flow is looked up only where the half at hand has been silent for
//! longer than the shortest timeout it could have; a busy table costs no look-ups.

use anyhow::{Context, Result};
use vmnat_common::{
    Protocol,
    flow::{FlowKey, Side},
    mapping::{End, MappingKey},
    reap::{BATCH, Mode},
    session::Session,
    timeout::{Timeouts, age},
};

use super::{idle, life, other_half, reap, removals};
use crate::{guests::Census, tables::Tables};

/// What an expiry found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Flows in the table when it was read.
    pub flows: u64,
    /// Flows that were removed.
    pub removed: u64,
    /// Mappings that were removed.
    pub mappings: u64,
    /// What each guest had when it was read.
    pub census: Census,
}

/// Nominates what has outlived its timeout at `now` (jiffies, [`crate::tables::Clock::stamp`]): flows by the guest's
/// half, the uplink's halves that stand alone, and mappings without flows that have rested.
///
/// # Errors
/// What the kernel answers; the next call begins anew.
pub fn expire(tables: &Tables, now: u32) -> Result<Expired> {
    let timeouts = tables.settings()?.timeouts;
    let mut expired = Expired::default();
    let mut nominees: Vec<FlowKey> = Vec::with_capacity(BATCH);
    for batch in tables.flows() {
        let batch = batch.context("read the flow table")?;
        for (key, session) in batch.iter().filter(|(key, _)| *key != FlowKey::SENTINEL) {
            expired.census.note(key, session);
            let is_guest = key.side == Side::Guest as u8;
            expired.flows = expired.flows.saturating_add(u64::from(is_guest));
            let nominated = if is_guest {
                has_expired(tables, key, session, &timeouts, now)?
            } else {
                stands_alone(tables, key, session, &timeouts, now)?
            };
            if nominated {
                nominees.push(*key);
            }
            if nominees.len() >= BATCH {
                expired.removed = expired.removed.saturating_add(reap(tables, Mode::Expire, &mut nominees)?);
            }
        }
    }
    expired.removed = expired.removed.saturating_add(reap(tables, Mode::Expire, &mut nominees)?);
    expired.mappings = expire_mappings(tables, &timeouts, now)?;
    Ok(expired)
}

fn has_expired(
    tables: &Tables,
    key: &FlowKey,
    session: &Session,
    timeouts: &Timeouts,
    now: u32,
) -> Result<bool> {
    if age(now, session.last_seen) < shortest(timeouts, key.protocol) {
        return Ok(false);
    }
    let back = other_half(tables, key, session)?;
    let timeout = timeouts.of(&life(key, session, back.as_ref()));
    Ok(idle(session, back.as_ref(), now) >= timeout)
}

/// True for the uplink's half of no flow: of a removal or an opening that was cut short. The reaper lets it rest as
/// long as an ICMP query.
fn stands_alone(
    tables: &Tables,
    key: &FlowKey,
    session: &Session,
    timeouts: &Timeouts,
    now: u32,
) -> Result<bool> {
    if age(now, session.last_seen) < timeouts.icmp {
        return Ok(false);
    }
    let guest = other_half(tables, key, session)?;
    Ok(guest.is_none_or(|guest| guest.rewritten() != key.near()))
}

/// The shortest timeout that a flow of this protocol can have, whatever its stage.
fn shortest(timeouts: &Timeouts, protocol: u8) -> u32 {
    match Protocol::from_number(protocol) {
        Some(Protocol::Tcp) => timeouts
            .tcp_half_open
            .min(timeouts.tcp_established)
            .min(timeouts.tcp_half_closed)
            .min(timeouts.tcp_closed)
            .min(timeouts.tcp_reset),
        Some(Protocol::Udp) => timeouts.udp_unreplied.min(timeouts.udp_replied).min(timeouts.udp_dns),
        Some(Protocol::Icmp) => timeouts.icmp,
        Some(Protocol::Dccp | Protocol::Sctp | Protocol::UdpLite) | None => timeouts.other,
    }
}

fn expire_mappings(tables: &Tables, timeouts: &Timeouts, now: u32) -> Result<u64> {
    let mut removed = 0_u64;
    let mut nominees: Vec<MappingKey> = Vec::with_capacity(BATCH);
    for batch in tables.mapping.batches() {
        let batch = batch.context("read the mappings")?;
        let rested = batch.iter().filter(|(key, mapping)| {
            let is_free = key.end == End::Internal as u8 && mapping.flows <= 0;
            is_free && age(now, mapping.last_used) >= timeouts.mapping_rest
        });
        nominees.extend(rested.map(|(key, _)| *key));
        removed = removed.saturating_add(removals(&tables.reap_mappings(&nominees)?));
        nominees.clear();
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vmnat_common::{Port, timeout::Life};

    use super::*;

    proptest! {
        #[test]
        fn no_flow_has_a_timeout_below_the_shortest(
            protocol in any::<u8>(), port in any::<u16>(), seen in (any::<u8>(), any::<u8>()), is_replied in any::<bool>(),
        ) {
            let life = Life {
                protocol,
                remote_port: Port::new(port),
                outbound_seen: seen.0,
                inbound_seen: seen.1,
                is_replied,
            };
            prop_assert!(Timeouts::SECONDS.of(&life) >= shortest(&Timeouts::SECONDS, protocol));
        }
    }
}
