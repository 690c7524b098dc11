//! What the rules come to: a list for each prefix, bridge and way, in which the longest prefix has won, and denial a tie.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;
use vmnat_common::access::{AccessKey, AccessRange, BANK, LAST, Verdict, Way, place, scope};

use super::{Direction, Rule, Verb};
use crate::{error::Error, plan::PlannedNetwork};

/// Prefixes that the kernel's map holds.
const MOST_PREFIXES: usize = 16_384;

/// The lists by their prefixes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    /// Of each prefix, bridge and way.
    pub lists: BTreeMap<AccessKey, Vec<AccessRange>>,
}

/// Resolves the rules for these bridges, by index and name.
///
/// A network of guests is closed to the guests of other bridges as if a rule of its own prefix said so, before which any rule of the
/// operator goes; so what opens a wider prefix opens no network.
///
/// # Errors
/// [`Error::Unfit`] for more than the kernel's maps hold.
pub fn compile(
    rules: &[Rule],
    bridges: &[(u32, String)],
    networks: &[PlannedNetwork],
) -> Result<Compiled, Error> {
    let mut compiled = Compiled::default();
    for (index, name) in bridges {
        for (direction, way) in [(Direction::To, Way::To), (Direction::From, Way::From)] {
            let own = |rule: &&Rule| {
                rule.direction == direction && rule.spec.bridge.as_ref().is_none_or(|bridge| bridge == name)
            };
            let mut claims: Vec<Claim> = rules.iter().filter(own).map(Claim::of).collect();
            if claims.is_empty() {
                continue;
            }
            if way == Way::To {
                let others = networks.iter().filter(|network| network.bridge != *index);
                claims.extend(others.map(|network| Claim::closing(network.subnet)));
            }
            claims.sort_by_key(|claim| (std::cmp::Reverse(claim.network.prefix_len()), claim.rank));
            let prefixes: BTreeSet<Ipv4Net> = claims.iter().map(|claim| claim.network).collect();
            for prefix in prefixes {
                let key = AccessKey::new(scope(*index, way), prefix.network().into(), prefix.prefix_len());
                compiled.lists.insert(key, list(prefix, &claims));
            }
        }
    }
    compiled.check()?;
    Ok(compiled)
}

impl Compiled {
    /// What the lists say of a call; as the kernel half finds it.
    #[must_use]
    pub fn ask(&self, bridge: u32, way: Way, address: Ipv4Addr, protocol: u8, port: u16) -> Verdict {
        let (scope, place) = (scope(bridge, way), place(protocol, port));
        let of = |bits: u8| {
            let network = Ipv4Net::new_assert(address, bits).network();
            self.lists.get(&AccessKey::new(scope, network.into(), bits))
        };
        let Some(list) = (0..=32).rev().find_map(of) else { return Verdict::Silent };
        let range = list.iter().find(|range| range.first <= place && place <= range.last);
        range.map_or(Verdict::Silent, |range| Verdict::from_number(range.verdict))
    }

    /// True where there are lists for the guests of a bridge.
    #[must_use]
    pub fn concerns(&self, bridge: u32) -> bool {
        let scopes = [scope(bridge, Way::To), scope(bridge, Way::From)];
        self.lists.keys().any(|key| scopes.contains(&key.peer.scope))
    }

    fn check(&self) -> Result<(), Error> {
        let ranges: usize = self.lists.values().map(Vec::len).sum();
        let most = usize::try_from(BANK).unwrap_or(usize::MAX);
        if self.lists.len() <= MOST_PREFIXES && ranges <= most {
            return Ok(());
        }
        let prefixes = self.lists.len();
        Err(Error::Unfit {
            what: "the access lists are too long".to_owned(),
            why: format!(
                "they come to {prefixes} prefixes and {ranges} ranges, each bridge by itself, and {MOST_PREFIXES} and {most} fit"
            ),
            hint: "write wider networks or fewer ports".to_owned(),
        })
    }
}

/// A rule's part in the order of precedence.
struct Claim {
    network: Ipv4Net,
    /// Of one prefix, the lower goes first.
    rank: u8,
    verdict: Verdict,
    places: Vec<(u32, u32)>,
}

impl Claim {
    fn of(rule: &Rule) -> Self {
        let (rank, verdict) = match rule.verb {
            Verb::Deny => (0, Verdict::Denied),
            Verb::Allow => (1, Verdict::Allowed),
        };
        Self { network: rule.spec.network, rank, verdict, places: rule.spec.places() }
    }

    /// What closes a network of guests, where no rule opens it. Silence is what the kernel half takes for closed.
    fn closing(network: Ipv4Net) -> Self {
        Self { network, rank: 2, verdict: Verdict::Silent, places: vec![(0, LAST)] }
    }
}

/// The list of a prefix: its own claims, then those of each wider one.
fn list(prefix: Ipv4Net, claims: &[Claim]) -> Vec<AccessRange> {
    let mut ranges: Vec<AccessRange> = Vec::new();
    for claim in claims.iter().filter(|claim| claim.network.contains(&prefix)) {
        for (first, last) in &claim.places {
            let free = gaps(&ranges, *first, *last);
            ranges.extend(free.into_iter().map(|(first, last)| AccessRange {
                first,
                last,
                verdict: claim.verdict as u32,
            }));
            ranges.sort_unstable_by_key(|range| range.first);
        }
    }
    merge(ranges)
}

/// What of a span no range covers; ranges are in order.
fn gaps(ranges: &[AccessRange], first: u32, last: u32) -> Vec<(u32, u32)> {
    let mut gaps = Vec::new();
    let mut next = first;
    for range in ranges.iter().filter(|range| range.last >= first && range.first <= last) {
        if range.first > next {
            gaps.push((next, range.first.saturating_sub(1)));
        }
        next = next.max(range.last.saturating_add(1));
    }
    if next <= last {
        gaps.push((next, last));
    }
    gaps
}

/// Joins neighbours of one verdict, and leaves out silence.
fn merge(ranges: Vec<AccessRange>) -> Vec<AccessRange> {
    let mut merged: Vec<AccessRange> = Vec::new();
    for range in ranges.into_iter().filter(|range| range.verdict != Verdict::Silent as u32) {
        match merged.last_mut() {
            Some(before)
                if before.verdict == range.verdict && before.last.saturating_add(1) == range.first =>
            {
                before.last = range.last;
            }
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::state::Filtering;

    fn rule(text: &str) -> Rule {
        let (verb, rest) = text.split_once(' ').unwrap();
        let (direction, spec) = rest.split_once(' ').unwrap();
        Rule {
            verb: if verb == "allow" { Verb::Allow } else { Verb::Deny },
            direction: if direction == "to" { Direction::To } else { Direction::From },
            spec: spec.parse().unwrap(),
        }
    }

    fn compiled(rules: &[&str]) -> Compiled {
        let rules: Vec<Rule> = rules.iter().map(|text| rule(text)).collect();
        let network = |subnet: &str, bridge| PlannedNetwork {
            subnet: subnet.parse().unwrap(),
            bridge,
            gateway: vmnat_common::Address::UNSPECIFIED,
            filtering: Filtering::default(),
        };
        let bridges = [(3, "virbr0".to_owned()), (4, "virbr1".to_owned())];
        compile(&rules, &bridges, &[network("192.168.122.0/24", 3), network("192.168.123.0/24", 4)]).unwrap()
    }

    fn to(compiled: &Compiled, address: &str, protocol: u8, port: u16) -> Verdict {
        compiled.ask(3, Way::To, address.parse().unwrap(), protocol, port)
    }

    #[test]
    fn the_longest_prefix_wins_and_what_it_leaves_open_is_for_wider_ones() {
        let lists =
            compiled(&["deny to 10.0.0.0/8", "allow to 10.1.2.3:443/tcp", "deny to 10.1.2.3:444/tcp"]);
        assert_eq!(to(&lists, "10.1.2.3", 6, 443), Verdict::Allowed);
        assert_eq!(to(&lists, "10.1.2.3", 6, 80), Verdict::Denied);
        assert_eq!(to(&lists, "10.1.2.3", 17, 443), Verdict::Denied);
        assert_eq!(to(&lists, "10.1.2.4", 6, 443), Verdict::Denied);
        assert_eq!(to(&lists, "11.1.2.3", 6, 443), Verdict::Silent);
        assert_eq!(lists.ask(3, Way::From, [10, 1, 1, 1].into(), 6, 80), Verdict::Silent);
    }

    #[test]
    fn denial_wins_a_tie_in_any_order() {
        for rules in [["deny to any:25/tcp", "allow to any"], ["allow to any", "deny to any:25/tcp"]] {
            let lists = compiled(&rules);
            assert_eq!(to(&lists, "198.51.100.1", 6, 25), Verdict::Denied);
            assert_eq!(to(&lists, "198.51.100.1", 6, 26), Verdict::Allowed);
        }
    }

    #[test]
    fn a_rule_of_one_bridge_is_not_the_others() {
        let lists = compiled(&["deny to virbr1=10.0.0.0/8", "deny from 10.0.0.0/8:22/tcp"]);
        assert_eq!(to(&lists, "10.0.0.1", 6, 80), Verdict::Silent);
        assert_eq!(lists.ask(4, Way::To, [10, 0, 0, 1].into(), 6, 80), Verdict::Denied);
        for bridge in [3, 4] {
            assert_eq!(lists.ask(bridge, Way::From, [10, 0, 0, 1].into(), 6, 22), Verdict::Denied);
        }
        assert!(lists.concerns(3) && lists.concerns(4) && !lists.concerns(5));
    }

    #[test]
    fn a_wide_rule_opens_no_network_of_other_guests_and_one_of_its_own_does() {
        let lists = compiled(&["allow to any", "allow to 192.168.0.0/16"]);
        assert_eq!(to(&lists, "192.168.123.7", 6, 80), Verdict::Silent);
        assert_eq!(to(&lists, "192.168.124.7", 6, 80), Verdict::Allowed);
        let lists = compiled(&["allow to 192.168.123.7:80/tcp", "deny to 192.168.123.0/24"]);
        assert_eq!(to(&lists, "192.168.123.7", 6, 80), Verdict::Allowed);
        assert_eq!(to(&lists, "192.168.123.8", 6, 80), Verdict::Denied);
    }

    #[test]
    fn lists_that_do_not_fit_are_refused() {
        let rules: Vec<Rule> =
            (0..9_000_u32).map(|n| rule(&format!("deny to {}:80", Ipv4Addr::from(n)))).collect();
        let error = compile(&rules, &[(3, "virbr0".to_owned())], &[]).unwrap_err().to_string();
        assert!(error.contains("45000 ranges"), "{error}");
    }

    proptest! {
        /// The lists say what going through all rules says.
        #[test]
        fn lists_and_rules_agree(
            rules in proptest::collection::vec((any::<bool>(), 28_u8..=32, 0_u32..4, 1_u16..7, 0_u16..3, 0_u8..3), 0..9),
            address in 0_u32..4, port in 0_u16..9, protocol in prop_oneof![Just(1_u8), Just(6), Just(17), Just(47)],
        ) {
            let rules: Vec<Rule> = rules.into_iter().map(|(allows, bits, network, first, span, kind)| {
                // Of four addresses, prefixes of 28 to 32 bits.
                let network = Ipv4Net::new(Ipv4Addr::from(network), bits).unwrap().trunc();
                let (ports, protocol) = match kind {
                    0 => (None, None),
                    1 => (Some((first, first.saturating_add(span))), None),
                    _ => (Some((first, first.saturating_add(span))), Some("tcp".to_owned())),
                };
                Rule {
                    verb: if allows { Verb::Allow } else { Verb::Deny },
                    direction: Direction::To,
                    spec: super::super::RuleSpec { bridge: None, network, ports, protocol },
                }
            }).collect();
            let compiled = compile(&rules, &[(3, "b".to_owned())], &[]).unwrap();
            let address = Ipv4Addr::from(address);
            let place = place(protocol, port);
            let matching = rules.iter().filter(|rule| {
                rule.spec.network.contains(&address)
                    && rule.spec.places().iter().any(|(first, last)| (*first..=*last).contains(&place))
            });
            let best = matching.max_by_key(|rule| (rule.spec.network.prefix_len(), rule.verb == Verb::Deny));
            let expected = best.map_or(Verdict::Silent, |rule| Claim::of(rule).verdict);
            prop_assert_eq!(compiled.ask(3, Way::To, address, protocol, port), expected);
        }
    }
}
