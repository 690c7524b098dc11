//! Services of the gateway that guests may use whatever the host's INPUT rules say: what is allowed, who answers, and the
//! relay for names where the host's own server cannot.
//!
//! The programs lead such packets in by the loopback (`vmnat_common::service`), where every ruleset lets them in. The
//! kernel looks at their way back there, so the loopback's `rp_filter` must not be strict (`loopback`). Names have a second
//! way: the relay, whose sockets wait in the quiet room (`relay`).

mod forwarders;
mod listing;
pub mod loopback;
mod relay;
mod spec;

use std::net::{Ipv4Addr, SocketAddrV4};

use vmnat_common::{
    Address, Port, Protocol,
    service::{Service, ServiceKey, ServiceWay},
};

pub use self::{
    listing::{ServiceRow, rows, text},
    relay::Relay,
    spec::{Forwarder, ServiceList, ServicePort, dns},
};
use crate::{facts::Facts, plan, state::State};

/// The port that names are asked at.
pub const DNS: u16 = 53;

/// The `SERVICE` map: each allowed service of each address that a bridge has in a network of its guests. Where the
/// loopback `is_strict`, names alone have another way.
#[must_use]
pub fn entries(state: &State, facts: &Facts, is_strict: bool) -> Vec<(ServiceKey, Service)> {
    let mut entries = Vec::new();
    for network in plan::managed(state, facts) {
        let name = facts.name_of(network.bridge);
        let Some(bridge) = state.bridges.iter().find(|bridge| bridge.name == name) else { continue };
        let addresses = facts.addresses_of(network.bridge).map(|fact| fact.address);
        for address in addresses.filter(|address| network.subnet.contains(&Ipv4Addr::from(*address))) {
            entries.extend(bridge.services.iter().map(|service| {
                let ServicePort { protocol, port } = *service;
                let key = ServiceKey::new(network.bridge, address, protocol.number(), Port::new(port));
                (key, way(port, &bridge.dns, is_strict).value())
            }));
        }
    }
    entries
}

/// Who answers at a port.
fn way(port: u16, forwarders: &[SocketAddrV4], is_strict: bool) -> ServiceWay {
    match port {
        DNS if is_strict || !forwarders.is_empty() => ServiceWay::Relay,
        DNS => ServiceWay::HostOrRelay,
        _ => ServiceWay::Host,
    }
}

/// What cannot be served, one sentence each.
#[must_use]
pub fn warnings(entries: &[(ServiceKey, Service)], is_strict: bool) -> Vec<String> {
    let lost = entries.iter().filter(|(_, service)| is_strict && *service == ServiceWay::Host.value());
    let lost: Vec<String> = lost
        .map(|(key, _)| format!("{}/{} at {}", key.port, protocol_name(key.protocol), key.address))
        .collect();
    if lost.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "guests reach {} only where the host's own firewall lets them: rp_filter is strict at lo and cannot be changed; run `sysctl net.ipv4.conf.lo.rp_filter=2`",
        lost.join(", ")
    )]
}

/// The name of a protocol that services have.
#[must_use]
pub fn protocol_name(number: u8) -> &'static str {
    Protocol::from_number(number).map_or("?", Protocol::name)
}

/// The addresses at which the relay waits.
#[must_use]
pub fn relayed(entries: &[(ServiceKey, Service)]) -> Vec<Address> {
    let relayed = entries.iter().filter(|(_, service)| *service != ServiceWay::Host.value());
    let mut addresses: Vec<Address> = relayed.map(|(key, _)| key.address).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        facts::{AddressFact, LinkFact},
        state::{Bridge, HookMode},
    };

    fn host() -> (State, Facts) {
        let mut state = State::new(HookMode::Tcx);
        state.bridges = vec![Bridge::new("virbr0"), Bridge::new("virbr1")];
        let link =
            |index, name: &str| LinkFact { index, name: name.into(), is_bridge: true, ..LinkFact::default() };
        let address = |index, octets| AddressFact {
            index,
            address: Address::new(octets),
            prefix: 24,
            secondary: false,
        };
        let facts = Facts {
            links: vec![link(2, "virbr0"), link(3, "virbr1"), link(4, "docker0")],
            addresses: vec![
                address(2, [192, 168, 122, 1]),
                address(3, [192, 168, 123, 1]),
                address(4, [172, 17, 0, 1]),
            ],
            ..Facts::default()
        };
        (state, facts)
    }

    fn key(bridge: u32, octets: [u8; 4], protocol: Protocol, port: u16) -> ServiceKey {
        ServiceKey::new(bridge, Address::new(octets), protocol.number(), Port::new(port))
    }

    #[test]
    fn names_alone_are_open_at_each_bridges_own_address_unless_told_otherwise() {
        let (mut state, facts) = host();
        let either = ServiceWay::HostOrRelay.value();
        let at = |bridge, octets| {
            [Protocol::Udp, Protocol::Tcp].map(|protocol| (key(bridge, octets, protocol, 53), either))
        };
        let expected = [at(2, [192, 168, 122, 1]), at(3, [192, 168, 123, 1])].concat();
        assert_eq!(entries(&state, &facts, false), expected);
        assert_eq!(relayed(&expected), [[192, 168, 122, 1], [192, 168, 123, 1]].map(Address::new));
        state.bridges[0].services.clear();
        state.bridges[1].services = vec![ServicePort { protocol: Protocol::Tcp, port: 8000 }];
        let expected = [(key(3, [192, 168, 123, 1], Protocol::Tcp, 8000), ServiceWay::Host.value())];
        assert_eq!(entries(&state, &facts, true), expected);
        assert_eq!(relayed(&expected), []);
    }

    #[test]
    fn forwarders_and_a_strict_loopback_leave_names_to_the_relay() {
        assert_eq!(way(53, &[], false), ServiceWay::HostOrRelay);
        assert_eq!(way(53, &[], true), ServiceWay::Relay);
        assert_eq!(way(53, &["9.9.9.9:53".parse().unwrap()], false), ServiceWay::Relay);
        assert_eq!(way(8000, &["9.9.9.9:53".parse().unwrap()], true), ServiceWay::Host);
    }
}
