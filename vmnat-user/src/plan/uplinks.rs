//! Which interfaces are uplinks: those that were named, or that of the default route, followed as it changes.

use std::net::Ipv4Addr;

use vmnat_common::{
    Address, Mac,
    bridge::{BridgePort, BridgePortFlags},
    uplink::{Uplink, UplinkFlags},
};

use super::{Circumstances, Fitness, Plan, fitness, mtu_of};
use crate::{
    facts::{Facts, LinkFact},
    link::Hook,
    state::State,
};

/// Kind of interfaces at which a virtual machine or a VPN lives, as `ip -d link` names it. As a port of a bridge it is a
/// machine's.
const TAP: &str = "tun";

/// The uplinks that exist and can be served.
pub(super) fn uplinks<'a>(state: &State, facts: &'a Facts, warnings: &mut Vec<String>) -> Vec<&'a LinkFact> {
    if state.uplinks.is_empty() {
        let (followed, warning) = followed(state, facts);
        warnings.extend(warning);
        return followed.into_iter().collect();
    }
    let find = |name: &String| match facts.link(name) {
        None => {
            warnings.push(format!("uplink {name} does not exist; vmnat takes it up when it comes"));
            None
        }
        Some(link) if !link.can_be_uplink() => {
            warnings.push(format!(
                "uplink {name} has a link layer that is neither Ethernet nor bare IP: guests cannot use it"
            ));
            None
        }
        Some(link) => Some(link),
    };
    let uplinks: Vec<_> = state.uplinks.iter().filter_map(find).collect();
    if let Some(other) = facts.default_uplink().filter(|other| !state.uplinks.contains(&other.name)) {
        warnings.push(format!(
            "the host's default route leaves by {}, which is no uplink: there the kernel and its firewall decide",
            other.name
        ));
    }
    uplinks
}

/// The interface of the default route, and a warning where it is not that. A route that comes and goes (DHCP,
/// roaming) or moves to where vmnat cannot follow takes no flows with it: the interface that was followed last stays.
#[must_use]
pub fn followed<'a>(state: &State, facts: &'a Facts) -> (Option<&'a LinkFact>, Option<String>) {
    let is_bridge = |name: &str| state.bridges.iter().any(|bridge| bridge.name == name);
    let last = || facts.link(&state.followed).filter(|link| link.can_be_uplink());
    match facts.default_uplink().filter(|link| !is_bridge(&link.name)) {
        None => (last(), Some("there is no default route: guests cannot reach the world".to_owned())),
        Some(link) if !link.can_be_uplink() => {
            let stays =
                last().map_or_else(String::new, |last| format!(", and {} stays the uplink", last.name));
            let warning = format!(
                "the default route leaves by {}, whose link layer is neither Ethernet nor bare IP; there the kernel and its firewall decide{stays}",
                link.name
            );
            (last(), Some(warning))
        }
        found => (found, None),
    }
}

/// The further interfaces that guests must not leave by as they are. Where the default route is followed, it may move to any of them
/// before anybody hears of it, as when a VPN goes down.
pub(super) fn guarded<'a>(state: &State, facts: &'a Facts, uplinks: &[&LinkFact]) -> Vec<&'a LinkFact> {
    if !state.uplinks.is_empty() {
        return Vec::new();
    }
    let is_other = |link: &&LinkFact| {
        link.can_be_uplink()
            && !state.bridges.iter().any(|bridge| bridge.name == link.name)
            && !uplinks.iter().any(|uplink| uplink.index == link.index)
    };
    facts.exits().filter(is_other).collect()
}

/// As which address guests are seen that leave by an uplink: the one that was chosen, or its primary one; none where the uplink does
/// not have it.
#[must_use]
pub fn external_address(state: &State, facts: &Facts, link: &LinkFact) -> Option<Address> {
    match state.externals.get(&link.name) {
        None => facts.primary_address(link.index),
        Some(chosen) => {
            let mut own = facts.addresses_of(link.index).map(|fact| fact.address);
            own.find(|address| Ipv4Addr::from(*address) == *chosen)
        }
    }
}

/// Adds an uplink: its entries, its hooks, and those of its ports where it is a bridge.
pub(super) fn plan_uplink(
    link: &LinkFact,
    state: &State,
    facts: &Facts,
    circumstances: &Circumstances,
    plan: &mut Plan,
) {
    let address = external_address(state, facts, link).unwrap_or(Address::UNSPECIFIED);
    let name = &link.name;
    let bridge = link.master.and_then(|master| facts.link_at(master)).filter(|master| master.is_bridge);
    match bridge {
        Some(bridge) => plan.warnings.push(format!(
            "uplink {name} is a port of bridge {}, which has its packets: name {} as the uplink",
            bridge.name, bridge.name
        )),
        None if address.is_unspecified() && state.externals.contains_key(name) => {
            plan.warnings.push(format!(
                "uplink {name} has lost the address that guests are to be seen as: they cannot use it until it has it again, or `vmnat up --external {name}=primary` chooses another"
            ));
        }
        None if address.is_unspecified() => plan
            .warnings
            .push(format!("uplink {name} has no IPv4 address: guests cannot use it until it gets one")),
        None => {}
    }
    if !link.up {
        plan.warnings.push(format!("uplink {name} is down"));
    }
    let flags = if link.no_ethernet { UplinkFlags::NO_ETHERNET } else { 0 };
    let mac = link.mac.unwrap_or(Mac::ZERO);
    plan.uplink.push((link.index, Uplink { address, mtu: mtu_of(link), mac, flags }));
    plan.gateway.extend(facts.router_behind(link).map(|router| (link.index, router)));
    let [guard, inbound] = Hook::of_uplink(link);
    plan.hooks.push(guard);
    if link.is_bridge {
        plan_ports(link, facts, circumstances, plan);
    }
    // After its ports: what reaches a bridge's hook unmarked then comes from a port that has none.
    plan.hooks.push(inbound);
}

/// The ports of an uplink that is a bridge, before `br_netfilter`. Machines on that very bridge are none of vmnat's, so their taps
/// stay as they are.
fn plan_ports(bridge: &LinkFact, facts: &Facts, circumstances: &Circumstances, plan: &mut Plan) {
    let ports = facts.ports_of(bridge.index).filter(|port| port.kind.as_deref() != Some(TAP));
    for port in ports.filter(|port| matches!(fitness(bridge, port, circumstances), Fitness::Plain)) {
        let entry = BridgePort {
            bridge: bridge.index,
            mac: bridge.mac.unwrap_or(Mac::ZERO),
            mtu: mtu_of(bridge),
            flags: BridgePortFlags::OF_UPLINK,
        };
        plan.bridge_port.push((port.index, entry));
        plan.hooks.push(Hook::of_uplinks_port(&port.name, port.index));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        facts::{Exit, MAIN_TABLE, PORT_FORWARDING, RouteFact},
        state::HookMode,
    };

    fn host() -> (State, Facts) {
        let mut state = State::new(HookMode::Tcx);
        state.followed = "enp3s0".into();
        let ethernet = LinkFact { index: 1, name: "enp3s0".into(), ..LinkFact::default() };
        let tunnel =
            LinkFact { index: 2, name: "wg0".into(), no_ethernet: true, bare: true, ..LinkFact::default() };
        (state, Facts { links: vec![ethernet, tunnel], ..Facts::default() })
    }

    fn default_route(oif: u32) -> RouteFact {
        let destination = "0.0.0.0/0".parse().unwrap();
        RouteFact { destination, oif: Some(oif), gateway: None, metric: 0, table: MAIN_TABLE }
    }

    #[test]
    fn the_followed_uplink_stays_while_there_is_no_default_route() {
        let (state, facts) = host();
        let mut warnings = Vec::new();
        let uplinks = uplinks(&state, &facts, &mut warnings);
        assert_eq!(uplinks.iter().map(|link| link.index).collect::<Vec<_>>(), [1]);
        assert_eq!(warnings.len(), 1);
    }

    #[test]
    fn the_default_route_is_followed_into_a_tunnel_and_out_of_it() {
        let (state, mut facts) = host();
        for index in [2, 1] {
            facts.routes = vec![default_route(index)];
            assert_eq!(followed(&state, &facts), (facts.link_at(index), None));
        }
    }

    #[test]
    fn the_kernels_answer_counts_more_than_the_main_table() {
        let (state, mut facts) = host();
        facts.routes = vec![default_route(1)];
        facts.exit = Exit::By(2);
        assert_eq!(followed(&state, &facts), (facts.link_at(2), None), "a VPN owns the default route");
        facts.exit = Exit::Nowhere;
        assert_eq!(followed(&state, &facts).0, facts.link_at(1), "a kill switch: the last one stays");
        assert!(followed(&state, &facts).1.is_some());
    }

    #[test]
    fn the_followed_uplink_stays_when_the_route_moves_to_where_vmnat_cannot_follow() {
        let (mut state, mut facts) = host();
        facts.routes = vec![default_route(2)];
        facts.links[1].bare = false;
        let (link, warning) = followed(&state, &facts);
        assert_eq!(link.map(|link| link.index), Some(1));
        assert!(warning.unwrap().contains("leaves by wg0, whose link layer is neither Ethernet nor bare IP"));
        state.followed = "wg0".into();
        assert_eq!(followed(&state, &facts).0, None);
    }

    #[test]
    fn every_exit_is_guarded_while_the_default_route_is_followed() {
        let (mut state, mut facts) = host();
        let vpn = RouteFact { table: 51820, ..default_route(2) };
        facts.routes = vec![default_route(1), vpn];
        facts.exit = Exit::By(2);
        assert_eq!(guarded(&state, &facts, &[&facts.links[1]]), [&facts.links[0]]);
        state.uplinks = vec!["wg0".into()];
        assert!(guarded(&state, &facts, &[&facts.links[1]]).is_empty());
    }

    #[test]
    fn a_named_uplink_that_cannot_be_served_is_a_warning() {
        let (mut state, mut facts) = host();
        facts.links[1].bare = false;
        state.uplinks = vec!["wg0".into(), "enp3s0".into(), "gone".into()];
        let mut warnings = Vec::new();
        assert_eq!(uplinks(&state, &facts, &mut warnings), [&facts.links[0]]);
        assert_eq!(warnings.len(), 2, "{warnings:?}");
    }

    #[test]
    fn a_bridge_as_uplink_is_hooked_at_its_ports_but_for_taps() {
        let (state, mut facts) = host();
        let port = |index, name: &str, kind: Option<&str>| LinkFact {
            index,
            name: name.into(),
            master: Some(1),
            kind: kind.map(str::to_owned),
            port_state: Some(PORT_FORWARDING),
            ..LinkFact::default()
        };
        facts.links[0] = LinkFact { is_bridge: true, name: "br0".into(), up: true, ..facts.links[0].clone() };
        facts.links.extend([port(3, "enp3s0", None), port(4, "vnet0", Some(TAP))]);
        facts.routes = vec![default_route(1)];
        let plan = super::super::plan(&state, &facts, &Circumstances::default()).unwrap();
        let hooks: Vec<String> = plan.hooks.iter().map(ToString::to_string).collect();
        assert_eq!(
            hooks,
            [
                "guard at egress of br0",
                "inbound_port at ingress of enp3s0",
                "inbound_bridge at ingress of br0"
            ]
        );
        assert_eq!(plan.bridge_port.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [3]);
    }
}
