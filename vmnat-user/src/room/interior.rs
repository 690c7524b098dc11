//! The inside of the room: settings of its stack, and the ways through it. Everything here runs in its namespace.
//!
//! What comes in by one door leaves by another whatever its destination, by policy rules; the main table serves the room's own
//! ICMP errors alone. Every way goes by one next hop that is nobody, so that the neighbour table (which all namespaces
//! share) holds one entry a door and not one a destination; without ARP that entry is the door's own MAC.

use std::{io, net::Ipv4Addr, path::Path};

use anyhow::{Context as _, Result};
use ipnet::Ipv4Net;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Parseable as _};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{LinkAttribute, LinkFlags, LinkMessage},
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
        RouteScope, RouteType,
    },
    rule::{RuleAction, RuleAttribute, RuleMessage},
};
use netlink_sys::protocols::NETLINK_ROUTE;
use vmnat_common::{Address, room, service::LOOPBACK};

use super::{
    Wish,
    door::{self, Door},
};
use crate::{netlink, sysctl};

/// The next hop of every way; of the block of [`room::ADDRESS`], assigned to nobody.
const NEXT_HOP: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 11);

/// `RTN_LOCAL`'s table, which the kernel fills.
const LOCAL_TABLE: u8 = 255;

/// `RTM_F_CLONED`: not a route but what a router has said about one.
const CLONED: u32 = 0x200;

/// Settings of the room's stack, below `/proc/sys/net/ipv4`, in the order in which they are written. Several are the
/// kernel's defaults, which a host may have changed for the namespaces that it makes.
const SETTINGS: [(&str, &str); 15] = [
    ("ip_forward", "1"),
    // The way back of a packet is never the way it came.
    ("conf/all/rp_filter", "0"),
    ("conf/default/rp_filter", "0"),
    ("conf/all/send_redirects", "0"),
    ("conf/default/send_redirects", "0"),
    ("conf/all/accept_source_route", "0"),
    ("conf/all/log_martians", "0"),
    ("conf/default/log_martians", "0"),
    // ICMP errors come from the room's address, not from that of an interface that has none.
    ("icmp_errors_use_inbound_ifaddr", "0"),
    // One error a second to each destination, after a burst of six: guests cannot drain each other's. What tells the size
    // of packets is never held back (`icmpv4_mask_allow()`).
    ("icmp_ratelimit", "1000"),
    ("icmp_ratemask", "6168"),
    ("icmp_echo_ignore_all", "1"),
    // All fragments that wait, together: some sixty of the largest datagrams. They come within milliseconds of each other;
    // half a minute, the kernel's default, would let sixty halves keep everybody else out.
    ("ipfrag_high_thresh", "4194304"),
    ("ipfrag_low_thresh", "3145728"),
    ("ipfrag_time", "5"),
];

/// Furnishes a fresh namespace, before its doors are there.
///
/// # Errors
/// What the kernel answers.
pub(super) fn furnish() -> Result<()> {
    for setting in ["net/ipv6/conf/all/disable_ipv6", "net/ipv6/conf/default/disable_ipv6"] {
        if Path::new("/proc/sys").join(setting).exists() {
            sysctl::write(setting, "1")?;
        }
    }
    for (name, value) in SETTINGS {
        sysctl::write(&format!("net/ipv4/{name}"), value)?;
    }
    door::bring_up("lo")?;
    let own = Ipv4Addr::from(room::ADDRESS);
    netlink::change(RouteNetlinkMessage::NewAddress(address(own)), NLM_F_CREATE | NLM_F_EXCL)
        .with_context(|| format!("give the room the address {own}"))?;
    Door::ALL.into_iter().try_for_each(|door| {
        netlink::change(RouteNetlinkMessage::NewRule(rule(door)), NLM_F_CREATE | NLM_F_EXCL)
            .with_context(|| format!("make the rule of the door {}", door.name()))
    })
}

fn address(own: Ipv4Addr) -> AddressMessage {
    let mut address = AddressMessage::default();
    address.header.family = AddressFamily::Inet;
    address.header.prefix_len = 32;
    address.header.index = LOOPBACK;
    address.attributes = vec![AddressAttribute::Local(own.into()), AddressAttribute::Address(own.into())];
    address
}

/// Makes the addresses at which something waits inside those that are wished. The local table goes before the rules of the
/// doors, so packets to these addresses go no further.
///
/// # Errors
/// What the kernel answers.
pub(super) fn settle_addresses(wanted: &[Address]) -> Result<()> {
    let wanted: Vec<Ipv4Addr> = wanted.iter().copied().map(Ipv4Addr::from).collect();
    let present = addresses().context("list the room's addresses")?;
    for own in wanted.iter().filter(|own| !present.contains(own)) {
        netlink::change(RouteNetlinkMessage::NewAddress(address(*own)), NLM_F_CREATE | NLM_F_REPLACE)
            .with_context(|| format!("give the room the address {own}"))?;
    }
    let usual = [Ipv4Addr::LOCALHOST, room::ADDRESS.into()];
    for own in present.iter().filter(|own| !wanted.contains(own) && !usual.contains(own)) {
        netlink::change(RouteNetlinkMessage::DelAddress(address(*own)), 0)
            .with_context(|| format!("take the address {own} from the room"))?;
    }
    Ok(())
}

fn addresses() -> io::Result<Vec<Ipv4Addr>> {
    // `struct ifaddrmsg`.
    let mut body = [0; 8];
    body[0] = u8::from(AddressFamily::Inet);
    let mut addresses = Vec::new();
    netlink::dump(NETLINK_ROUTE, libc::RTM_GETADDR, &body, |message| {
        let Ok(message) = AddressMessage::parse(message.body) else { return };
        addresses.extend(message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(std::net::IpAddr::V4(address)) => Some(*address),
            _ => None,
        }));
    })?;
    Ok(addresses)
}

/// Brings the room's ends up; the host's ends are.
///
/// # Errors
/// What the kernel answers.
pub(super) fn open() -> Result<()> {
    Door::ALL.into_iter().try_for_each(|door| door::bring_up(door.name()).map(drop))
}

/// The table that serves what comes in by a door; its rule's preference, too.
const fn table(door: Door) -> u8 {
    match door {
        Door::Inner => 1,
        Door::Outer => 2,
        Door::Refusing => 3,
    }
}

fn rule(door: Door) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = AddressFamily::Inet;
    rule.header.table = table(door);
    rule.header.action = RuleAction::ToTable;
    rule.attributes =
        vec![RuleAttribute::Iifname(door.name().into()), RuleAttribute::Priority(table(door).into())];
    rule
}

/// The room's ends of the doors, by index; none unless all are there, up, and lead to these interfaces of the host.
///
/// # Errors
/// What the kernel answers.
pub(super) fn doors(host_ends: [u32; 3]) -> io::Result<Option<[u32; 3]>> {
    let links = netlink::links()?;
    let mut found = [0; 3];
    for ((door, host_end), found) in Door::ALL.into_iter().zip(host_ends).zip(&mut found) {
        let is_door = |link: &&LinkMessage| {
            let has = |wanted: LinkAttribute| link.attributes.contains(&wanted);
            link.header.flags.contains(LinkFlags::Up | LinkFlags::Noarp)
                && has(LinkAttribute::IfName(door.name().into()))
                && has(LinkAttribute::Link(host_end))
        };
        let Some(link) = links.iter().find(is_door) else { return Ok(None) };
        *found = link.header.index;
    }
    Ok(Some(found))
}

/// A way through the room, or out of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Way {
    table: u8,
    destination: Ipv4Net,
    /// Index of the door; none: prohibited.
    door: Option<u32>,
    /// The largest packet; zero: any.
    mtu: u32,
}

/// Makes the ways those that are wished; true when something was changed.
///
/// # Errors
/// What the kernel answers.
pub(super) fn settle_ways(wish: &Wish, doors: [u32; 3]) -> Result<bool> {
    let present = present().context("list the room's routes")?;
    let wanted = wanted(wish, doors);
    let missing = wanted.iter().filter(|way| !present.contains(way));
    for way in missing.clone() {
        netlink::change(RouteNetlinkMessage::NewRoute(route(*way)), NLM_F_CREATE | NLM_F_REPLACE)
            .with_context(|| format!("make the room's route to {}", way.destination))?;
    }
    let same_place =
        |one: &Way, other: &Way| one.table == other.table && one.destination == other.destination;
    let stale = present.iter().filter(|way| !wanted.iter().any(|wanted| same_place(wanted, way)));
    for way in stale.clone() {
        netlink::change(RouteNetlinkMessage::DelRoute(route(*way)), 0)
            .with_context(|| format!("remove the room's route to {}", way.destination))?;
    }
    Ok(missing.count() > 0 || stale.count() > 0)
}

fn wanted(wish: &Wish, [inner, outer, _]: [u32; 3]) -> Vec<Way> {
    let all = Ipv4Net::default();
    let way = |table, destination, door, mtu| Way { table, destination, door, mtu };
    let mut ways = vec![
        way(table(Door::Inner), all, Some(outer), wish.outer_mtu),
        way(table(Door::Outer), all, Some(inner), wish.inner_mtu),
        way(table(Door::Refusing), all, None, 0),
        way(RouteHeader::RT_TABLE_MAIN, all, Some(outer), 0),
    ];
    let networks = wish.networks.iter();
    ways.extend(networks.map(|network| way(RouteHeader::RT_TABLE_MAIN, *network, Some(inner), 0)));
    ways
}

fn route(way: Way) -> RouteMessage {
    let mut route = RouteMessage::default();
    let header = &mut route.header;
    header.address_family = AddressFamily::Inet;
    header.table = way.table;
    header.protocol = RouteProtocol::Static;
    header.scope = RouteScope::Universe;
    header.destination_prefix_length = way.destination.prefix_len();
    header.kind = if way.door.is_some() { RouteType::Unicast } else { RouteType::Prohibit };
    if way.destination.prefix_len() > 0 {
        route.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(way.destination.network())));
    }
    if let Some(door) = way.door {
        route.header.flags = RouteFlags::Onlink;
        route.attributes.push(RouteAttribute::Oif(door));
        route.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(NEXT_HOP)));
        route.attributes.push(RouteAttribute::PrefSource(RouteAddress::Inet(room::ADDRESS.into())));
    }
    if way.mtu > 0 {
        route.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(way.mtu)]));
    }
    route
}

fn present() -> io::Result<Vec<Way>> {
    // `struct rtmsg`.
    let mut body = [0; 12];
    body[0] = u8::from(AddressFamily::Inet);
    let mut ways = Vec::new();
    netlink::dump(NETLINK_ROUTE, libc::RTM_GETROUTE, &body, |message| {
        ways.extend(RouteMessage::parse(message.body).ok().and_then(|route| read(&route)));
    })?;
    Ok(ways)
}

fn read(route: &RouteMessage) -> Option<Way> {
    let header = &route.header;
    if header.table == LOCAL_TABLE || header.flags.bits() & CLONED != 0 {
        return None;
    }
    let mut way = Way { table: header.table, destination: Ipv4Net::default(), door: None, mtu: 0 };
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                way.destination = Ipv4Net::new(*address, header.destination_prefix_length).ok()?;
            }
            RouteAttribute::Oif(door) => way.door = Some(*door),
            RouteAttribute::Metrics(metrics) => {
                let mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
                way.mtu = mtu.unwrap_or_default();
            }
            _ => {}
        }
    }
    Some(way)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_reads_back() {
        let wish = Wish {
            inner_mtu: 1500,
            outer_mtu: 1400,
            networks: vec!["192.168.122.0/24".parse().unwrap()],
            relays: Vec::new(),
        };
        let ways = wanted(&wish, [2, 3, 4]);
        assert_eq!(ways.len(), 5);
        for way in ways {
            assert_eq!(read(&route(way)), Some(way));
        }
    }
}
