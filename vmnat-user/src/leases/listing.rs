//! Leases as people see them: where each guest's address lives, and who says so.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use anyhow::{Context, Result};
use serde::Serialize;
use vmnat_common::{
    Address, Mac,
    lease::{Lease, LeaseFlags},
    timeout::age,
};

use super::{Directory, LeaseFact, Source};
use crate::{facts::interface_name, tables::Tables};

/// A guest's address, where it lives, and who says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeaseRow {
    /// The guest's address.
    pub address: Ipv4Addr,
    /// The guest's MAC.
    #[serde(serialize_with = "as_text")]
    pub mac: Mac,
    /// The guest's name, where a source has one.
    pub name: Option<String>,
    /// Name of the bridge's port; none while it is unknown.
    pub port: Option<String>,
    /// Name of the bridge; none while the guest was not seen.
    pub bridge: Option<String>,
    /// Who says which MAC the address has.
    pub source: Source,
    /// Who says the name.
    pub name_source: Option<Source>,
    /// Who says the port.
    pub port_source: Option<Source>,
    /// The address was given to this MAC, so no other takes it while this guest is there.
    pub bound: bool,
    /// Second since 1970 at which the lease ends; none where it does not.
    pub expires: Option<u64>,
    /// Seconds since the guest was seen, unless it never was.
    pub age_seconds: Option<u64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference over")]
fn as_text<S: serde::Serializer>(mac: &Mac, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(mac)
}

/// The leases, by address; names of interfaces are of the calling thread's network namespace.
///
/// # Errors
/// What the kernel answers.
pub fn list(tables: &Tables, directory: &Directory) -> Result<Vec<LeaseRow>> {
    let now = tables.clock()?.stamp();
    let hertz = tables.settings()?.hertz;
    let seen: BTreeMap<Address, Lease> =
        tables.lease.entries().context("read the leases")?.into_iter().collect();
    let networks = tables.network.entries().context("read the networks")?;
    let is_ours = |address: Ipv4Addr| {
        let wanted = u32::from(address);
        networks.iter().any(|(key, _)| {
            let first = u32::from(Ipv4Addr::from(key.address));
            let bits = 32_u32.saturating_sub(key.prefix);
            wanted.checked_shr(bits).unwrap_or(0) == first.checked_shr(bits).unwrap_or(0)
        })
    };
    let given = directory.holders().map(|fact| fact.address).filter(|address| is_ours(*address));
    let addresses: BTreeSet<Ipv4Addr> =
        seen.keys().map(|address| Ipv4Addr::from(*address)).chain(given).collect();
    let row = |address: Ipv4Addr| {
        let holder = directory.holder_of(address);
        let mut row = match (seen.get(&Address::from(address)), holder) {
            (Some(lease), _) => seen_row(address, lease, holder, now, hertz),
            (None, holder) => given_row(holder?)?,
        };
        let label = directory.label_of(address);
        row.name = label.map(|(name, _)| name.to_owned());
        row.name_source = label.map(|(_, source)| source);
        Some(row)
    };
    Ok(addresses.into_iter().filter_map(row).collect())
}

/// An address that the programs know.
fn seen_row(address: Ipv4Addr, lease: &Lease, holder: Option<&LeaseFact>, now: u32, hertz: u32) -> LeaseRow {
    let is = |bit: u16| lease.flags & bit != 0;
    let heard = if is(LeaseFlags::FROM_TRAFFIC) {
        Some(Source::Traffic)
    } else if is(LeaseFlags::FROM_NEIGHBOUR) {
        Some(Source::Neighbour)
    } else {
        None
    };
    let holder = holder.filter(|holder| holder.mac == Some(lease.mac));
    let port_source = match heard {
        _ if is(LeaseFlags::PORT_BOUND) => Source::Bound,
        Some(Source::Traffic) => Source::Traffic,
        _ => Source::ForwardingTable,
    };
    let seconds = || u64::from(age(now, lease.last_seen).checked_div(hertz).unwrap_or(0));
    LeaseRow {
        address,
        mac: lease.mac,
        name: None,
        port: (lease.port != 0).then(|| interface_name(lease.port)),
        bridge: Some(interface_name(lease.bridge)),
        source: holder.map(|holder| holder.source).or(heard).unwrap_or(Source::ForwardingTable),
        name_source: None,
        port_source: (lease.port != 0).then_some(port_source),
        bound: is(LeaseFlags::BOUND),
        expires: holder.map(|holder| holder.expires).filter(|end| *end != u64::MAX),
        age_seconds: heard.map(|_| seconds()),
    }
}

/// An address that was given to a guest of which nothing was seen.
fn given_row(holder: &LeaseFact) -> Option<LeaseRow> {
    Some(LeaseRow {
        address: holder.address,
        mac: holder.mac?,
        name: None,
        port: None,
        bridge: None,
        source: holder.source,
        name_source: None,
        port_source: None,
        bound: false,
        expires: Some(holder.expires).filter(|end| *end != u64::MAX),
        age_seconds: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Lease = Lease {
        port: 0,
        bridge: 1,
        mac: Mac::new([2, 0, 0, 0, 0, 1]),
        flags: LeaseFlags::FROM_TRAFFIC | LeaseFlags::FROM_NEIGHBOUR,
        last_seen: 1000,
    };

    #[test]
    fn a_port_that_is_not_known_has_no_name() {
        let row = seen_row([192, 168, 122, 10].into(), &LEASE, None, 2500, 250);
        assert_eq!((row.port.as_deref(), row.bridge.as_deref()), (None, Some("lo")));
        assert_eq!((row.source, row.port_source, row.age_seconds), (Source::Traffic, None, Some(6)));
    }

    #[test]
    fn each_fact_says_where_it_comes_from() {
        let holder = LeaseFact {
            mac: Some(LEASE.mac),
            expires: 9_000,
            ..LeaseFact::of(Source::Networkd, [192, 168, 122, 10].into())
        };
        let lease = Lease { port: 1, flags: LeaseFlags::BOUND, ..LEASE };
        let row = seen_row(holder.address, &lease, Some(&holder), 2500, 250);
        assert_eq!((row.source, row.port_source), (Source::Networkd, Some(Source::ForwardingTable)));
        assert_eq!((row.expires, row.age_seconds, row.bound), (Some(9_000), None, true));
        let stranger = LeaseFact { mac: Some(Mac::ZERO), ..holder };
        let row = seen_row(stranger.address, &LEASE, Some(&stranger), 2500, 250);
        assert_eq!((row.source, row.expires), (Source::Traffic, None), "another's lease says nothing of it");
    }
}
