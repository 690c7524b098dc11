//! Stations from the bridges' forwarding tables: a start, until the kernel half has heard them itself.
//!
//! A bridge forgets a station that is silent for minutes, and never hears those whose frames go straight to another
//! port. So nothing is removed for silence: a station goes with its port, and moves when the bridge has heard it
//! elsewhere.

use std::collections::{HashMap, HashSet};

use anyhow::{Context as _, Result};
use vmnat_common::station::{Station, StationKey};

use crate::{
    facts::Facts,
    plan::Plan,
    tables::{Tables, unless_full},
};

/// Brings the table up to what the bridges have heard; tells where not all of them fit, which guests can bring about with MACs that
/// they make up, and which is no reason to leave all else undone.
pub(super) fn settle(tables: &Tables, plan: &Plan, facts: &Facts) -> Result<Option<String>> {
    let mut left_out = 0_usize;
    let bridges: HashSet<u32> = plan.bridges.iter().map(|(index, _)| *index).collect();
    let known: HashMap<StationKey, Station> = tables.station.entries()?.into_iter().collect();
    for (key, station) in &known {
        let stands = bridges.contains(&key.bridge)
            && facts.ports_of(key.bridge).any(|port| port.index == station.port);
        if !stands {
            tables.station.remove(key)?;
        }
    }
    for fact in facts.fdb.iter().filter(|fact| !fact.local && bridges.contains(&fact.bridge)) {
        let key = StationKey::new(fact.bridge, fact.mac);
        if known.get(&key).is_none_or(|station| station.port != fact.port) {
            let stored = unless_full(tables.station.set(&key, &Station { port: fact.port }));
            left_out = left_out.saturating_add(usize::from(stored.context("write a station")?.is_none()));
        }
    }
    let most = tables.station.capacity();
    Ok((left_out > 0).then(|| {
        format!("{left_out} stations of the bridges do not fit the {most} that are remembered: frames to those go the bridge's way")
    }))
}
