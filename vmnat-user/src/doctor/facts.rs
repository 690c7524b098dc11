//! What doctor looks at: interfaces, rules, settings, sockets, files, and vmnat itself. All of it is read, none changed;
//! resolvers are asked one question each.

mod files;
mod resolve;
mod servers;
mod vmnat;

use std::collections::BTreeMap;

use anyhow::Result;
use ipnet::Ipv4Net;
use netlink_packet_route::link::{BridgeStpState, InfoBridge, InfoData, LinkAttribute, LinkInfo};

pub use self::{
    files::{Configured, Files, LibvirtNetwork},
    resolve::{Answer, ask},
    servers::{Server, Servers},
    vmnat::Vmnat,
};
use super::ruleset::{Raw, Ruleset, Trouble};
use crate::{
    change,
    error::Error,
    facts::{self, LinkFact},
    paths::Instance,
    sysctl,
};

/// Which guests are asked about.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Bridges by name; none: all that look as if guests were behind them.
    pub bridges: Vec<String>,
    /// The uplink; none: the instance's, or the interface of the default route.
    pub uplink: Option<String>,
}

/// What netlink says of an interface beyond what the rest of vmnat wants to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct More {
    /// No carrier.
    pub is_dead: bool,
    /// The bridge's spanning tree is on, and its forward delay in hundredths of a second.
    pub stp_delay: Option<u32>,
    /// Its other end is in another network namespace, or a program (a tap).
    pub has_far_end: bool,
}

/// Guests behind a bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The bridge.
    pub bridge: LinkFact,
    /// Their networks, with the bridge's own address in each.
    pub networks: Vec<(Ipv4Net, [u8; 4])>,
    /// By where they go into the world; none: nobody knows.
    pub uplink: Option<LinkFact>,
}

impl Subject {
    /// The address that stands for a guest: one of the network that is not the bridge's.
    #[must_use]
    pub fn guest(&self) -> Option<[u8; 4]> {
        let (network, own) = self.networks.first()?;
        let found = network.hosts().filter(|address| address.octets() != *own).nth(8);
        found
            .or_else(|| network.hosts().find(|address| address.octets() != *own))
            .map(|address| address.octets())
    }

    /// The bridge's first address.
    #[must_use]
    pub fn gateway(&self) -> Option<[u8; 4]> {
        self.networks.first().map(|(_, own)| *own)
    }
}

/// All of it.
#[derive(Debug, Default)]
pub struct Facts {
    /// Interfaces, addresses, routes.
    pub net: facts::Facts,
    /// More about interfaces, by index.
    pub more: BTreeMap<u32, More>,
    /// Rules.
    pub rules: Ruleset,
    /// The same as the kernel told them.
    pub raw: Raw,
    /// What could not be seen.
    pub troubles: Vec<Trouble>,
    /// Kernel settings by their path below `/proc/sys`; those that do not exist are missing.
    pub settings: BTreeMap<String, String>,
    /// Who answers DHCP and DNS here.
    pub servers: Servers,
    /// The host's resolvers, and whether they answered.
    pub resolvers: Vec<(String, Answer)>,
    /// Whether the gateway answers a question of DNS, by bridge.
    pub gateways: BTreeMap<String, Answer>,
    /// Files of libvirt, ufw, Docker, systemd-networkd.
    pub files: Files,
    /// This instance.
    pub vmnat: Vmnat,
    /// Whom it is about.
    pub subjects: Vec<Subject>,
}

impl Facts {
    /// A setting below `/proc/sys`.
    #[must_use]
    pub fn setting(&self, path: &str) -> Option<&str> {
        self.settings.get(path).map(String::as_str)
    }

    /// More about an interface.
    #[must_use]
    pub fn more_of(&self, index: u32) -> More {
        self.more.get(&index).cloned().unwrap_or_default()
    }
}

/// Looks at the network namespace of the calling thread, and at the files of its mount namespace.
///
/// # Errors
/// When the kernel refuses to tell about interfaces, or there is none of a name that was given.
pub async fn gather(instance: &Instance, wanted: &Wanted) -> Result<Facts> {
    let net = facts::gather(&change::connect()?).await?;
    let (raw, troubles) = Raw::read();
    let files = Files::read();
    let mut facts =
        Facts { rules: Ruleset::decode(&raw), raw, troubles, more: more(), files, net, ..Facts::default() };
    facts.vmnat = Vmnat::look(instance, &facts.net);
    facts.subjects = subjects(&facts, wanted)?;
    facts.settings = settings(&facts);
    facts.servers = Servers::find();
    facts.vmnat.look_at_ports(&facts.net, &facts.subjects);
    resolve::ask_all(&mut facts);
    Ok(facts)
}

fn more() -> BTreeMap<u32, More> {
    let links = crate::netlink::links().unwrap_or_default();
    let more = links.iter().map(|link| {
        let mut more = More::default();
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::Carrier(0) => more.is_dead = true,
                LinkAttribute::LinkNetNsId(_) => more.has_far_end = true,
                LinkAttribute::LinkInfo(infos) => infos.iter().for_each(|info| {
                    if let LinkInfo::Data(InfoData::Bridge(options)) = info {
                        more.stp_delay = stp_delay(options);
                    }
                }),
                _ => {}
            }
        }
        (link.header.index, more)
    });
    more.collect()
}

fn stp_delay(options: &[InfoBridge]) -> Option<u32> {
    let is_on = options
        .iter()
        .any(|option| matches!(option, InfoBridge::StpState(state) if *state != BridgeStpState::Disabled));
    let delay = options.iter().find_map(|option| match option {
        InfoBridge::ForwardDelay(delay) => Some(*delay),
        _ => None,
    });
    delay.filter(|_| is_on)
}

fn subjects(facts: &Facts, wanted: &Wanted) -> Result<Vec<Subject>> {
    let net = &facts.net;
    let uplink = uplink(facts, wanted)?;
    let bridges: Vec<&LinkFact> = if wanted.bridges.is_empty() {
        net.links.iter().filter(|link| looks_like_guests(facts, link, uplink.as_ref())).collect()
    } else {
        let find =
            |name: &String| net.link(name).filter(|link| link.is_bridge).ok_or_else(|| no_bridge(net, name));
        wanted.bridges.iter().map(find).collect::<Result<_, _>>()?
    };
    let subject = |bridge: &LinkFact| {
        let networks = net.addresses_of(bridge.index).filter(|address| address.prefix < 31);
        Subject {
            networks: networks.map(|fact| (fact.network(), fact.address.octets())).collect(),
            uplink: uplink.clone().filter(|uplink| uplink.index != bridge.index),
            bridge: bridge.clone(),
        }
    };
    Ok(bridges.into_iter().map(subject).collect())
}

fn no_bridge(net: &facts::Facts, name: &str) -> Error {
    let bridges: Vec<&str> =
        net.links.iter().filter(|link| link.is_bridge).map(|link| link.name.as_str()).collect();
    let hint = if bridges.is_empty() {
        "there are no bridges here".to_owned()
    } else {
        format!("the bridges are {}", bridges.join(", "))
    };
    let name = name.to_owned();
    if net.link(&name).is_some() {
        Error::NotABridge { name, hint }
    } else {
        Error::NoInterface { name, hint }
    }
}

fn uplink(facts: &Facts, wanted: &Wanted) -> Result<Option<LinkFact>, Error> {
    let net = &facts.net;
    if let Some(name) = &wanted.uplink {
        let others = net.links.iter().filter(|link| !link.loopback && link.master.is_none());
        let others: Vec<&str> = others.map(|link| link.name.as_str()).collect();
        let hint = format!("the interfaces are {}", others.join(", "));
        let none = || Error::NoInterface { name: name.clone(), hint };
        return net.link(name).cloned().map(Some).ok_or_else(none);
    }
    let followed = facts.vmnat.state.as_ref().and_then(|state| state.uplinks.first());
    Ok(followed.and_then(|name| net.link(name)).or_else(|| net.default_uplink()).cloned())
}

/// A bridge with guests behind it: this instance's, libvirt's, or one with a port whose other end is a guest. Those of
/// container engines have rules of their own, and a bridge that is the uplink itself needs no address translation.
fn looks_like_guests(facts: &Facts, link: &LinkFact, uplink: Option<&LinkFact>) -> bool {
    let is_engines = link.name == "docker0"
        || link.name == "docker_gwbridge"
        || link.name.starts_with("podman")
        || link.name.starts_with("cni")
        || link
            .name
            .strip_prefix("br-")
            .is_some_and(|id| id.len() == 12 && id.bytes().all(|b| b.is_ascii_hexdigit()));
    let is_instances = facts.vmnat.bridges().any(|name| name == link.name);
    let is_libvirts = facts.files.libvirt.iter().any(|network| network.bridge.as_deref() == Some(&link.name));
    let is_networkds = facts.files.dhcp_server_of(&link.name).is_some();
    let has_guest = facts.net.ports_of(link.index).any(|port| is_guests(facts, port));
    let is_uplink = uplink.is_some_and(|uplink| uplink.index == link.index);
    link.is_bridge
        && (is_instances || (!is_uplink && !is_engines && (is_libvirts || is_networkds || has_guest)))
}

/// True for a tap, and for a veth whose other end is elsewhere.
#[must_use]
pub fn is_guests(facts: &Facts, port: &LinkFact) -> bool {
    match port.kind.as_deref() {
        Some("tun") => !port.no_ethernet,
        Some("veth") => facts.more_of(port.index).has_far_end,
        _ => false,
    }
}

/// The settings that decide about forwarding.
fn settings(facts: &Facts) -> BTreeMap<String, String> {
    let mut paths: Vec<String> = [
        "net/ipv4/ip_forward",
        "net/bridge/bridge-nf-call-iptables",
        "net/bridge/bridge-nf-call-arptables",
        "net/ipv4/conf/all/rp_filter",
        "net/ipv4/conf/lo/rp_filter",
        "kernel/osrelease",
        "kernel/unprivileged_bpf_disabled",
    ]
    .map(str::to_owned)
    .into();
    let uplinks = facts.subjects.iter().filter_map(|subject| subject.uplink.as_ref());
    for link in facts.subjects.iter().map(|subject| &subject.bridge).chain(uplinks) {
        for name in ["forwarding", "rp_filter"] {
            paths.push(format!("net/ipv4/conf/{}/{name}", link.name));
        }
    }
    paths.into_iter().filter_map(|path| Some((path.clone(), sysctl::read(&path).ok()?))).collect()
}
