//! Stations from the bridges' forwarding tables: a start, until the kernel half has heard them itself.
//!
//! A bridge forgets a station that is silent for minutes, and never hears those whose frames go straight to another
//! port. So nothing is removed for silence: a station goes with its port, and moves when the bridge has heard it
//! elsewhere.

use std::collections::{HashMap, HashSet};

use anyhow::Result;
use vmnat_common::station::{Station, StationKey};

use crate::{facts::Facts, plan::Plan, tables::Tables};

/// Brings the table up to what the bridges have heard.
pub(super) fn settle(tables: &Tables, plan: &Plan, facts: &Facts) -> Result<()> {
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
            tables.station.set(&key, &Station { port: fact.port })?;
        }
    }
    Ok(())
}
