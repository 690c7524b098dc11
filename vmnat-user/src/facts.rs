//! Interface facts: what the network namespace of the calling thread looks like, by netlink.
//!
//! Never by `/sys`, which shows the namespace of whoever mounted it. [`gather()`] takes one picture; [`Watch`] says
//! that it is out of date. Both are of the namespace in which their sockets were opened.

mod filters;
mod gather;
mod port_rules;
mod watch;

use ipnet::Ipv4Net;
use vmnat_common::{Address, Mac};

#[cfg(any(test, fuzzing))]
pub(crate) use self::{filters::decode_any as decode_filters, port_rules::decode_any as decode_port_rules};
pub use self::{
    filters::{Filter, filters, has_clsact, has_plain_ingress},
    gather::gather,
    port_rules::{PortRules, port_rules},
    watch::{Changes, Watch},
};

/// The main routing table (`RT_TABLE_MAIN`).
pub const MAIN_TABLE: u32 = 254;

/// State of a bridge port that forwards (`BR_STATE_FORWARDING`).
pub const PORT_FORWARDING: u8 = 3;

/// One picture of the namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Interfaces, by index.
    pub links: Vec<LinkFact>,
    /// IPv4 addresses, in the kernel's order: of one interface and subnet the primary comes first.
    pub addresses: Vec<AddressFact>,
    /// IPv4 unicast routes of every table, one a next hop; dead ones are left out.
    pub routes: Vec<RouteFact>,
    /// IPv4 neighbours.
    pub neighbours: Vec<NeighbourFact>,
    /// Forwarding tables of bridges.
    pub fdb: Vec<FdbFact>,
    /// Where the host itself would leave for the world.
    pub exit: Exit,
}

/// The kernel's own answer to where the world is: policy rules, split default routes and VPNs that own the default route included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Exit {
    /// Nobody asked: the main table's default route counts.
    #[default]
    Unasked,
    /// Nowhere: there is no route, or one that forbids it.
    Nowhere,
    /// By the interface of this index.
    By(u32),
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts, not a state machine")]
pub struct LinkFact {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// MAC; none where the link layer has no 48-bit address.
    pub mac: Option<Mac>,
    /// Largest IP packet, bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Index of the bridge (or bond, or VRF) it belongs to.
    pub master: Option<u32>,
    /// Kind as `ip -d link` names it: `bridge`, `veth`, `tun`; none for hardware.
    pub kind: Option<String>,
    /// It is a bridge.
    pub is_bridge: bool,
    /// It is a bridge that filters VLANs.
    pub vlan_filtering: bool,
    /// STP state, of a bridge's port.
    pub port_state: Option<u8>,
    /// It is a bridge's port that may not talk to other isolated ports.
    pub isolated: bool,
    /// Its link layer is not Ethernet (`ARPHRD`).
    pub no_ethernet: bool,
    /// It carries bare IP packets (tun, `WireGuard`, ppp, ipip).
    pub bare: bool,
    /// It is the loopback interface.
    pub loopback: bool,
}

/// An IPv4 address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressFact {
    /// Interface index.
    pub index: u32,
    /// The interface's own address.
    pub address: Address,
    /// Bits of its subnet's prefix.
    pub prefix: u8,
    /// It is not the first of its subnet.
    pub secondary: bool,
}

impl LinkFact {
    /// True where vmnat can serve it as an uplink: with an Ethernet header, or with none at all.
    #[must_use]
    pub const fn can_be_uplink(&self) -> bool {
        !self.loopback && (!self.no_ethernet || self.bare)
    }
}

impl AddressFact {
    /// The subnet.
    #[must_use]
    pub fn network(&self) -> Ipv4Net {
        Ipv4Net::new_assert(self.address.into(), self.prefix.min(32)).trunc()
    }
}

/// An IPv4 unicast route, by one of its next hops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteFact {
    /// Destination; 0.0.0.0/0 is a default route.
    pub destination: Ipv4Net,
    /// Index of the interface it leaves by.
    pub oif: Option<u32>,
    /// The router, unless the destination is on the link.
    pub gateway: Option<Address>,
    /// Metric: the lowest wins.
    pub metric: u32,
    /// Routing table.
    pub table: u32,
}

impl RouteFact {
    /// True for a default route.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.destination.prefix_len() == 0
    }
}

/// An entry of the neighbour (ARP) table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighbourFact {
    /// Interface index.
    pub index: u32,
    /// The neighbour's address.
    pub address: Address,
    /// Its MAC, where known.
    pub mac: Option<Mac>,
    /// The kernel would send to that MAC without asking first.
    pub usable: bool,
}

/// An entry of a bridge's forwarding table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdbFact {
    /// Index of the port behind which the MAC is.
    pub port: u32,
    /// The MAC.
    pub mac: Mac,
    /// Index of the bridge.
    pub bridge: u32,
    /// The MAC is the port's or the bridge's own.
    pub local: bool,
}

/// The name of an interface of the calling thread's network namespace, or `if7` when there is none of that index.
#[must_use]
pub fn interface_name(index: u32) -> String {
    let name = nix::net::if_::if_indextoname(index).ok();
    name.map_or_else(|| format!("if{index}"), |name| name.to_string_lossy().into_owned())
}

impl Facts {
    /// The interface of that name.
    #[must_use]
    pub fn link(&self, name: &str) -> Option<&LinkFact> {
        self.links.iter().find(|link| link.name == name)
    }

    /// The interface of that index.
    #[must_use]
    pub fn link_at(&self, index: u32) -> Option<&LinkFact> {
        self.links.iter().find(|link| link.index == index)
    }

    /// The name of an interface, or `if7` when it is gone.
    #[must_use]
    pub fn name_of(&self, index: u32) -> String {
        self.link_at(index).map_or_else(|| format!("if{index}"), |link| link.name.clone())
    }

    /// The ports of a bridge.
    pub fn ports_of(&self, bridge: u32) -> impl Iterator<Item = &LinkFact> {
        self.links.iter().filter(move |link| link.master == Some(bridge))
    }

    /// The default route that wins: of the main table, with the lowest metric; the first of equals.
    #[must_use]
    pub fn default_route(&self) -> Option<&RouteFact> {
        let defaults = self.routes.iter().filter(|route| route.table == MAIN_TABLE && route.is_default());
        defaults.filter(|route| route.oif.is_some()).min_by_key(|route| route.metric)
    }

    /// The interface by which the host leaves for the world.
    #[must_use]
    pub fn default_uplink(&self) -> Option<&LinkFact> {
        match self.exit {
            Exit::Unasked => self.link_at(self.default_route()?.oif?),
            Exit::Nowhere => None,
            Exit::By(index) => self.link_at(index),
        }
    }

    /// The interfaces to which some default route leads, of whatever table; half of the addresses is as good as a default route,
    /// since VPNs write two halves.
    pub fn exits(&self) -> impl Iterator<Item = &LinkFact> {
        let leads = |link: &LinkFact| {
            let mut routes = self.routes.iter().filter(|route| route.destination.prefix_len() <= 1);
            routes.any(|route| route.oif == Some(link.index))
        };
        self.links.iter().filter(move |link| leads(link))
    }

    /// The router behind an interface: of its default route, the main table's before all others. Unspecified where the link has
    /// but one other end; none where there is no telling.
    #[must_use]
    pub fn router_behind(&self, link: &LinkFact) -> Option<Address> {
        let defaults = self.routes.iter().filter(|route| route.is_default() && route.oif == Some(link.index));
        let best =
            defaults.min_by_key(|route| (route.gateway.is_none(), route.table != MAIN_TABLE, route.metric));
        let router = best.and_then(|route| route.gateway);
        if link.bare { Some(router.unwrap_or(Address::UNSPECIFIED)) } else { router }
    }

    /// The addresses of an interface.
    pub fn addresses_of(&self, index: u32) -> impl Iterator<Item = &AddressFact> {
        self.addresses.iter().filter(move |address| address.index == index)
    }

    /// The address by which an interface talks to the world: its first primary one, and one that routers
    /// forward before one that stays on the link.
    #[must_use]
    pub fn primary_address(&self, index: u32) -> Option<Address> {
        let primaries = self.addresses_of(index).filter(|fact| !fact.secondary).map(|fact| fact.address);
        primaries.min_by_key(|address| address.is_link_local())
    }

    /// The MAC that the neighbour table has for an address behind an interface.
    #[must_use]
    pub fn neighbour(&self, index: u32, address: Address) -> Option<Mac> {
        let mut found = self.neighbours.iter().filter(|fact| fact.index == index && fact.address == address);
        found.find(|fact| fact.usable)?.mac
    }

    /// The port of a bridge behind which a MAC is, unless it is the host's own.
    #[must_use]
    pub fn port_behind(&self, bridge: u32, mac: Mac) -> Option<u32> {
        let mut found = self.fdb.iter().filter(|fact| fact.bridge == bridge && fact.mac == mac);
        found.find(|fact| !fact.local && fact.port != bridge).map(|fact| fact.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(destination: &str, oif: u32, metric: u32, table: u32) -> RouteFact {
        RouteFact { destination: destination.parse().unwrap(), oif: Some(oif), gateway: None, metric, table }
    }

    fn address(index: u32, octets: [u8; 4], secondary: bool) -> AddressFact {
        AddressFact { index, address: Address::new(octets), prefix: 24, secondary }
    }

    #[test]
    fn the_default_route_of_the_lowest_metric_in_the_main_table_wins() {
        let links =
            [2, 3, 4, 5].map(|index| LinkFact { index, name: format!("e{index}"), ..LinkFact::default() });
        let routes = vec![
            route("10.0.0.0/8", 2, 0, MAIN_TABLE),
            route("0.0.0.0/0", 3, 0, 100),
            route("0.0.0.0/0", 4, 600, MAIN_TABLE),
            route("0.0.0.0/0", 5, 100, MAIN_TABLE),
        ];
        let facts = Facts { links: links.to_vec(), routes, ..Facts::default() };
        assert_eq!(facts.default_uplink().map(|link| link.index), Some(5));
        assert_eq!(Facts::default().default_uplink(), None);
    }

    #[test]
    fn the_primary_address_is_the_first_that_is_not_secondary() {
        let addresses = vec![
            address(2, [169, 254, 3, 4], false),
            address(2, [10, 0, 0, 9], true),
            address(3, [10, 0, 1, 1], false),
            address(2, [10, 0, 0, 2], false),
            address(2, [10, 0, 7, 2], false),
        ];
        let facts = Facts { addresses, ..Facts::default() };
        assert_eq!(facts.primary_address(2), Some(Address::new([10, 0, 0, 2])));
        assert_eq!(facts.primary_address(4), None);
        assert_eq!(facts.addresses[0].network(), "169.254.3.0/24".parse().unwrap());
    }

    #[test]
    fn every_way_to_the_world_is_an_exit_and_its_router_is_known() {
        let link = |index, bare| LinkFact { index, name: format!("e{index}"), bare, ..LinkFact::default() };
        let by = |gateway: [u8; 4], route| RouteFact { gateway: Some(Address::new(gateway)), ..route };
        let facts = Facts {
            links: vec![link(2, false), link(3, false), link(4, true), link(5, false)],
            routes: vec![
                by([10, 0, 0, 1], route("0.0.0.0/0", 2, 100, MAIN_TABLE)),
                by([10, 0, 0, 9], route("0.0.0.0/0", 2, 0, 100)),
                route("10.0.0.0/8", 3, 0, MAIN_TABLE),
                route("128.0.0.0/1", 4, 0, MAIN_TABLE),
                route("0.0.0.0/0", 5, 0, 7),
            ],
            ..Facts::default()
        };
        assert_eq!(facts.exits().map(|link| link.index).collect::<Vec<_>>(), [2, 4, 5]);
        let routers: Vec<_> = facts.links.iter().map(|link| facts.router_behind(link)).collect();
        let first = Address::new([10, 0, 0, 1]);
        assert_eq!(routers, [Some(first), None, Some(Address::UNSPECIFIED), None]);
    }

    #[test]
    fn a_port_is_found_behind_its_bridge_only() {
        let mac = Mac::new([2, 0, 0, 0, 0, 1]);
        let fdb = vec![
            FdbFact { port: 9, mac, bridge: 8, local: false },
            FdbFact { port: 5, mac, bridge: 4, local: true },
            FdbFact { port: 6, mac, bridge: 4, local: false },
        ];
        let facts = Facts { fdb, ..Facts::default() };
        assert_eq!(facts.port_behind(4, mac), Some(6));
        assert_eq!(facts.port_behind(7, mac), None);
    }
}
