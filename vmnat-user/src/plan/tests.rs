//! What the plan is for hosts of all kinds.

use super::*;
use crate::{
    facts::AddressFact,
    state::{Bridge, HookMode},
};

fn link(index: u32, name: &str) -> LinkFact {
    LinkFact { index, name: name.into(), mtu: 1500, up: true, ..LinkFact::default() }
}

pub(super) fn host() -> (State, Facts) {
    let mut state = State::new(HookMode::Tcx);
    state.bridges.push(Bridge::new("virbr0"));
    state.uplinks.push("enp3s0".into());
    let bridge = LinkFact { is_bridge: true, ..link(2, "virbr0") };
    let port = LinkFact { master: Some(2), port_state: Some(PORT_FORWARDING), ..link(3, "vnet0") };
    let address =
        |index, a, prefix| AddressFact { index, address: Address::new(a), prefix, secondary: false };
    let facts = Facts {
        links: vec![link(1, "enp3s0"), bridge, port],
        addresses: vec![address(1, [198, 51, 100, 2], 24), address(2, [192, 168, 122, 1], 24)],
        ..Facts::default()
    };
    (state, facts)
}

#[test]
fn a_plain_host_is_hooked_uplink_first_and_bridge_last() {
    let (state, facts) = host();
    let plan = plan(&state, &facts, &Circumstances::default()).unwrap();
    let hooks: Vec<String> = plan.hooks.iter().map(ToString::to_string).collect();
    assert_eq!(
        hooks,
        [
            "guard at egress of enp3s0",
            "inbound at ingress of enp3s0",
            "outbound_port at ingress of vnet0",
            "outbound_bridge at ingress of virbr0"
        ]
    );
    assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
    assert_eq!(plan.network[0].1.gateway, Address::new([192, 168, 122, 1]));
}

#[test]
fn a_network_has_the_filtering_of_its_bridge() {
    let (mut state, facts) = host();
    for filtering in [Filtering::EndpointIndependent, Filtering::AddressAndPortDependent] {
        state.bridges[0].filtering = filtering;
        let plan = plan(&state, &facts, &Circumstances::default()).unwrap();
        assert_eq!(plan.network[0].1.flags, filtering.flags());
    }
}

#[test]
fn a_port_that_is_not_plain_relies_on_the_bridge() {
    let (state, mut facts) = host();
    facts.links[2].isolated = true;
    let plan = plan(&state, &facts, &Circumstances::default()).unwrap();
    assert_eq!(plan.hooks.len(), 3);
    assert_eq!(plan.bridge_port[1].1.flags & BridgePortFlags::DIRECT, 0);
    assert_eq!(plan.warnings.len(), 1);
}

#[test]
fn ports_with_one_reason_share_a_warning() {
    let (state, mut facts) = host();
    facts.links.push(LinkFact { index: 4, name: "vnet1".into(), ..facts.links[2].clone() });
    let rules = "rules see its packets".to_owned();
    let mut circumstances = Circumstances::default();
    circumstances.obstructed.extend([(3, rules.clone()), (4, rules)]);
    let plan = plan(&state, &facts, &circumstances).unwrap();
    assert_eq!(
        plan.warnings,
        ["ports vnet0, vnet1 of virbr0 use the slower hook of their bridge: rules see its packets"]
    );
    assert_eq!(plan.hooks.len(), 3);
}

#[test]
fn a_closed_host_is_marked_on_bridge_and_ports() {
    let (state, facts) = host();
    let circumstances = Circumstances { closed: HashSet::from([2]), ..Circumstances::default() };
    let plan = plan(&state, &facts, &circumstances).unwrap();
    assert!(plan.bridge_port.iter().all(|(_, port)| port.flags & BridgePortFlags::HOST_DID_NOT_FORWARD != 0));
}

#[test]
fn networks_that_overlap_are_refused() {
    let (mut state, facts) = host();
    for (network, overlaps) in [("198.51.0.0/16", true), ("198.51.100.128/25", true), ("10.0.0.0/8", false)] {
        state.bridges[0].networks = vec![network.parse().unwrap()];
        let result = plan(&state, &facts, &Circumstances::default());
        assert_eq!(matches!(result, Err(Error::Overlap { .. })), overlaps, "{network}");
    }
    state.bridges[0].networks = vec!["10.0.0.0/8".parse().unwrap(), "10.1.0.0/16".parse().unwrap()];
    assert!(plan(&state, &facts, &Circumstances::default()).is_err());
}

#[test]
fn what_is_missing_is_a_warning() {
    let (mut state, facts) = host();
    state.bridges.push(Bridge::new("virbr9"));
    state.uplinks = Vec::new();
    let plan = plan(&state, &facts, &Circumstances::default()).unwrap();
    assert_eq!(plan.warnings.len(), 2);
    assert!(plan.uplink.is_empty());
}
