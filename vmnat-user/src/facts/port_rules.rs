//! Rules of nftables that the hook of a port would pass by: of the bridge family, where ebtables and libvirt's network
//! filters live too, and of chains at a device's own ingress. A port that one of them concerns is left to the hook of
//! its bridge.
//!
//! A rule concerns the ports whose names it compares, or looks up in a set, and every port where it names none. A base
//! chain that drops by policy concerns every port. Other chains are followed from the rules that jump to them:
//! ebtables and libvirt keep a guest's rules in chains of their own, and only the jump names the port. Where this
//! cannot tell, it says "every port": too many ports are slower then, but none escapes a rule.

mod decode;

use std::{collections::HashMap, io};

use netlink_sys::protocols::NETLINK_NETFILTER;

use self::decode::{CHAINS, ELEMENTS, RULES};
use crate::{netlink::dump, nf_tables};

/// Jumps that are followed; the kernel allows 16 (`NFT_JUMP_STACK_SIZE`).
const DEPTH: u8 = 16;

/// The rules that concern ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortRules(Vec<Concern>);

impl PortRules {
    /// Where the first rule stands that concerns a port of a bridge, in words.
    #[must_use]
    pub fn concerning(&self, port: &str, bridge: &str) -> Option<String> {
        let concerns = |ports: &Ports| match ports {
            Ports::Every => true,
            Ports::Named(names) => names.iter().any(|name| name.is_of(port) || name.is_of(bridge)),
        };
        let Concern { base, .. } = self.0.iter().find(|concern| concerns(&concern.ports))?;
        let family = base.family_name();
        Some(format!(
            "nftables rules in chain {} of table {family} {} see their packets",
            base.name, base.table
        ))
    }
}

/// A base chain whose policy or rules concern ports.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Concern {
    base: Place,
    ports: Ports,
}

/// Whom a rule concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ports {
    Every,
    Named(Vec<Name>),
}

/// An interface's name as a rule compares it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Name {
    text: String,
    /// It stands for every name that begins so.
    is_prefix: bool,
}

impl Name {
    fn is_of(&self, interface: &str) -> bool {
        if self.is_prefix { interface.starts_with(&self.text) } else { interface == self.text }
    }
}

/// Family, table, and name of a chain or set.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Place {
    family: u8,
    table: String,
    name: String,
}

impl Place {
    fn beside(&self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self.clone() }
    }

    const fn family_name(&self) -> &'static str {
        match self.family {
            decode::INET => "inet",
            decode::NETDEV => "netdev",
            decode::BRIDGE => "bridge",
            _ => "ip",
        }
    }
}

/// A chain that hangs on a hook of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Base {
    place: Place,
    drops: bool,
    /// The devices that it is bound to; none: every one.
    devices: Vec<Name>,
}

/// What a rule compares, and where it jumps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rule {
    names: Vec<Name>,
    /// Sets in which it looks an interface's name up.
    sets: Vec<String>,
    jump: Option<String>,
}

/// Base chains, rules by their chain, and the names in sets; none for a set that holds more than plain names.
#[derive(Debug, Default)]
struct Ruleset {
    bases: Vec<Base>,
    rules: HashMap<Place, Vec<Rule>>,
    sets: HashMap<Place, Option<Vec<Name>>>,
}

/// The rules behind the hooks of ports, in the network namespace of the calling thread.
///
/// # Errors
/// The kernel's; one without nftables has no rules.
pub fn port_rules() -> io::Result<PortRules> {
    match list() {
        Ok(ruleset) => Ok(ruleset.concerns()),
        Err(error) => match error.raw_os_error() {
            Some(libc::EPROTONOSUPPORT | libc::EINVAL | libc::EOPNOTSUPP) => Ok(PortRules::default()),
            _ => Err(error),
        },
    }
}

fn list() -> io::Result<Ruleset> {
    let mut ruleset = Ruleset::default();
    dump(NETLINK_NETFILTER, CHAINS, &nf_tables::request(decode::ANY, &[]), |message| {
        ruleset.bases.extend(decode::base(message.body));
    })?;
    let mut families: Vec<u8> = ruleset.bases.iter().map(|base| base.place.family).collect();
    families.sort_unstable();
    families.dedup();
    for family in families {
        dump(NETLINK_NETFILTER, RULES, &nf_tables::request(family, &[]), |message| {
            if let Some((place, rule)) = decode::rule(message.body) {
                ruleset.rules.entry(place).or_default().push(rule);
            }
        })?;
    }
    for set in ruleset.named_sets() {
        // It may be gone by now.
        let names = elements(&set).unwrap_or(None);
        ruleset.sets.insert(set, names);
    }
    Ok(ruleset)
}

/// The interfaces' names in a set.
fn elements(set: &Place) -> io::Result<Option<Vec<Name>>> {
    let mut names = Some(Vec::new());
    dump(
        NETLINK_NETFILTER,
        ELEMENTS,
        &nf_tables::request(set.family, &[&set.table, &set.name]),
        |message| match (&mut names, decode::elements(message.body)) {
            (Some(names), Some(found)) => names.extend(found),
            _ => names = None,
        },
    )?;
    Ok(names)
}

impl Ruleset {
    fn named_sets(&self) -> Vec<Place> {
        let sets = |(place, rules): (&Place, &Vec<Rule>)| -> Vec<Place> {
            rules.iter().flat_map(|rule| &rule.sets).map(|set| place.beside(set)).collect()
        };
        let mut sets: Vec<Place> = self.rules.iter().flat_map(sets).collect();
        sets.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        sets.dedup();
        sets
    }

    fn concerns(&self) -> PortRules {
        let mut concerns = Vec::new();
        for base in &self.bases {
            let ports =
                if base.devices.is_empty() { Ports::Every } else { Ports::Named(base.devices.clone()) };
            if base.drops {
                add(&mut concerns, base, ports.clone());
            }
            self.follow(base, &base.place, &ports, DEPTH, &mut concerns);
        }
        PortRules(concerns)
    }

    /// Collects what a chain does to packets of `ports`.
    fn follow(&self, base: &Base, chain: &Place, ports: &Ports, depth: u8, concerns: &mut Vec<Concern>) {
        for rule in self.rules.get(chain).into_iter().flatten() {
            let ports = self.ports(chain, rule).unwrap_or_else(|| ports.clone());
            if let (Some(target), Some(depth)) = (&rule.jump, depth.checked_sub(1)) {
                self.follow(base, &chain.beside(target), &ports, depth, concerns);
                continue;
            }
            add(concerns, base, ports);
        }
    }

    /// The ports that a rule names; none where it names none, or this cannot tell.
    fn ports(&self, chain: &Place, rule: &Rule) -> Option<Ports> {
        let mut names = rule.names.clone();
        let mut is_named = !names.is_empty();
        for set in &rule.sets {
            if let Some(Some(found)) = self.sets.get(&chain.beside(set)) {
                is_named = true;
                names.extend(found.iter().cloned());
            }
        }
        is_named.then_some(Ports::Named(names))
    }
}

/// Adds to what is known of a base chain: one concern each, however many rules.
fn add(concerns: &mut Vec<Concern>, base: &Base, ports: Ports) {
    let Some(known) = concerns.last_mut().filter(|last| last.base == base.place) else {
        concerns.push(Concern { base: base.place.clone(), ports });
        return;
    };
    match (&mut known.ports, ports) {
        (Ports::Every, _) => {}
        (Ports::Named(names), Ports::Named(more)) => names.extend(more),
        (every, Ports::Every) => *every = Ports::Every,
    }
}

/// Decodes any body, for the fuzz target.
#[cfg(any(test, fuzzing))]
pub(crate) fn decode_any(body: &[u8]) {
    let mut ruleset = Ruleset::default();
    ruleset.bases.extend(decode::base(body));
    if let Some((place, rule)) = decode::rule(body) {
        ruleset.sets.insert(place.clone(), decode::elements(body));
        ruleset.rules.entry(place).or_default().push(rule);
    }
    let _ = ruleset.concerns().concerning("vnet0", "virbr0");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str) -> Place {
        Place { family: decode::BRIDGE, table: "filter".into(), name: name.into() }
    }

    fn base(name: &str, drops: bool, devices: &[&str]) -> Base {
        Base { place: place(name), drops, devices: devices.iter().map(|text| exact(text)).collect() }
    }

    fn exact(text: &str) -> Name {
        Name { text: text.into(), is_prefix: false }
    }

    fn rule(names: &[&str], jump: Option<&str>) -> Rule {
        let names = names.iter().map(|text| exact(text)).collect();
        Rule { names, sets: Vec::new(), jump: jump.map(str::to_owned) }
    }

    fn concerned(ruleset: &Ruleset) -> Vec<&'static str> {
        let rules = ruleset.concerns();
        ["vnet0", "vnet1"].into_iter().filter(|port| rules.concerning(port, "virbr0").is_some()).collect()
    }

    fn ruleset(base: Base, rules: &[(&str, Rule)]) -> Ruleset {
        let mut ruleset = Ruleset { bases: vec![base], ..Ruleset::default() };
        for (chain, rule) in rules {
            ruleset.rules.entry(place(chain)).or_default().push(rule.clone());
        }
        ruleset
    }

    #[test]
    fn an_empty_chain_concerns_nobody_unless_it_drops() {
        assert!(concerned(&ruleset(base("FORWARD", false, &[]), &[])).is_empty());
        assert_eq!(concerned(&ruleset(base("FORWARD", true, &[]), &[])), ["vnet0", "vnet1"]);
        assert_eq!(concerned(&ruleset(base("in", true, &["vnet1"]), &[])), ["vnet1"]);
    }

    #[test]
    fn a_rule_concerns_those_it_names_or_everybody() {
        let chain = || base("FORWARD", false, &[]);
        assert_eq!(concerned(&ruleset(chain(), &[("FORWARD", rule(&["vnet0"], None))])), ["vnet0"]);
        assert_eq!(concerned(&ruleset(chain(), &[("FORWARD", rule(&[], None))])), ["vnet0", "vnet1"]);
        assert!(concerned(&ruleset(chain(), &[("FORWARD", rule(&["eth9"], None))])).is_empty());
        assert_eq!(
            concerned(&ruleset(chain(), &[("FORWARD", rule(&["virbr0"], None))])),
            ["vnet0", "vnet1"],
            "a bridge's name concerns its ports"
        );
    }

    #[test]
    fn a_chain_of_a_guest_concerns_the_port_that_the_jump_names() {
        let jump = |target| ("FORWARD", rule(&["vnet0"], Some(target)));
        let rules = [jump("libvirt-I-vnet0"), ("libvirt-I-vnet0", rule(&[], None))];
        assert_eq!(concerned(&ruleset(base("FORWARD", false, &[]), &rules)), ["vnet0"]);
        let rules = [jump("empty")];
        assert!(concerned(&ruleset(base("FORWARD", false, &[]), &rules)).is_empty());
        let rules = [("unused", rule(&[], None))];
        assert!(concerned(&ruleset(base("FORWARD", false, &[]), &rules)).is_empty());
        let circle = [("FORWARD", rule(&[], Some("FORWARD")))];
        assert_eq!(concerned(&ruleset(base("FORWARD", false, &[]), &circle)), ["vnet0", "vnet1"]);
    }

    #[test]
    fn a_set_of_names_concerns_its_members_and_any_other_everybody() {
        let look_up = Rule { sets: vec!["guests".into()], ..Rule::default() };
        let mut ruleset = ruleset(base("FORWARD", false, &[]), &[("FORWARD", look_up)]);
        assert_eq!(ruleset.named_sets(), [place("guests")]);
        ruleset.sets.insert(place("guests"), Some(vec![exact("vnet1")]));
        assert_eq!(concerned(&ruleset), ["vnet1"]);
        ruleset.sets.insert(place("guests"), Some(Vec::new()));
        assert!(concerned(&ruleset).is_empty());
        ruleset.sets.insert(place("guests"), None);
        assert_eq!(concerned(&ruleset), ["vnet0", "vnet1"]);
    }

    #[test]
    fn the_rules_of_a_chain_add_up() {
        let rules = [("FORWARD", rule(&["vnet1"], None)), ("FORWARD", rule(&["eth9"], None))];
        let chain = ruleset(base("FORWARD", false, &[]), &rules);
        assert_eq!((concerned(&chain), chain.concerns().0.len()), (vec!["vnet1"], 1));
        let rules = [("FORWARD", rule(&["eth9"], None)), ("FORWARD", rule(&[], None))];
        assert_eq!(concerned(&ruleset(base("FORWARD", false, &[]), &rules)), ["vnet0", "vnet1"]);
    }

    #[test]
    fn a_port_is_told_where_its_rule_stands() {
        let rules = ruleset(base("FORWARD", true, &[]), &[]).concerns();
        assert_eq!(
            rules.concerning("vnet0", "virbr0").as_deref(),
            Some("nftables rules in chain FORWARD of table bridge filter see their packets")
        );
    }
}
