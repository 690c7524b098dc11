//! Guests, and what each has taken of what all share.
//!
//! The programs count (`GUEST`), and what they count may drift: two CPUs that see one handshake's last segment, an element
//! that is replaced while it is written. So the agent counts the flow table now and then, which it reads anyway.

mod ledger;

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use vmnat_common::quota::Guest;

pub use self::ledger::{Audited, Census, Ledger, Taken, audit};
use crate::{leases::Directory, tables::Tables};

/// A guest, and what it has taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestRow {
    /// The guest's address.
    pub address: Ipv4Addr,
    /// The guest's name, where a lease file has one.
    pub name: Option<String>,
    /// Flows.
    pub flows: u32,
    /// TCP flows whose handshake is not complete.
    pub half_open: u32,
    /// New flows that were refused, by the quota of flows, of half-open flows, and of new flows a second.
    pub refused: [u32; 3],
}

impl GuestRow {
    /// New flows that were refused.
    #[must_use]
    pub fn refused_in_all(&self) -> u64 {
        self.refused.iter().copied().map(u64::from).sum()
    }
}

/// The guests that have opened a flow, by address.
///
/// # Errors
/// What the kernel answers.
pub fn list(tables: &Tables, directory: &Directory) -> Result<Vec<GuestRow>> {
    let entries = tables.guest.entries().context("read the guests")?;
    // What the world sends into the quiet room is counted under the unspecified address.
    let guests = entries.iter().filter(|(address, _)| !address.is_unspecified());
    let mut rows: Vec<_> = guests.map(|(address, guest)| row((*address).into(), guest)).collect();
    rows.sort_unstable_by_key(|row| row.address);
    rows.dedup_by_key(|row| row.address);
    for row in &mut rows {
        row.name = directory.name_of(row.address).map(str::to_owned);
    }
    Ok(rows)
}

fn row(address: Ipv4Addr, guest: &Guest) -> GuestRow {
    let count = |count: i32| u32::try_from(count).unwrap_or(0);
    GuestRow {
        address,
        name: None,
        flows: count(guest.flows),
        half_open: count(guest.half_open),
        refused: [guest.refused_flows, guest.refused_half_open, guest.refused_rate],
    }
}
