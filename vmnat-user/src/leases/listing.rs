//! Leases as people see them: where each guest's address lives.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use vmnat_common::{
    Mac,
    lease::{Lease, LeaseFlags},
    timeout::age,
};

use super::Directory;
use crate::{facts::interface_name, tables::Tables};

/// A guest's address, and where it lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRow {
    /// The guest's address.
    pub address: Ipv4Addr,
    /// The guest's MAC.
    pub mac: Mac,
    /// The guest's name, where a lease file has one.
    pub name: Option<String>,
    /// Name of the bridge's port; none while it is unknown.
    pub port: Option<String>,
    /// Name of the bridge.
    pub bridge: String,
    /// Where the fact comes from.
    pub source: &'static str,
    /// Seconds since it was learned or confirmed.
    pub age_seconds: u64,
}

/// The leases, by address; names of interfaces are of the calling thread's network namespace.
///
/// # Errors
/// What the kernel answers.
pub fn list(tables: &Tables, directory: &Directory) -> Result<Vec<LeaseRow>> {
    let now = tables.clock()?.stamp();
    let hertz = tables.settings()?.hertz;
    let entries = tables.lease.entries().context("read the leases")?;
    let mut rows: Vec<_> =
        entries.iter().map(|(address, lease)| row((*address).into(), lease, now, hertz)).collect();
    for row in &mut rows {
        row.name = directory.name_of(row.address).map(str::to_owned);
    }
    rows.sort_unstable_by_key(|row| row.address);
    rows.dedup_by_key(|row| row.address);
    Ok(rows)
}

fn row(address: Ipv4Addr, lease: &Lease, now: u32, hertz: u32) -> LeaseRow {
    LeaseRow {
        address,
        mac: lease.mac,
        name: None,
        port: (lease.port != 0).then(|| interface_name(lease.port)),
        bridge: interface_name(lease.bridge),
        source: source(lease.flags),
        age_seconds: u64::from(age(now, lease.last_seen).checked_div(hertz).unwrap_or(0)),
    }
}

const fn source(flags: u16) -> &'static str {
    if flags & LeaseFlags::FROM_TRAFFIC != 0 {
        "traffic"
    } else if flags & LeaseFlags::FROM_NEIGHBOUR != 0 {
        "neighbour"
    } else {
        "unknown"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_not_known_has_no_name() {
        let lease = Lease {
            port: 0,
            bridge: 1,
            mac: Mac::new([2, 0, 0, 0, 0, 1]),
            flags: LeaseFlags::FROM_TRAFFIC | LeaseFlags::FROM_NEIGHBOUR,
            last_seen: 1000,
        };
        let row = row([192, 168, 122, 10].into(), &lease, 2500, 250);
        assert_eq!((row.port, row.bridge.as_str(), row.source, row.age_seconds), (None, "lo", "traffic", 6));
    }
}
