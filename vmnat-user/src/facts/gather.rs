//! The picture: five dumps and one question, decoded into facts.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};
use futures::TryStreamExt;
use ipnet::Ipv4Net;
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressMessage},
    link::{
        InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, LinkAttribute, LinkFlags, LinkInfo,
        LinkLayerType, LinkMessage,
    },
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
};
use rtnetlink::Handle;
use vmnat_common::{Address, Mac};

use super::{AddressFact, Exit, Facts, FdbFact, LinkFact, NeighbourFact, RouteFact};

/// `IFA_F_SECONDARY`.
const SECONDARY: u8 = 0x01;

/// `RTNH_F_DEAD` and `RTNH_F_LINKDOWN`.
const DEAD: u32 = 1 | 16;

/// `NUD_REACHABLE`, `NUD_STALE`, `NUD_DELAY`, `NUD_PROBE`, `NUD_PERMANENT`: states in which the MAC is used.
/// `NUD_NOARP` is not among them: those are the multicast addresses.
const USABLE: u16 = 0x02 | 0x04 | 0x08 | 0x10 | 0x80;

/// `NUD_PERMANENT`; in a bridge's table, the mark of an own MAC (`fdb_to_nud()` in `net/bridge/br_fdb.c`).
const PERMANENT: u16 = 0x80;

/// An address that stands for the world: that of a root name server, in use since 1987. The kernel is asked for the route to
/// it; nothing is sent there.
const WORLD: Ipv4Addr = Ipv4Addr::new(198, 41, 0, 4);

/// Link layers without any header, which the kernel knows as such too (`dev_is_mac_header_xmit()` of
/// `include/linux/if_arp.h`).
const BARE: [LinkLayerType; 7] = [
    LinkLayerType::None,
    LinkLayerType::Ppp,
    LinkLayerType::Tunnel,
    LinkLayerType::Sit,
    LinkLayerType::Ipgre,
    LinkLayerType::Rawip,
    LinkLayerType::Void,
];

/// Takes a picture of the namespace in which the handle's connection was opened.
///
/// # Errors
/// When the kernel refuses one of the dumps; the message says which.
pub async fn gather(handle: &Handle) -> Result<Facts> {
    let links: Vec<_> =
        handle.link().get().execute().try_collect().await.context("cannot list the interfaces")?;
    let addresses: Vec<_> =
        handle.address().get().execute().try_collect().await.context("cannot list the addresses")?;
    let mut wanted = RouteMessage::default();
    wanted.header.address_family = AddressFamily::Inet;
    let routes: Vec<_> =
        handle.route().get(wanted).execute().try_collect().await.context("cannot list the IPv4 routes")?;
    let neighbours: Vec<_> =
        neighbours(handle, AddressFamily::Inet).await.context("cannot list the neighbours")?;
    let fdb: Vec<_> =
        neighbours_of_bridges(handle).await.context("cannot list the bridges' forwarding tables")?;
    Ok(Facts {
        links: links.iter().map(link).collect(),
        addresses: addresses.iter().filter_map(address).collect(),
        routes: routes.iter().flat_map(self::routes).collect(),
        neighbours: neighbours.iter().filter_map(neighbour).collect(),
        fdb: fdb.iter().filter_map(self::fdb).collect(),
        exit: exit(handle).await,
    })
}

/// Asks the kernel for the route to the world, as a socket of the host would take it.
async fn exit(handle: &Handle) -> Exit {
    let mut question = RouteMessage::default();
    question.header.address_family = AddressFamily::Inet;
    question.header.destination_prefix_length = 32;
    question.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(WORLD)));
    match handle.route().get(question).execute().try_next().await {
        Ok(Some(answer)) if answer.header.kind == RouteType::Unicast => {
            let oif = answer.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            });
            oif.map_or(Exit::Nowhere, Exit::By)
        }
        Ok(_) | Err(_) => Exit::Nowhere,
    }
}

async fn neighbours(
    handle: &Handle,
    family: AddressFamily,
) -> Result<Vec<NeighbourMessage>, rtnetlink::Error> {
    handle.neighbours().get().set_address_family(family).execute().try_collect().await
}

/// The forwarding tables; none where the kernel has no bridges.
async fn neighbours_of_bridges(handle: &Handle) -> Result<Vec<NeighbourMessage>, rtnetlink::Error> {
    match neighbours(handle, AddressFamily::Bridge).await {
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::EOPNOTSUPP => Ok(Vec::new()),
        other => other,
    }
}

fn link(message: &LinkMessage) -> LinkFact {
    let header = &message.header;
    let mut fact = LinkFact {
        index: header.index,
        up: header.flags.contains(LinkFlags::Up),
        loopback: header.flags.contains(LinkFlags::Loopback),
        no_ethernet: header.link_layer_type != LinkLayerType::Ether,
        bare: BARE.contains(&header.link_layer_type),
        ..LinkFact::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => fact.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => fact.mtu = *mtu,
            LinkAttribute::Address(bytes) => fact.mac = mac(bytes),
            LinkAttribute::Controller(0) => {}
            LinkAttribute::Controller(index) => fact.master = Some(*index),
            LinkAttribute::LinkInfo(infos) => infos.iter().for_each(|info| describe(&mut fact, info)),
            _ => {}
        }
    }
    if fact.no_ethernet {
        fact.mac = None;
    }
    fact
}

/// Adds what the kind of the link, and the kind of its master, say about it.
fn describe(fact: &mut LinkFact, info: &LinkInfo) {
    match info {
        LinkInfo::Kind(kind) => {
            fact.kind = Some(kind.to_string());
            fact.is_bridge = *kind == InfoKind::Bridge;
        }
        LinkInfo::Data(InfoData::Bridge(options)) => {
            fact.vlan_filtering = options.contains(&InfoBridge::VlanFiltering(true));
        }
        LinkInfo::PortData(InfoPortData::BridgePort(options)) => {
            fact.isolated = options.contains(&InfoBridgePort::Isolated(true));
            fact.port_state = options.iter().find_map(|option| match option {
                InfoBridgePort::State(state) => Some((*state).into()),
                _ => None,
            });
        }
        _ => {}
    }
}

/// An IPv4 address; `IFA_LOCAL` is the own one, `IFA_ADDRESS` the peer's of a point-to-point link.
fn address(message: &AddressMessage) -> Option<AddressFact> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
        _ => None,
    });
    let any = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(IpAddr::V4(address)) => Some(*address),
        _ => None,
    });
    Some(AddressFact {
        index: message.header.index,
        address: local.or(any)?.into(),
        prefix: message.header.prefix_len,
        secondary: message.header.flags.bits() & SECONDARY != 0,
    })
}

/// The facts of a route, one a next hop; none for other kinds than unicast.
fn routes(message: &RouteMessage) -> Vec<RouteFact> {
    let header = &message.header;
    let prefix = Ipv4Net::new([0; 4].into(), header.destination_prefix_length);
    let (true, Ok(destination)) = (header.kind == RouteType::Unicast, prefix) else { return Vec::new() };
    let mut fact =
        RouteFact { destination, oif: None, gateway: None, metric: 0, table: u32::from(header.table) };
    let mut hops = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                let net = Ipv4Net::new(*address, header.destination_prefix_length);
                fact.destination = net.unwrap_or(destination);
            }
            RouteAttribute::Priority(metric) => fact.metric = *metric,
            RouteAttribute::Table(table) => fact.table = *table,
            RouteAttribute::MultiPath(list) => hops = Some(list),
            other => next_hop(&mut fact, other),
        }
    }
    let Some(hops) = hops else {
        return if header.flags.bits() & DEAD == 0 { vec![fact] } else { Vec::new() };
    };
    let alive = hops.iter().filter(|hop| u32::from(hop.flags.bits()) & DEAD == 0);
    alive
        .map(|hop| {
            let mut fact = RouteFact { oif: Some(hop.interface_index), ..fact };
            hop.attributes.iter().for_each(|attribute| next_hop(&mut fact, attribute));
            fact
        })
        .collect()
}

fn next_hop(fact: &mut RouteFact, attribute: &RouteAttribute) {
    match attribute {
        RouteAttribute::Oif(index) => fact.oif = Some(*index),
        RouteAttribute::Gateway(RouteAddress::Inet(address)) => fact.gateway = Some((*address).into()),
        _ => {}
    }
}

fn neighbour(message: &NeighbourMessage) -> Option<NeighbourFact> {
    let address: Address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some((*address).into()),
        _ => None,
    })?;
    let mac = link_layer_address(message);
    let usable = mac.is_some() && u16::from(message.header.state) & USABLE != 0;
    Some(NeighbourFact { index: message.header.ifindex, address, mac, usable })
}

/// An entry that a bridge answers for; drivers list their own filters in the same dump, without a master.
fn fdb(message: &NeighbourMessage) -> Option<FdbFact> {
    let bridge = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Controller(index) => Some(*index),
        _ => None,
    })?;
    let local = u16::from(message.header.state) & PERMANENT != 0;
    Some(FdbFact { port: message.header.ifindex, mac: link_layer_address(message)?, bridge, local })
}

fn link_layer_address(message: &NeighbourMessage) -> Option<Mac> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => mac(bytes),
        _ => None,
    })
}

fn mac(bytes: &[u8]) -> Option<Mac> {
    Some(Mac::new(bytes.try_into().ok()?))
}
