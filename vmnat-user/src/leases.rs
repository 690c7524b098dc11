//! Leases: where each guest's address lives, and by which names and MACs guests are known.
//!
//! [`Source`] lists who knows a guest, best first; of two that contradict each other the better one is believed. What the
//! programs learn from traffic, and the host's neighbour table, know MACs alone. Only addresses in networks of the instance
//! count, and rows that have expired never do. A further source is a variant of [`Source`], a line in `sources.rs`, and, where
//! its file looks like no other, a reader here that makes [`LeaseFact`]s.

mod directory;
mod dnsmasq;
mod hosts;
mod libvirt;
mod listing;
mod networkd;
mod sources;
mod watch;

use std::net::Ipv4Addr;

use serde::Serialize;
use vmnat_common::Mac;

pub use self::{
    directory::Directory,
    listing::{LeaseRow, list},
    sources::{Instances, files, in_force, may_ask_bus, of_bus},
    watch::{Change, Event, changes},
};
#[cfg(any(test, fuzzing))]
pub(crate) use self::{
    dnsmasq::read as read_dnsmasq,
    hosts::read as read_hosts,
    libvirt::read as read_libvirt,
    networkd::{read as read_networkd, read_answer as read_networkd_answer},
};

/// Who knows a guest, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The operator, by `vmnat leases bind`.
    Bound,
    /// A file that `--lease-file` named.
    LeaseFile,
    /// The status file that libvirt keeps for the bridge.
    Libvirt,
    /// The addresses that a libvirt network gives to certain guests.
    LibvirtHosts,
    /// The DHCP server of systemd-networkd at the bridge.
    Networkd,
    /// vmnat's own DHCP.
    Agent,
    /// A plain dnsmasq.
    Dnsmasq,
    /// What guests have said of themselves: ARP, and the first packet of a flow.
    Traffic,
    /// The host's neighbour table.
    Neighbour,
    /// The bridge's forwarding table, which knows ports alone.
    ForwardingTable,
}

impl Source {
    /// The word for it in listings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bound => "bound",
            Self::LeaseFile => "lease-file",
            Self::Libvirt => "libvirt",
            Self::LibvirtHosts => "libvirt-hosts",
            Self::Networkd => "networkd",
            Self::Agent => "agent",
            Self::Dnsmasq => "dnsmasq",
            Self::Traffic => "traffic",
            Self::Neighbour => "neighbour",
            Self::ForwardingTable => "forwarding-table",
        }
    }

    /// True where somebody has given the address to the guest, who has not just said so of itself.
    #[must_use]
    pub const fn binds(self) -> bool {
        match self {
            Self::Bound
            | Self::LeaseFile
            | Self::Libvirt
            | Self::LibvirtHosts
            | Self::Networkd
            | Self::Agent
            | Self::Dnsmasq => true,
            Self::Traffic | Self::Neighbour | Self::ForwardingTable => false,
        }
    }
}

/// What a source knows of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseFact {
    /// The address.
    pub address: Ipv4Addr,
    /// The MAC, where the source knows it.
    pub mac: Option<Mac>,
    /// The name, where it has one.
    pub name: Option<String>,
    /// Second since 1970 at which the lease ends; the largest number for never.
    pub expires: u64,
    /// Name of the only port of the bridge by which the guest may come, where one was named.
    pub port: Option<String>,
    /// Who says so.
    pub source: Source,
}

impl LeaseFact {
    /// A fact that does not end, about an address alone.
    #[must_use]
    pub const fn of(source: Source, address: Ipv4Addr) -> Self {
        Self { address, mac: None, name: None, expires: u64::MAX, port: None, source }
    }
}

#[cfg(test)]
impl LeaseFact {
    pub(crate) fn named(name: &str, address: [u8; 4]) -> Self {
        Self { name: Some(name.to_owned()), ..Self::of(Source::Dnsmasq, address.into()) }
    }
}

/// Reads a MAC such as `52:54:00:12:34:56`.
#[must_use]
pub fn mac(text: &str) -> Option<Mac> {
    let mut bytes = [0_u8; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part =
            parts.next().filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then(|| Mac::new(bytes))
}

/// Reads the MAC of a guest: one of a single interface.
///
/// # Errors
/// What is wrong with it.
pub fn guest_mac(text: &str) -> Result<Mac, String> {
    let mac = mac(text).filter(|mac| !mac.is_group() && *mac != Mac::ZERO);
    mac.ok_or_else(|| format!("\"{text}\" is no MAC of a guest such as 52:54:00:12:34:56"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_are_six_pairs() {
        assert_eq!(mac("52:54:00:aB:0c:01"), Some(Mac::new([0x52, 0x54, 0, 0xab, 0x0c, 1])));
        for text in ["", "52:54:00:ab:0c", "52:54:00:ab:0c:01:02", "52:54:0:ab:0c:01", "+2:54:00:ab:0c:01"] {
            assert_eq!(mac(text), None, "{text}");
        }
    }

    #[test]
    fn a_guests_mac_is_no_groups() {
        assert!(guest_mac("52:54:00:01:02:03").is_ok());
        for text in ["", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", "01:00:5e:00:00:01", "52-54-00-01-02-03"] {
            assert!(guest_mac(text).unwrap_err().contains("is no MAC of a guest"), "{text}");
        }
    }

    #[test]
    fn a_source_is_called_the_same_everywhere() {
        for source in [Source::Bound, Source::LeaseFile, Source::LibvirtHosts, Source::ForwardingTable] {
            assert_eq!(serde_json::to_string(&source).unwrap(), format!("\"{}\"", source.name()));
        }
        assert!(Source::Bound < Source::Libvirt && Source::Dnsmasq < Source::Traffic);
    }
}
