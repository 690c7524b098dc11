//! Leases in the kernel: bound to whom they were given, and a start from the neighbour table until the kernel half has seen
//! the guests itself.
//!
//! What the programs have learned is fresher than the neighbour table, so from there only gaps are filled, and a port is
//! forgotten when it has left its bridge. What somebody has given ([`crate::leases::Source::binds`]) is bound to its holder. Where
//! somebody else uses such an address, a strict network gives it to the holder at once; any other waits until the holder itself
//! claims it, because the file may be the one that errs.

use std::{
    collections::{HashMap, HashSet},
    io,
};

use anyhow::{Context as _, Result};
use vmnat_common::{
    Address,
    lease::{Lease, LeaseFlags},
};

use crate::{
    facts::Facts,
    leases::{Directory, LeaseFact},
    plan::Plan,
    tables::{Tables, unless_full},
};

const BINDING: u16 = LeaseFlags::BOUND | LeaseFlags::PORT_BOUND;

/// Binds what was given, fills gaps and forgets what is gone; true when a known lease has changed. Tells where not all of them fit,
/// which guests can bring about with addresses that they make up, and which is no reason to leave all else undone.
pub(super) fn settle(
    tables: &Tables,
    plan: &Plan,
    facts: &Facts,
    directory: &Directory,
) -> Result<(bool, Option<String>)> {
    let mut left_out = 0_usize;
    let mut count = |stored: io::Result<bool>| -> Result<bool> {
        let stored = unless_full(stored).context("write a lease")?;
        left_out = left_out.saturating_add(usize::from(stored.is_none()));
        Ok(stored.unwrap_or(false))
    };
    let stamp = tables.clock()?.stamp();
    let mut holders: HashMap<Address, Lease> =
        directory.holders().filter_map(|fact| held(fact, plan, facts, stamp)).collect();
    let mut changed = false;
    let mut known = HashSet::new();
    for (address, lease) in tables.lease.entries()? {
        if !plan.bridges.iter().any(|(index, _)| *index == lease.bridge) {
            tables.lease.remove(&address)?;
            changed = true;
            continue;
        }
        known.insert(address);
        let wanted = match holders.remove(&address) {
            Some(holder) => claimed(&lease, &holder, plan),
            None if directory.is_doubtful() => Some(lease),
            None => Some(Lease { flags: lease.flags & !BINDING, ..lease }).filter(|lease| lease.flags != 0),
        };
        let place = |wanted: Lease| {
            let is_seen = wanted.flags & !BINDING != 0 || plan.is_strict(wanted.bridge);
            if is_seen { with_port(wanted, facts) } else { wanted }
        };
        let Some(wanted) = wanted.map(place) else {
            tables.lease.remove(&address)?;
            changed = true;
            continue;
        };
        if wanted != lease {
            changed |= count(tables.lease.set(&address, &wanted).map(|()| true))?;
        }
    }
    // Who was not seen is not there, but its address is its own.
    for (address, holder) in holders {
        known.insert(address);
        changed |= count(tables.lease.insert(&address, &holder))?;
    }
    for (address, lease) in neighbours(plan, facts) {
        if !known.contains(&address) {
            let lease = Lease { last_seen: stamp, ..with_port(lease, facts) };
            count(tables.lease.insert(&address, &lease))?;
        }
    }
    let most = tables.lease.capacity();
    let full = (left_out > 0).then(|| {
        format!(
            "{left_out} leases do not fit the {most} that are remembered: those addresses are bound to nobody"
        )
    });
    Ok((changed, full))
}

/// The kernel's entry of an address that was given to a guest of a network.
fn held(fact: &LeaseFact, plan: &Plan, facts: &Facts, stamp: u32) -> Option<(Address, Lease)> {
    let network = plan.network_of(fact.address)?;
    let lease =
        Lease { port: 0, bridge: network.bridge, mac: fact.mac?, flags: LeaseFlags::BOUND, last_seen: stamp };
    // The host's own address is nobody's to give.
    if network.gateway == fact.address.into() {
        return None;
    }
    let is_seen = facts.neighbour(network.bridge, fact.address.into()) == fact.mac;
    let lease = match fact.port.as_deref().map(|name| facts.link(name)) {
        // A port that is not there binds as well: the guest waits for it.
        Some(port) => Lease {
            port: port.filter(|port| port.master == Some(network.bridge)).map_or(0, |port| port.index),
            flags: BINDING,
            ..lease
        },
        None if is_seen => {
            with_port(Lease { flags: lease.flags | LeaseFlags::FROM_NEIGHBOUR, ..lease }, facts)
        }
        None if plan.is_strict(network.bridge) => with_port(lease, facts),
        // Nobody has seen the guest with this address: whoever is found there by ARP has it.
        None => lease,
    };
    Some((fact.address.into(), lease))
}

/// What becomes of a known entry whose address was given to a guest.
fn claimed(lease: &Lease, holder: &Lease, plan: &Plan) -> Option<Lease> {
    if lease.mac == holder.mac && lease.bridge == holder.bridge {
        let flags = lease.flags & !BINDING | holder.flags;
        let port = if holder.flags & LeaseFlags::PORT_BOUND == 0 { lease.port } else { holder.port };
        return Some(Lease { port, flags, ..*lease });
    }
    if plan.is_strict(holder.bridge) {
        return Some(*holder);
    }
    Some(Lease { flags: lease.flags & !BINDING, ..*lease }).filter(|lease| lease.flags != 0)
}

/// The entry with the port behind which its guest is, where its own has left the bridge.
fn with_port(lease: Lease, facts: &Facts) -> Lease {
    let stands = facts.ports_of(lease.bridge).any(|port| port.index == lease.port);
    if stands || lease.flags & LeaseFlags::PORT_BOUND != 0 {
        return lease;
    }
    Lease { port: facts.port_behind(lease.bridge, lease.mac).unwrap_or(0), ..lease }
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
