//! What has changed between two looks at the leases.

use std::{collections::BTreeMap, net::Ipv4Addr};

use serde::Serialize;

use super::LeaseRow;

/// What became of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// It was there when the watch began.
    Present,
    /// It has come.
    Added,
    /// MAC, name, port, bridge, source or binding is another.
    Changed,
    /// It is no more.
    Gone,
}

impl Event {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Present => "present",
            Self::Added => "added",
            Self::Changed => "changed",
            Self::Gone => "gone",
        }
    }
}

/// A lease to which something has happened, as it is by now, or was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// What has happened.
    pub event: Event,
    /// The lease.
    #[serde(flatten)]
    pub lease: LeaseRow,
}

/// The changes between two looks, by address. That a lease was renewed, or its guest seen again, is none.
#[must_use]
pub fn changes(before: &[LeaseRow], now: &[LeaseRow]) -> Vec<Change> {
    let known: BTreeMap<Ipv4Addr, &LeaseRow> = before.iter().map(|row| (row.address, row)).collect();
    let mut changes: Vec<Change> = now
        .iter()
        .filter_map(|row| {
            let event = match known.get(&row.address) {
                None => Event::Added,
                Some(known) if essence(known) != essence(row) => Event::Changed,
                Some(_) => return None,
            };
            Some(Change { event, lease: row.clone() })
        })
        .collect();
    let gone = before.iter().filter(|row| !now.iter().any(|other| other.address == row.address));
    changes.extend(gone.map(|row| Change { event: Event::Gone, lease: row.clone() }));
    changes.sort_by_key(|change| change.lease.address);
    changes
}

/// A lease without what moves all the time.
fn essence(row: &LeaseRow) -> LeaseRow {
    LeaseRow { expires: None, age_seconds: None, port_source: None, ..row.clone() }
}

#[cfg(test)]
mod tests {
    use vmnat_common::Mac;

    use super::*;
    use crate::leases::Source;

    fn row(last: u8) -> LeaseRow {
        LeaseRow {
            address: [10, 0, 0, last].into(),
            mac: Mac::new([2, 0, 0, 0, 0, last]),
            name: None,
            port: Some("vnet0".into()),
            bridge: Some("virbr0".into()),
            source: Source::Libvirt,
            name_source: None,
            port_source: Some(Source::Traffic),
            bound: true,
            expires: Some(100),
            age_seconds: Some(1),
        }
    }

    #[test]
    fn what_came_went_and_moved_is_told_and_what_was_renewed_is_not() {
        let renewed = LeaseRow { expires: Some(200), age_seconds: Some(9), ..row(1) };
        let moved = LeaseRow { port: Some("vnet7".into()), ..row(2) };
        let told = changes(&[row(1), row(2), row(3)], &[renewed, moved.clone(), row(4)]);
        let told: Vec<_> =
            told.iter().map(|change| (change.event.name(), change.lease.address.octets()[3])).collect();
        assert_eq!(told, [("changed", 2), ("gone", 3), ("added", 4)]);
        let moved = [moved];
        assert!(changes(&moved, &moved).is_empty());
    }
}
