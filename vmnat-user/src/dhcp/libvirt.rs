//! Networks as libvirt defines them: ranges, static leases and domain, from its XML files.

use std::{collections::HashMap, fs, net::Ipv4Addr, path::Path};

use anyhow::{Context as _, Result};
use ipnet::Ipv4Net;
use quick_xml::{
    Reader, XmlVersion,
    events::{BytesStart, Event},
};
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
    let mut reader = Reader::from_str(text);
    let mut network = LibvirtNetwork::default();
    let mut path: Vec<String> = Vec::new();
    loop {
        match reader.read_event().context("read the network's XML")? {
            Event::Start(element) => {
                path.push(element.name().as_ref().to_owned());
                take(&mut network, &path, &element);
            }
            Event::Empty(element) => {
                path.push(element.name().as_ref().to_owned());
                take(&mut network, &path, &element);
                path.pop();
            }
            Event::End(_) => {
                path.pop();
            }
            Event::Eof => return Ok(network),
            _ => {}
        }
    }
}

/// Takes what an element says, by where it stands below `<network>`.
fn take(network: &mut LibvirtNetwork, path: &[String], element: &BytesStart<'_>) {
    let names: Vec<&str> = path.iter().map(String::as_str).collect();
    let (["networkstatus", "network", below @ ..] | ["network", below @ ..]) = names.as_slice() else {
        return;
    };
    let said = attributes(element);
    let text = |name: &str| said.get(name).map(String::as_str);
    match below {
        ["bridge"] => network.bridge = text("name").map(str::to_owned).unwrap_or_default(),
        ["domain"] => network.domain = text("name").map(str::to_owned),
        ["mtu"] => network.mtu = text("size").and_then(|size| size.parse().ok()),
        // IPv6's addresses are no `Ipv4Addr`.
        ["ip", "dhcp", "range"] => {
            let address = |name| text(name).and_then(|address| address.parse::<Ipv4Addr>().ok());
            if let (Some(first), Some(last)) = (address("start"), address("end")) {
                network.has_dhcp = true;
                network.ranges.push(DhcpRange { first, last, lease: LEASE });
            }
        }
        ["ip", "dhcp", "range", "lease"] => {
            if let Some(range) = network.ranges.last_mut() {
                range.lease = expiry(text("expiry"), text("unit")).unwrap_or(range.lease);
            }
        }
        ["ip", "dhcp", "host"] => {
            if let Some(address) = text("ip").and_then(|address| address.parse().ok()) {
                network.has_dhcp = true;
                let mac = text("mac").and_then(leases::mac);
                network.hosts.push(StaticLease { mac, name: text("name").map(str::to_owned), address });
            }
        }
        // Whatever prefix the file gives to dnsmasq's namespace.
        [options, option] if options.ends_with(":options") && option.ends_with(":option") => {
            network.routes.extend(text("value").and_then(routes).unwrap_or_default());
        }
        _ => {}
    }
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

fn attributes(element: &BytesStart<'_>) -> HashMap<String, String> {
    let attributes = element.attributes().flatten();
    attributes
        .filter_map(|attribute| {
            let name = attribute.key.as_ref().to_owned();
            Some((name, attribute.normalized_value(XmlVersion::Implicit1_0).ok()?.into_owned()))
        })
        .collect()
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
