//! The count of the flow table against the counts of the programs.

use std::{collections::HashMap, net::Ipv4Addr};

use anyhow::{Context as _, Result};
use bytemuck::Zeroable as _;
use ipnet::Ipv4Net;
use vmnat_common::{
    Address,
    flow::{FlowKey, Side},
    quota::Guest,
    session::{Flags, Session},
};

use crate::tables::Tables;

/// Flows and half-open flows of a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Flows.
    pub flows: i32,
    /// TCP flows whose handshake is not complete.
    pub half_open: i32,
}

impl Taken {
    fn each(self, other: Self, rule: impl Fn(i32, i32) -> i32) -> Self {
        Self { flows: rule(self.flows, other.flows), half_open: rule(self.half_open, other.half_open) }
    }
}

/// What the flow table holds of each guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census(HashMap<Address, Taken>);

impl Census {
    /// Counts an entry of the flow table. What was taken over from the kernel is in no quota.
    pub fn note(&mut self, key: &FlowKey, session: &Session) {
        let is_guests = key.side == Side::Guest as u8;
        let guest = if is_guests { key.source } else { session.address };
        let is_half_open = session.has(Flags::HALF_OPEN);
        if session.flags & (Flags::IMPORTED | Flags::HOST) != 0 || !(is_guests || is_half_open) {
            return;
        }
        let taken = self.0.entry(guest).or_default();
        taken.flows = taken.flows.saturating_add(i32::from(is_guests));
        // The flag stands in the half of whoever opened the flow.
        taken.half_open = taken.half_open.saturating_add(i32::from(is_half_open));
    }

    /// What the programs have counted.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn counted(tables: &Tables) -> Result<Self> {
        let entries = tables.guest.entries().context("read the guests")?;
        let taken = |guest: &Guest| Taken { flows: guest.flows, half_open: guest.half_open };
        Ok(Self(entries.iter().map(|(address, guest)| (*address, taken(guest))).collect()))
    }

    fn of(&self, guest: Address) -> Taken {
        self.0.get(&guest).copied().unwrap_or_default()
    }
}

/// Suspicions of drift, each to be confirmed by the next look.
#[derive(Debug, Default)]
pub struct Ledger {
    suspected: HashMap<Address, Taken>,
}

impl Ledger {
    /// What must be added to the counts of each guest.
    ///
    /// The table changes while it is read: a count is wrong only where it lies neither before the reading nor after it, nor
    /// in between, and where two readings agree about it; then by the smaller of both.
    pub fn judge(&mut self, before: &Census, after: &Census, table: &Census) -> Vec<(Address, Taken)> {
        let guests = before.0.keys().chain(after.0.keys()).chain(table.0.keys());
        let gaps: HashMap<Address, Taken> = guests
            .map(|guest| {
                let (first, last, real) = (before.of(*guest), after.of(*guest), table.of(*guest));
                let flows = gap(first.flows, last.flows, real.flows);
                (*guest, Taken { flows, half_open: gap(first.half_open, last.half_open, real.half_open) })
            })
            .filter(|(_, gap)| *gap != Taken::default())
            .collect();
        let earlier = std::mem::take(&mut self.suspected);
        let mut corrections = Vec::new();
        for (guest, gap) in gaps {
            let sure = earlier.get(&guest).map_or_else(Taken::default, |first| first.each(gap, confirmed));
            if sure == Taken::default() {
                self.suspected.insert(guest, gap);
            } else {
                corrections.push((guest, sure));
            }
        }
        corrections
    }
}

/// What a count lacks to be right, where it went from `before` to `after` while `real` was found.
const fn gap(before: i32, after: i32, real: i32) -> i32 {
    let (low, high) = if before < after { (before, after) } else { (after, before) };
    if real < low {
        real.saturating_sub(low)
    } else if real > high {
        real.saturating_sub(high)
    } else {
        0
    }
}

/// What two gaps have in common.
fn confirmed(first: i32, second: i32) -> i32 {
    match (first.signum(), second.signum()) {
        (1, 1) => first.min(second),
        (-1, -1) => first.max(second),
        _ => 0,
    }
}

/// What an audit did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Audited {
    /// Guests whose counts were put right.
    pub corrected: usize,
    /// Entries that were removed, of addresses in no network and without flows.
    pub forgotten: usize,
}

/// Puts drifted counts right, and forgets guests whose network is gone.
///
/// An entry is written whole: what a program changes in that instant is lost, which is a drift of one, a token or a refusal.
///
/// # Errors
/// What the kernel answers.
pub fn audit(tables: &Tables, ledger: &mut Ledger, before: &Census, table: &Census) -> Result<Audited> {
    let after = Census::counted(tables)?;
    let mut audited = Audited::default();
    for (address, add) in ledger.judge(before, &after, table) {
        let mut guest = tables.guest.get(&address)?.unwrap_or(Guest::zeroed());
        guest.flows = guest.flows.saturating_add(add.flows);
        guest.half_open = guest.half_open.saturating_add(add.half_open);
        tables.guest.set(&address, &guest)?;
        audited.corrected = audited.corrected.saturating_add(1);
    }
    let networks = networks(tables)?;
    for address in after.0.keys().filter(|address| !address.is_unspecified()) {
        let is_inside = networks.iter().any(|network| network.contains(&Ipv4Addr::from(*address)));
        if !is_inside && table.of(*address).flows == 0 && after.of(*address).flows <= 0 {
            let removed = tables.guest.remove(address)?;
            audited.forgotten = audited.forgotten.saturating_add(usize::from(removed));
        }
    }
    Ok(audited)
}

fn networks(tables: &Tables) -> Result<Vec<Ipv4Net>> {
    let entries = tables.network.entries().context("read the networks")?;
    let subnets = entries
        .iter()
        .filter_map(|(key, _)| Ipv4Net::new(key.address.into(), u8::try_from(key.prefix).ok()?).ok());
    Ok(subnets.collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vmnat_common::{Endpoint, Port, Protocol};

    use super::*;

    const GUEST: Address = Address::new([192, 168, 122, 10]);
    const WORLD: Address = Address::new([198, 51, 100, 10]);

    fn census(flows: i32, half_open: i32) -> Census {
        Census(HashMap::from([(GUEST, Taken { flows, half_open })]))
    }

    fn judged(ledger: &mut Ledger, counted: i32, real: i32) -> i32 {
        let counted = census(counted, 0);
        ledger.judge(&counted, &counted, &census(real, 0)).first().map_or(0, |(_, add)| add.flows)
    }

    #[test]
    fn a_drift_that_is_seen_twice_is_put_right() {
        let mut ledger = Ledger::default();
        assert_eq!(judged(&mut ledger, 10, 7), 0, "once may be chance");
        assert_eq!(judged(&mut ledger, 12, 8), -3, "what both have in common");
        assert_eq!(judged(&mut ledger, 9, 9), 0);
        assert_eq!(judged(&mut ledger, 9, 11), 0);
        assert_eq!(judged(&mut ledger, 11, 9), 0, "the other way round confirms nothing");
        assert_eq!(judged(&mut ledger, 11, 9), -2);
    }

    #[test]
    fn what_changes_while_it_is_counted_is_no_drift() {
        let mut ledger = Ledger::default();
        for _ in 0..3 {
            assert!(ledger.judge(&census(10, 2), &census(20, 5), &census(13, 4)).is_empty());
            assert!(ledger.judge(&census(20, 5), &census(10, 2), &census(10, 5)).is_empty());
        }
    }

    #[test]
    fn the_table_is_counted_by_guest() {
        let (inner, outer) = (Endpoint::new(GUEST, Port::new(5000)), Endpoint::new(WORLD, Port::new(80)));
        let key = FlowKey::guest(Protocol::Tcp, inner, outer);
        let external = Endpoint::new(Address::new([203, 0, 113, 2]), Port::new(5000));
        let half = |to: Endpoint, flags| Session { address: to.address, flags, ..Session::zeroed() };
        let mut census = Census::default();
        census.note(&key, &half(external, Flags::HALF_OPEN));
        census.note(&key.reverse(external), &half(inner, 0));
        assert_eq!(census.of(GUEST), Taken { flows: 1, half_open: 1 });
        // One that the world has opened.
        census.note(&key, &half(external, Flags::FORWARDED));
        census.note(&key.reverse(external), &half(inner, Flags::FORWARDED | Flags::HALF_OPEN));
        assert_eq!(census.of(GUEST), Taken { flows: 2, half_open: 2 });
        census.note(&key, &half(external, Flags::IMPORTED));
        census.note(&key.reverse(external), &half(Endpoint::default(), Flags::HOST));
        assert_eq!(census.0.len(), 1);
        assert_eq!(census.of(GUEST), Taken { flows: 2, half_open: 2 });
    }

    proptest! {
        #[test]
        fn a_correction_never_goes_past_the_truth(counted in any::<i32>(), real in any::<i32>(), other in any::<i32>()) {
            let add = confirmed(gap(counted, counted, real), gap(counted, counted, other));
            let after = i64::from(counted).saturating_add(i64::from(add));
            let bounds = [i64::from(counted), i64::from(real), i64::from(other)];
            prop_assert!((*bounds.iter().min().unwrap()..=*bounds.iter().max().unwrap()).contains(&after));
        }
    }
}
