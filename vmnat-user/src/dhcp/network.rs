//! What is given to the guests of a bridge: from libvirt's network, or from `--dhcp`.

use std::{net::Ipv4Addr, path::PathBuf};

use ipnet::Ipv4Net;
use vmnat_common::Mac;

use super::{
    libvirt::{self, LibvirtNetwork, StaticLease},
    spec::{DhcpRange, DhcpWish, LEASE},
};
use crate::{
    facts::Facts,
    leases::{self, LeaseFact},
    plan::{self, PlannedNetwork},
    services::DNS,
    state::{Binding, Bridge, State},
};

/// A network whose guests are given addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Index of the bridge.
    pub index: u32,
    /// Name of the bridge.
    pub bridge: String,
    /// The bridge's MAC.
    pub mac: Mac,
    /// The subnet.
    pub subnet: Ipv4Net,
    /// The host's address in it: server, and the guests' router.
    pub gateway: Ipv4Addr,
    /// Addresses to give.
    pub ranges: Vec<DhcpRange>,
    /// Addresses that single guests always get.
    pub hosts: Vec<StaticLease>,
    /// Resolvers.
    pub dns: Vec<Ipv4Addr>,
    /// The guests' domain.
    pub domain: Option<String>,
    /// Largest packet, where guests should not assume the usual.
    pub mtu: Option<u16>,
    /// Routes beside the default one, and their routers.
    pub routes: Vec<(Ipv4Net, Ipv4Addr)>,
    /// Lease files of other servers, whose leases are kept to.
    pub files: Vec<PathBuf>,
}

impl Network {
    /// The range that an address is of.
    #[must_use]
    pub fn range_of(&self, address: Ipv4Addr) -> Option<&DhcpRange> {
        self.ranges.iter().find(|range| range.contains(address))
    }

    /// Seconds of a lease of that address.
    #[must_use]
    pub fn lease(&self, address: Ipv4Addr) -> u32 {
        self.range_of(address).or(self.ranges.first()).map_or(LEASE, |range| range.lease)
    }

    /// True for an address that may be a guest's.
    #[must_use]
    pub fn may_be_given(&self, address: Ipv4Addr) -> bool {
        self.subnet.contains(&address)
            && address != self.gateway
            && address != self.subnet.network()
            && address != self.subnet.broadcast()
    }
}

/// The networks that are served.
#[must_use]
pub fn networks(state: &State, facts: &Facts) -> Vec<Network> {
    let planned = plan::managed(state, facts);
    state.bridges.iter().filter_map(|bridge| network(state, facts, &planned, bridge)).collect()
}

fn network(state: &State, facts: &Facts, planned: &[PlannedNetwork], bridge: &Bridge) -> Option<Network> {
    let link = facts.link(&bridge.name).filter(|link| link.is_bridge && link.up)?;
    let said = match &bridge.dhcp {
        DhcpWish::None => return None,
        DhcpWish::Auto => libvirt::network_of(&bridge.name).filter(|network| network.has_dhcp)?,
        DhcpWish::Range(range) => {
            let said = libvirt::network_of(&bridge.name).unwrap_or_default();
            LibvirtNetwork { ranges: vec![*range], ..said }
        }
    };
    let mut own = planned.iter().filter(|network| network.bridge == link.index);
    let place = |network: &&PlannedNetwork| {
        let has = |address: Ipv4Addr| network.subnet.contains(&address);
        let first = said.ranges.first().map(|range| range.first);
        let first = first.or_else(|| said.hosts.first().map(|host| host.address));
        !network.gateway.is_unspecified() && first.is_some_and(has)
    };
    let PlannedNetwork { subnet, gateway, .. } = *own.find(place)?;
    let gateway = Ipv4Addr::from(gateway);
    let is_inside = |range: &DhcpRange| subnet.contains(&range.first) && subnet.contains(&range.last);
    // What the operator has bound goes before what libvirt says.
    let bound = state.bindings.iter().filter_map(Binding::fact);
    let bound = bound.map(|LeaseFact { address, mac, name, .. }| StaticLease { mac, name, address });
    Some(Network {
        index: link.index,
        bridge: bridge.name.clone(),
        mac: link.mac?,
        subnet,
        gateway,
        ranges: said.ranges.into_iter().filter(is_inside).collect(),
        hosts: bound.chain(said.hosts).filter(|host| subnet.contains(&host.address)).collect(),
        dns: resolvers(bridge, gateway),
        domain: said.domain,
        routes: said.routes,
        mtu: said.mtu.or_else(|| smaller_uplink(state, facts, link.mtu)),
        files: leases::files(state).into_iter().filter(|file| *file != state.dhcp_leases).collect(),
    })
}

/// The gateway, where it answers for names; else those that were named.
fn resolvers(bridge: &Bridge, gateway: Ipv4Addr) -> Vec<Ipv4Addr> {
    let is_open = bridge.services.iter().any(|service| service.port == DNS);
    if is_open || bridge.dns.is_empty() {
        return vec![gateway];
    }
    bridge.dns.iter().map(|resolver| *resolver.ip()).filter(|address| !address.is_loopback()).collect()
}

/// The MTU of the smallest uplink, where the bridge's is larger: guests then need no help to find it.
fn smaller_uplink(state: &State, facts: &Facts, mtu: u32) -> Option<u16> {
    let uplinks = plan::uplinks(state, facts);
    let smallest = uplinks.iter().map(|uplink| uplink.mtu).min()?;
    u16::try_from(smallest).ok().filter(|smallest| u32::from(*smallest) < mtu && *smallest >= 576)
}
