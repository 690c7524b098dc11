//! The kernel's entries of port forwards: one for each external address and protocol, sorted, none over another.

use std::collections::{BTreeMap, BTreeSet};

use vmnat_common::{
    Address, Endpoint, Port,
    forward::{Forward, ForwardFlags, SourceKey, place},
};

use super::{Plan, PlannedNetwork};
use crate::{
    facts::{Facts, LinkFact},
    forwards::{External, PortForward},
    state::State,
};

/// Port forwards that a warning names one by one.
const NAMED: usize = 5;

/// Adds every port forward that leads somewhere to the plan. Of two that want one port, the older one has it.
pub(super) fn plan_forwards(
    state: &State,
    facts: &Facts,
    networks: &[PlannedNetwork],
    uplinks: &[&LinkFact],
    plan: &mut Plan,
) {
    let external = External::new(facts, uplinks);
    // The last place of each entry and its forward, by its first.
    let mut taken: BTreeMap<u64, (u64, u32)> = BTreeMap::new();
    let mut doubts = Doubts::default();
    let mut forwards: Vec<&PortForward> = state.forwards.iter().collect();
    forwards.sort_unstable_by_key(|forward| forward.id);
    for forward in forwards {
        let Some(entry) = entry_of(forward, state, networks, &mut doubts) else { continue };
        for address in external.addresses(&forward.wish) {
            for protocol in forward.wish.spec.protocols.each() {
                let endpoint = Endpoint::new(address.into(), Port::new(forward.wish.spec.ports.first()));
                let first = place(protocol.number(), endpoint);
                let last = first.saturating_add(u64::from(entry.span));
                let before = taken.range(..=last).next_back();
                if let Some((_, (_, other))) = before.filter(|(_, (end, _))| *end >= first) {
                    doubts.overtaken.insert((forward.id, *other));
                    continue;
                }
                taken.insert(first, (last, forward.id));
                plan.forward.push(Forward { first, ..entry });
            }
        }
        plan.forward_source.extend(
            forward.wish.from.iter().map(|source| {
                SourceKey::new(forward.id, Address::from(source.network()), source.prefix_len())
            }),
        );
    }
    plan.forward.sort_unstable_by_key(|forward| forward.first);
    doubts.tell(state, plan);
}

/// The entry of a forward but for its place; none where it leads nowhere at the moment.
fn entry_of(
    forward: &PortForward,
    state: &State,
    networks: &[PlannedNetwork],
    doubts: &mut Doubts,
) -> Option<Forward> {
    let PortForward { id, wish } = forward;
    let guest = match (wish.spec.target.address(), state.resolved.get(id)) {
        (Some(address), _) => address,
        (None, None) => {
            doubts.unknown.push(*id);
            return None;
        }
        (None, Some(known)) => {
            if known.missing {
                doubts.missing.push(*id);
            }
            known.address
        }
    };
    let Some(network) = networks.iter().find(|network| network.subnet.contains(&guest)) else {
        doubts.astray.push(*id);
        return None;
    };
    Some(Forward {
        first: 0,
        address: guest.into(),
        port: Port::new(wish.spec.target_port),
        span: wish.spec.ports.span(),
        id: *id,
        bridge: network.bridge,
        expires: state.expiries.get(id).map_or(0, |expiry| expiry.boot),
        flags: if wish.from.is_empty() { 0 } else { ForwardFlags::LIMITED },
    })
}

/// Port forwards that do not do what was asked for, by number.
#[derive(Default)]
struct Doubts {
    /// Their lease was never known.
    unknown: Vec<u32>,
    /// Their lease is not known any more.
    missing: Vec<u32>,
    /// Their guest is in no network.
    astray: Vec<u32>,
    /// Another one has their port.
    overtaken: BTreeSet<(u32, u32)>,
}

impl Doubts {
    fn tell(self, state: &State, plan: &mut Plan) {
        let Self { unknown, missing, astray, overtaken } = self;
        let all = [
            (unknown, "no lease of its target is known"),
            (missing, "the lease of its target is gone, and its last address is used"),
            (astray, "it leads to no network"),
        ];
        for (ids, why) in all {
            if ids.len() > NAMED {
                plan.warnings.push(format!("{} port forwards: each of them: {why}", ids.len()));
                continue;
            }
            for id in ids {
                let forward = state.forwards.iter().find(|forward| forward.id == id);
                let spec = forward.map_or_else(String::new, |forward| forward.wish.spec.to_string());
                plan.warnings.push(format!("port forward {id} ({spec}): {why}"));
            }
        }
        let gives_way = |(id, other)| {
            format!("port forward {id} gives way to port forward {other} where both want a port")
        };
        plan.warnings.extend(overtaken.into_iter().take(NAMED).map(gives_way));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        forwards::{Expiry, Resolved, Wish},
        plan::{Circumstances, plan, tests::host},
    };

    fn forward(id: u32, spec: &str) -> PortForward {
        PortForward { id, wish: Wish::plain(spec.parse().unwrap()) }
    }

    fn planned(state: &State, facts: &Facts) -> Plan {
        plan(state, facts, &Circumstances::default()).unwrap()
    }

    #[test]
    fn a_forward_stands_under_every_uplink_address_and_loopback_or_the_named_one() {
        let (mut state, facts) = host();
        state.forwards = vec![
            forward(1, "80:192.168.122.9:80"),
            forward(2, "192.0.2.7:81:192.168.122.9:80"),
            forward(3, "82:10.9.9.9:80"),
        ];
        let plan = planned(&state, &facts);
        let at = |address, port| place(6, Endpoint::new(Address::new(address), Port::new(port)));
        let firsts: Vec<u64> = plan.forward.iter().map(|forward| forward.first).collect();
        assert_eq!(firsts, [at([127, 0, 0, 1], 80), at([192, 0, 2, 7], 81), at([198, 51, 100, 2], 80)]);
        assert_eq!(plan.warnings, ["port forward 3 (82:10.9.9.9:80/tcp): it leads to no network"]);
    }

    #[test]
    fn a_range_is_one_entry_a_protocol() {
        let (mut state, facts) = host();
        state.forwards = vec![forward(1, "198.51.100.2:10000-19999:192.168.122.9:20000-29999/tcp+udp")];
        let plan = planned(&state, &facts);
        assert_eq!(plan.forward.len(), 2);
        assert!(plan.forward.iter().all(|entry| entry.span == 9999 && entry.id == 1));
        assert_eq!(plan.forward[1].first >> 48, 17);
    }

    #[test]
    fn sources_and_the_end_are_the_entrys() {
        let (mut state, facts) = host();
        let mut limited = forward(7, "80:192.168.122.9:80");
        limited.wish.from = vec!["192.0.2.0/24".parse().unwrap(), "203.0.113.9/32".parse().unwrap()];
        state.forwards = vec![limited];
        state.expiries.insert(7, Expiry { unix: 9_000, boot: 400 });
        let plan = planned(&state, &facts);
        assert!(
            plan.forward.iter().all(|entry| entry.flags == ForwardFlags::LIMITED && entry.expires == 400)
        );
        assert_eq!(
            plan.forward_source,
            [
                SourceKey::new(7, Address::new([192, 0, 2, 0]), 24),
                SourceKey::new(7, Address::new([203, 0, 113, 9]), 32)
            ]
        );
    }

    #[test]
    fn a_lease_that_is_missing_is_a_warning_and_keeps_its_address() {
        let (mut state, facts) = host();
        state.forwards = vec![forward(1, "80:web:80"), forward(2, "81:db:80")];
        state.resolved.insert(1, Resolved { address: [192, 168, 122, 9].into(), missing: true });
        let plan = planned(&state, &facts);
        assert!(plan.forward.iter().all(|entry| entry.id == 1));
        assert_eq!(plan.warnings.len(), 2, "{:?}", plan.warnings);
    }

    #[test]
    fn the_older_of_two_keeps_a_port_that_an_address_brought_together() {
        let (mut state, facts) = host();
        state.forwards =
            vec![forward(2, "198.51.100.2:85:192.168.122.9:80"), forward(1, "80-89:192.168.122.9:80-89")];
        let plan = planned(&state, &facts);
        assert!(plan.forward.iter().all(|entry| entry.id == 1));
        assert_eq!(plan.warnings, ["port forward 2 gives way to port forward 1 where both want a port"]);
    }
}
