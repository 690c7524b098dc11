//! The plan: what maps and hooks must hold, from the wish and one picture of the namespace. No I/O.

mod forwards;
mod uplinks;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;
use vmnat_common::{
    Address, Mac,
    bridge::{BridgePort, BridgePortFlags},
    forward::{Forward, SourceKey},
    network::{Network, NetworkKey},
    service::{Service, ServiceKey},
    uplink::Uplink,
};

pub use self::uplinks::{external_address, followed};
use crate::{
    access::{self, Compiled},
    error::Error,
    facts::{Facts, LinkFact, PORT_FORWARDING},
    link::Hook,
    room, services,
    state::{Filtering, State},
};

/// State of a bridge port that is down or has no carrier (`BR_STATE_DISABLED`).
const PORT_DISABLED: u8 = 0;

/// What maps and hooks must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Index and name of each bridge that exists.
    pub bridges: Vec<(u32, String)>,
    /// Index and name of each uplink that exists.
    pub uplinks: Vec<(u32, String)>,
    /// The `NETWORK` map.
    pub network: Vec<(NetworkKey, Network)>,
    /// The `UNTRANSLATED` map's keys.
    pub untranslated: Vec<NetworkKey>,
    /// The access lists.
    pub access: Compiled,
    /// The `BRIDGE_PORT` map.
    pub bridge_port: Vec<(u32, BridgePort)>,
    /// The `UPLINK` map.
    pub uplink: Vec<(u32, Uplink)>,
    /// The `SERVICE` map.
    pub service: Vec<(ServiceKey, Service)>,
    /// The `GATEWAY` map.
    pub gateway: Vec<(u32, Address)>,
    /// The port forwards, in the order of their first endpoints, none over another.
    pub forward: Vec<Forward>,
    /// The `FORWARD_SOURCE` map's keys.
    pub forward_source: Vec<SourceKey>,
    /// The host's ends of the quiet room, if there is one.
    pub room: Option<room::Ends>,
    /// Hooks in the order in which they are attached.
    pub hooks: Vec<Hook>,
    /// What cannot be done, or not as fast, one sentence each.
    pub warnings: Vec<String>,
}

impl Plan {
    /// The network that an address is in.
    #[must_use]
    pub fn network_of(&self, address: Ipv4Addr) -> Option<&Network> {
        let is_inside = |key: &NetworkKey| {
            let prefix = u8::try_from(key.prefix).unwrap_or(32);
            Ipv4Net::new(key.address.into(), prefix).is_ok_and(|network| network.contains(&address))
        };
        self.network.iter().find(|(key, _)| is_inside(key)).map(|(_, network)| network)
    }

    /// True for a bridge whose guests may use the addresses alone that were given to them.
    #[must_use]
    pub fn is_strict(&self, bridge: u32) -> bool {
        let mut entries = self.bridge_port.iter().filter(|(index, _)| *index == bridge);
        entries.any(|(_, entry)| entry.flags & BridgePortFlags::STRICT != 0)
    }
}

/// What the plan needs beside wish and picture.
#[derive(Clone, Debug, Default)]
pub struct Circumstances {
    /// Ports that have something of the operator's behind their hook, and what it is, as a clause.
    pub obstructed: HashMap<u32, String>,
    /// Bridges from which the host forwarded nothing before.
    pub closed: HashSet<u32>,
    /// The host's ends of the quiet room.
    pub room: Option<room::Ends>,
    /// The loopback lets in nothing of guests.
    pub loopback_is_strict: bool,
}

/// A network and the bridge it is behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedNetwork {
    /// The subnet.
    pub subnet: Ipv4Net,
    /// Index of the bridge.
    pub bridge: u32,
    /// The host's address in it.
    pub gateway: Address,
    /// Who may answer to the mappings of its guests.
    pub filtering: Filtering,
}

/// Makes the plan. What does not exist yet is a warning.
///
/// # Errors
/// [`Error::Overlap`] when two networks share addresses, or a network and an uplink's own subnet; [`Error::Unfit`] for access lists
/// that are too long.
pub fn plan(state: &State, facts: &Facts, circumstances: &Circumstances) -> Result<Plan, Error> {
    let mut plan = Plan::default();
    let uplinks = uplinks::uplinks(state, facts, &mut plan.warnings);
    let bridges = bridges(state, facts, &mut plan.warnings);
    let networks = networks(state, facts, &bridges);
    check_overlaps(&networks, &uplinks, facts)?;
    for uplink in &uplinks {
        uplinks::plan_uplink(uplink, state, facts, circumstances, &mut plan);
    }
    let guarded = uplinks::guarded(state, facts, &uplinks);
    plan.hooks.extend(guarded.into_iter().map(Hook::guard));
    plan.bridges = bridges.iter().map(|link| (link.index, link.name.clone())).collect();
    plan.access = access::compile(&state.access, &plan.bridges, &networks)?;
    for bridge in &bridges {
        plan_bridge(bridge, state, facts, circumstances, &mut plan);
        if !networks.iter().any(|network| network.bridge == bridge.index) {
            plan.warnings.push(format!("bridge {} has no IPv4 subnet: its guests get nothing", bridge.name));
        }
    }
    plan.network = networks.iter().map(entry_of).collect();
    plan.untranslated = state.untranslated.iter().copied().map(key_of).collect();
    plan.service = services::entries(state, facts, circumstances.loopback_is_strict);
    forwards::plan_forwards(state, facts, &networks, &uplinks, &mut plan);
    plan.room.clone_from(&circumstances.room);
    plan.hooks.extend(plan.room.iter().flat_map(room::Ends::hooks));
    plan.uplinks = uplinks.iter().map(|link| (link.index, link.name.clone())).collect();
    Ok(plan)
}

fn bridges<'a>(state: &State, facts: &'a Facts, warnings: &mut Vec<String>) -> Vec<&'a LinkFact> {
    let find = |name: &str| {
        let found = facts.link(name).filter(|link| link.is_bridge);
        if found.is_none() {
            warnings.push(format!("bridge {name} does not exist; vmnat takes it up when it comes"));
        }
        found
    };
    state.bridges.iter().filter_map(|bridge| bridge.name.as_str().into()).filter_map(find).collect()
}

/// The uplinks that exist and can be served.
#[must_use]
pub fn uplinks<'a>(state: &State, facts: &'a Facts) -> Vec<&'a LinkFact> {
    uplinks::uplinks(state, facts, &mut Vec::new())
}

/// True while an uplink that was named, or the one that was followed last, does not exist or has no address.
#[must_use]
pub fn lacks_uplink(state: &State, facts: &Facts) -> bool {
    let followed = (state.uplinks.is_empty() && !state.followed.is_empty()).then_some(&state.followed);
    let lacks = |link: &LinkFact| facts.addresses_of(link.index).next().is_none();
    state.uplinks.iter().chain(followed).any(|name| facts.link(name).is_none_or(lacks))
}

/// The networks of every bridge that exists.
#[must_use]
pub fn managed(state: &State, facts: &Facts) -> Vec<PlannedNetwork> {
    networks(state, facts, &bridges(state, facts, &mut Vec::new()))
}

/// The networks of the given bridges: those that were named, or the bridge's own subnets.
#[must_use]
pub fn networks(state: &State, facts: &Facts, bridges: &[&LinkFact]) -> Vec<PlannedNetwork> {
    let mut networks = Vec::new();
    for link in bridges {
        let named = state.bridges.iter().find(|bridge| bridge.name == link.name);
        let filtering = named.map(|bridge| bridge.filtering).unwrap_or_default();
        let named = named.map(|bridge| bridge.networks.clone()).unwrap_or_default();
        let own = || facts.addresses_of(link.index).map(crate::facts::AddressFact::network);
        let mut subnets: Vec<Ipv4Net> = if named.is_empty() { own().collect() } else { named };
        // A host address alone makes no network.
        subnets.retain(|subnet| subnet.prefix_len() < 32);
        subnets.sort_unstable();
        subnets.dedup();
        networks.extend(subnets.into_iter().map(|subnet| {
            let inside =
                facts.addresses_of(link.index).find(|fact| subnet.contains(&Ipv4Addr::from(fact.address)));
            let gateway = inside.map_or(Address::UNSPECIFIED, |fact| fact.address);
            PlannedNetwork { subnet, bridge: link.index, gateway, filtering }
        }));
    }
    networks
}

fn check_overlaps(networks: &[PlannedNetwork], uplinks: &[&LinkFact], facts: &Facts) -> Result<(), Error> {
    let mut seen: Vec<(Ipv4Net, String)> = Vec::new();
    for uplink in uplinks {
        let own = facts.addresses_of(uplink.index).filter(|fact| fact.prefix < 32);
        seen.extend(own.map(|fact| (fact.network(), format!("uplink {}", uplink.name))));
    }
    for network in networks {
        let place = format!("bridge {}", facts.name_of(network.bridge));
        if let Some((other, holder)) = seen.iter().find(|(other, _)| overlap(network.subnet, *other)) {
            return Err(Error::Overlap {
                one: network.subnet,
                one_where: place,
                other: *other,
                other_where: holder.clone(),
            });
        }
        seen.push((network.subnet, place));
    }
    Ok(())
}

/// True when two subnets share an address: of two prefixes, one then holds the other.
fn overlap(one: Ipv4Net, other: Ipv4Net) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}

fn plan_bridge(
    bridge: &LinkFact,
    state: &State,
    facts: &Facts,
    circumstances: &Circumstances,
    plan: &mut Plan,
) {
    let closed = circumstances.closed.contains(&bridge.index);
    let closed = if closed { BridgePortFlags::HOST_DID_NOT_FORWARD } else { 0 };
    let wish = state.bridges.iter().find(|wish| wish.name == bridge.name);
    let strict = if wish.is_some_and(|wish| wish.strict_leases) { BridgePortFlags::STRICT } else { 0 };
    let access = if plan.access.concerns(bridge.index) { BridgePortFlags::ACCESS } else { 0 };
    let entry = |flags| BridgePort {
        bridge: bridge.index,
        mac: bridge.mac.unwrap_or(Mac::ZERO),
        mtu: mtu_of(bridge),
        flags: flags | closed | strict | access,
    };
    plan.bridge_port.push((bridge.index, entry(BridgePortFlags::IS_BRIDGE)));
    let mut special: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for port in facts.ports_of(bridge.index) {
        match fitness(bridge, port, circumstances) {
            Fitness::Plain => {
                plan.bridge_port.push((port.index, entry(BridgePortFlags::DIRECT)));
                plan.hooks.push(Hook::of_port(&port.name, port.index));
            }
            Fitness::Down => plan.bridge_port.push((port.index, entry(0))),
            Fitness::Special(why) => {
                plan.bridge_port.push((port.index, entry(0)));
                special.entry(why).or_default().push(&port.name);
            }
        }
    }
    for (why, ports) in special {
        let ports = match ports[..] {
            [port] => format!("port {port} of {} uses the slower hook of its", bridge.name),
            _ => format!("ports {} of {} use the slower hook of their", ports.join(", "), bridge.name),
        };
        // Frames from one such port to another meet no program.
        let strict =
            if strict == 0 { "" } else { "; strict leases hold towards the host and the world alone" };
        plan.warnings.push(format!("{ports} bridge: {why}{strict}"));
    }
    // After its ports: what reaches the bridge's hook unmarked then comes from a port that has none.
    plan.hooks.push(Hook::of_bridge(&bridge.name, bridge.index));
}

/// Whether a port gets a hook of its own.
enum Fitness {
    /// It forwards, and nothing of the operator's lives behind its hook.
    Plain,
    /// It is down; no packet can come.
    Down,
    /// It relies on the hook of its bridge, and why.
    Special(String),
}

fn fitness(bridge: &LinkFact, port: &LinkFact, circumstances: &Circumstances) -> Fitness {
    if bridge.vlan_filtering {
        return Fitness::Special("the bridge filters VLANs".to_owned());
    }
    if port.isolated {
        return Fitness::Special("the port is isolated".to_owned());
    }
    if let Some(what) = circumstances.obstructed.get(&port.index) {
        return Fitness::Special(what.clone());
    }
    match port.port_state {
        Some(PORT_FORWARDING) => Fitness::Plain,
        None | Some(PORT_DISABLED) => Fitness::Down,
        Some(_) => Fitness::Special("spanning tree does not let it forward".to_owned()),
    }
}

fn entry_of(network: &PlannedNetwork) -> (NetworkKey, Network) {
    let PlannedNetwork { subnet, bridge, gateway, filtering } = *network;
    (key_of(subnet), Network { bridge, gateway, flags: filtering.flags() })
}

fn key_of(subnet: Ipv4Net) -> NetworkKey {
    NetworkKey { prefix: u32::from(subnet.prefix_len()), address: subnet.network().into() }
}

fn mtu_of(link: &LinkFact) -> u16 {
    u16::try_from(link.mtu).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests;
