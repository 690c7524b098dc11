//! A sound host on which tests and the fuzz target put rules.

use std::collections::BTreeMap;

use vmnat_common::Address;

use super::{
    facts::{Facts, More, Subject},
    ruleset::{Raw, Ruleset},
};
use crate::facts::{AddressFact, LinkFact, RouteFact};

/// The index that virbr0 had where the rules of libvirt's nftables backend were recorded: they name it by that.
const LIBVIRT_BRIDGE: u32 = 7;

fn link(index: u32, name: &str, kind: &str, master: Option<u32>) -> LinkFact {
    LinkFact {
        index,
        name: name.into(),
        mtu: 1500,
        up: true,
        master,
        kind: Some(kind.into()),
        is_bridge: kind == "bridge",
        port_state: master.map(|_| 3),
        ..LinkFact::default()
    }
}

/// A sound host with a bridge, a guest, an uplink, and these rules.
pub(in crate::doctor) fn host(rules: &[u8]) -> Facts {
    let raw = Raw::of(rules);
    let network = ipnet::Ipv4Net::new_assert([192, 168, 122, 0].into(), 24);
    let mut facts = Facts { rules: Ruleset::decode(&raw), raw, ..Facts::default() };
    let (uplink, bridge) = (link(2, "enp3s0", "veth", None), link(LIBVIRT_BRIDGE, "virbr0", "bridge", None));
    facts.net.links = vec![uplink.clone(), link(3, "vnet1", "veth", Some(LIBVIRT_BRIDGE)), bridge.clone()];
    let address = |index, octets: [u8; 4]| AddressFact {
        index,
        address: Address::new(octets),
        prefix: 24,
        secondary: false,
    };
    facts.net.addresses = vec![address(2, [203, 0, 113, 2]), address(LIBVIRT_BRIDGE, [192, 168, 122, 1])];
    facts.net.routes = vec![RouteFact {
        destination: ipnet::Ipv4Net::default(),
        oif: Some(2),
        gateway: Some(Address::new([203, 0, 113, 1])),
        metric: 0,
        table: crate::facts::MAIN_TABLE,
    }];
    facts.more = BTreeMap::from([(3, More { has_far_end: true, ..More::default() })]);
    facts.settings = BTreeMap::from([("net/ipv4/ip_forward".into(), "1".into())]);
    facts.subjects =
        vec![Subject { networks: vec![(network, [192, 168, 122, 1])], uplink: Some(uplink), bridge }];
    facts
}
