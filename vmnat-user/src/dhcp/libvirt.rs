//! Networks as libvirt defines them: ranges, static leases and domain, from its XML files.

use std::{fs, net::Ipv4Addr, path::Path};

use anyhow::{Context as _, Result};
use ipnet::Ipv4Net;
use roxmltree::{Document, Node};
use tracing::debug;
use vmnat_common::Mac;

use super::spec::{DhcpRange, LEASE};
use crate::leases;

/// Where the networks are that run, best first, and those that are defined.
const FOLDERS: [&str; 2] = ["/var/run/libvirt/network", "/etc/libvirt/qemu/networks"];

/// An address that one guest always gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticLease {
    /// The guest's MAC.
    pub mac: Option<Mac>,
    /// The guest's name.
    pub name: Option<String>,
    /// The address.
    pub address: Ipv4Addr,
}

/// What a network of libvirt says of its guests' addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LibvirtNetwork {
    /// Name of the bridge.
    pub bridge: String,
    /// The guests' domain.
    pub domain: Option<String>,
    /// Largest packet, where it is said.
    pub mtu: Option<u16>,
    /// Ranges.
    pub ranges: Vec<DhcpRange>,
    /// Static leases.
    pub hosts: Vec<StaticLease>,
    /// Routes beside the default one, and their routers (option 121, of libvirt's `dnsmasq:options`).
    pub routes: Vec<(Ipv4Net, Ipv4Addr)>,
    /// It hands out addresses.
    pub has_dhcp: bool,
}

/// The network that has a bridge.
#[must_use]
pub fn network_of(bridge: &str) -> Option<LibvirtNetwork> {
    FOLDERS.iter().find_map(|folder| {
        let files = fs::read_dir(Path::new(folder)).into_iter().flatten().flatten();
        let mut paths: Vec<_> = files.map(|file| file.path()).collect();
        paths.sort_unstable();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "xml"));
        paths.iter().find_map(|path| {
            let text = fs::read_to_string(path).ok()?;
            let read =
                read(&text).inspect_err(|error| debug!("cannot understand {}: {error:#}", path.display()));
            read.ok().filter(|network| network.bridge == bridge)
        })
    })
}

/// Reads a network's XML, also inside the status that libvirt wraps around one that runs.
///
/// # Errors
/// When it is no XML.
pub(crate) fn read(text: &str) -> Result<LibvirtNetwork> {
    let document = Document::parse(text).context("read the network's XML")?;
    let mut network = LibvirtNetwork::default();
    let root = document.root_element();
    let is_network = |node: &Node<'_, '_>| node.has_tag_name("network");
    let wrapped = || root.children().filter(|_| root.has_tag_name("networkstatus")).find(is_network);
    if let Some(found) = Some(root).filter(is_network).or_else(wrapped) {
        found.children().for_each(|node| take(&mut network, node));
    }
    Ok(network)
}

/// Takes what an element of the network says.
fn take(network: &mut LibvirtNetwork, node: Node<'_, '_>) {
    let text = |name: &str| node.attribute(name).map(str::to_owned);
    match node.tag_name().name() {
        "bridge" => network.bridge = text("name").unwrap_or_default(),
        "domain" => network.domain = text("name"),
        "mtu" => network.mtu = text("size").and_then(|size| size.parse().ok()),
        "ip" => {
            let dhcp = node.children().filter(|node| node.has_tag_name("dhcp"));
            dhcp.flat_map(|dhcp| dhcp.children()).for_each(|node| give(network, node));
        }
        "options" => {
            let lines = node.children().filter_map(|option| option.attribute("value"));
            network.routes.extend(lines.filter_map(routes).flatten());
        }
        _ => {}
    }
}

/// Takes a range or a static lease. IPv6's addresses are no `Ipv4Addr`.
fn give(network: &mut LibvirtNetwork, node: Node<'_, '_>) {
    let address = |name| node.attribute(name).and_then(|address| address.parse::<Ipv4Addr>().ok());
    if let (true, Some(first), Some(last)) = (node.has_tag_name("range"), address("start"), address("end")) {
        let lease = node.children().find(|node| node.has_tag_name("lease"));
        let lease = lease.and_then(|lease| expiry(lease.attribute("expiry"), lease.attribute("unit")));
        network.ranges.push(DhcpRange { first, last, lease: lease.unwrap_or(LEASE) });
    }
    if let (true, Some(address)) = (node.has_tag_name("host"), address("ip")) {
        let mac = node.attribute("mac").and_then(leases::mac);
        network.hosts.push(StaticLease { mac, name: node.attribute("name").map(str::to_owned), address });
    }
    network.has_dhcp = !network.ranges.is_empty() || !network.hosts.is_empty();
}

/// The routes of a line of dnsmasq's configuration: `dhcp-option=121,10.0.0.0/8,192.168.122.1`.
fn routes(line: &str) -> Option<Vec<(Ipv4Net, Ipv4Addr)>> {
    let said = line.strip_prefix("dhcp-option=")?;
    let said = said.strip_prefix("121,").or_else(|| said.strip_prefix("option:classless-static-route,"))?;
    let words: Vec<&str> = said.split(',').map(str::trim).collect();
    let route = |pair: &[&str]| match pair {
        [network, router] => Some((network.parse().ok()?, router.parse().ok()?)),
        _ => None,
    };
    words.chunks(2).map(route).collect()
}

/// Seconds of a lease; zero is for ever.
fn expiry(number: Option<&str>, unit: Option<&str>) -> Option<u32> {
    let number: u32 = number?.parse().ok()?;
    let unit = match unit.unwrap_or("minutes") {
        "seconds" => 1,
        "minutes" => 60,
        "hours" => 3600,
        _ => return None,
    };
    if number == 0 { Some(u32::MAX) } else { Some(number.saturating_mul(unit).max(120)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: &str = r"
      <networkstatus><class_id bitmap='0-2'/><floor sum='0'/>
      <network connections='1'>
        <name>default</name>
        <forward mode='nat'><nat><port start='1024' end='65535'/></nat></forward>
        <bridge name='virbr0' stp='on' delay='0'/>
        <mtu size='1400'/>
        <domain name='lab.test' localOnly='yes'/>
        <ip address='192.168.122.1' netmask='255.255.255.0'>
          <dhcp>
            <range start='192.168.122.2' end='192.168.122.99'><lease expiry='12' unit='hours'/></range>
            <range start='192.168.122.200' end='192.168.122.254'/>
            <host mac='52:54:00:00:00:10' name='web' ip='192.168.122.10'/>
            <host name='db' ip='192.168.122.11'><lease expiry='0'/></host>
          </dhcp>
        </ip>
        <ip family='ipv6' address='fd00::1' prefix='64'><dhcp><range start='fd00::2' end='fd00::9'/></dhcp></ip>
        <dnsmasq:options xmlns:dnsmasq='http://libvirt.org/schemas/network/dnsmasq/1.0'>
          <dnsmasq:option value='dhcp-option=option:classless-static-route,10.8.0.0/16,192.168.122.9,10.9.0.0/16,192.168.122.1'/>
          <dnsmasq:option value='dhcp-option=121,10.8.0.0/16'/>
          <dnsmasq:option value='log-dhcp'/>
        </dnsmasq:options>
      </network></networkstatus>";

    #[test]
    fn a_network_that_runs_is_read() {
        let network = read(DEFAULT).unwrap();
        assert_eq!((network.bridge.as_str(), network.domain.as_deref()), ("virbr0", Some("lab.test")));
        assert_eq!((network.mtu, network.has_dhcp), (Some(1400), true));
        let ranges: Vec<_> = network.ranges.iter().map(|range| (range.to_string(), range.lease)).collect();
        assert_eq!(
            ranges,
            [
                ("192.168.122.2-192.168.122.99".into(), 43_200),
                ("192.168.122.200-192.168.122.254".into(), 3600)
            ]
        );
        let routes: Vec<_> = network.routes.iter().map(|(to, by)| format!("{to} {by}")).collect();
        assert_eq!(routes, ["10.8.0.0/16 192.168.122.9", "10.9.0.0/16 192.168.122.1"]);
        assert_eq!(network.hosts[0].mac, leases::mac("52:54:00:00:00:10"));
        assert_eq!((network.hosts[1].mac, network.hosts[1].name.as_deref()), (None, Some("db")));
    }

    #[test]
    fn a_network_without_dhcp_hands_out_nothing_and_other_files_are_no_networks() {
        let text = "<network><bridge name='virbr1'/><ip address='10.0.0.1' prefix='24'/></network>";
        let network = read(text).unwrap();
        assert_eq!((network.bridge.as_str(), network.has_dhcp), ("virbr1", false));
        assert_eq!(read("<domain><bridge name='virbr0'/></domain>").unwrap(), LibvirtNetwork::default());
        assert!(read("<network><a></b></network>").is_err());
    }
}
