//! Leases from the neighbour table: a start, until the kernel half has seen the guests itself.
//!
//! What the programs have learned is fresher than the neighbour table, so only gaps are filled, and a port is
//! forgotten when it has left its bridge.

use std::collections::HashSet;

use anyhow::Result;
use vmnat_common::{
    Address,
    lease::{Lease, LeaseFlags},
};

use crate::{facts::Facts, plan::Plan, tables::Tables};

/// Fills gaps and forgets what is gone; true when a known lease has changed.
pub(super) fn settle(tables: &Tables, plan: &Plan, facts: &Facts) -> Result<bool> {
    let stamp = tables.clock()?.stamp();
    let mut changed = false;
    let mut known = HashSet::new();
    for (address, lease) in tables.lease.entries()? {
        if !plan.bridges.iter().any(|(index, _)| *index == lease.bridge) {
            tables.lease.remove(&address)?;
            changed = true;
            continue;
        }
        known.insert(address);
        let is_port = facts.ports_of(lease.bridge).any(|port| port.index == lease.port);
        let port = if is_port { lease.port } else { port_of(facts, &lease) };
        if port != lease.port {
            tables.lease.set(&address, &Lease { port, ..lease })?;
            changed = true;
        }
    }
    for (address, lease) in neighbours(plan, facts) {
        if !known.contains(&address) {
            let lease = Lease { port: port_of(facts, &lease), last_seen: stamp, ..lease };
            tables.lease.insert(&address, &lease)?;
        }
    }
    Ok(changed)
}

fn port_of(facts: &Facts, lease: &Lease) -> u32 {
    facts.port_behind(lease.bridge, lease.mac).unwrap_or(0)
}

/// The guests in the neighbour table, without their ports.
fn neighbours<'a>(plan: &'a Plan, facts: &'a Facts) -> impl Iterator<Item = (Address, Lease)> + 'a {
    facts.neighbours.iter().filter(|fact| fact.usable).filter_map(|fact| {
        plan.bridges.iter().find(|(index, _)| *index == fact.index)?;
        let lease = Lease {
            port: 0,
            bridge: fact.index,
            mac: fact.mac?,
            flags: LeaseFlags::FROM_NEIGHBOUR,
            last_seen: 0,
        };
        Some((fact.address, lease))
    })
}
