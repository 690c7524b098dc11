//! The parts of the wish: bridges with the filtering of their networks, and what a guest may take.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddrV4},
    ops::RangeInclusive,
    str::FromStr,
};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use vmnat_common::{network::NetworkFlags, port_range::FIRST_UNPRIVILEGED, quota::Quotas};

use crate::{
    dhcp::DhcpWish,
    host_ports::DEFAULT_RANGE,
    leases::{self, LeaseFact, Source},
    services::{self, ServicePort},
};

/// A bridge, and the networks that stand behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    /// Name of the interface.
    pub name: String,
    /// Networks that were named; the bridge's own subnets when empty.
    #[serde(default)]
    pub networks: Vec<Ipv4Net>,
    /// Who may answer to the mappings of its guests.
    #[serde(default)]
    pub filtering: Filtering,
    /// Its guests may use the addresses alone that were given to them.
    #[serde(default)]
    pub strict_leases: bool,
    /// Services of its own addresses that guests may use whatever the host's INPUT rules say.
    #[serde(default = "services::dns")]
    pub services: Vec<ServicePort>,
    /// Resolvers to ask for guests instead of the host's own server.
    #[serde(default)]
    pub dns: Vec<SocketAddrV4>,
    /// Whether its guests are given addresses.
    #[serde(default)]
    pub dhcp: DhcpWish,
}

impl Bridge {
    /// A bridge with its own subnets and the usual filtering.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            networks: Vec::new(),
            filtering: Filtering::default(),
            services: services::dns(),
            dns: Vec::new(),
            dhcp: DhcpWish::default(),
            strict_leases: false,
        }
    }
}

/// An address that the operator has given to a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// The address.
    pub address: Ipv4Addr,
    /// The guest's MAC, as people write it.
    pub mac: String,
    /// Name of the only port by which the guest may come; none for the one where it is.
    #[serde(default)]
    pub port: Option<String>,
}

impl Binding {
    /// The same as a source's fact; none for a MAC that is none.
    #[must_use]
    pub fn fact(&self) -> Option<LeaseFact> {
        let Self { address, mac, port } = self;
        let mac = Some(leases::mac(mac)?);
        Some(LeaseFact { mac, port: port.clone(), ..LeaseFact::of(Source::Bound, *address) })
    }
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.address, self.mac)?;
        self.port.as_ref().map_or(Ok(()), |port| write!(f, " at port {port}"))
    }
}

/// Who may send to the external endpoint of a guest's mapping, in the words of RFC 4787.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filtering {
    /// The endpoints alone to which the guest has sent from it.
    #[default]
    AddressAndPortDependent,
    /// Anyone.
    EndpointIndependent,
}

impl Filtering {
    /// The words for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AddressAndPortDependent => "address-and-port-dependent",
            Self::EndpointIndependent => "endpoint-independent",
        }
    }

    /// Bits of [`vmnat_common::network::Network::flags`].
    #[must_use]
    pub const fn flags(self) -> u32 {
        match self {
            Self::AddressAndPortDependent => 0,
            Self::EndpointIndependent => NetworkFlags::OPEN_TO_ALL,
        }
    }

    /// The filtering that these bits mean.
    #[must_use]
    pub const fn of_flags(flags: u32) -> Self {
        if flags & NetworkFlags::OPEN_TO_ALL == 0 {
            Self::AddressAndPortDependent
        } else {
            Self::EndpointIndependent
        }
    }
}

/// The external ports from which guests get theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolRange {
    /// The first port.
    pub first: u16,
    /// The last port, above the first.
    pub last: u16,
}

impl Default for PoolRange {
    fn default() -> Self {
        Self { first: *DEFAULT_RANGE.start(), last: *DEFAULT_RANGE.end() }
    }
}

impl PoolRange {
    /// The ports.
    #[must_use]
    pub const fn ports(self) -> RangeInclusive<u16> {
        self.first..=self.last
    }
}

impl fmt::Display for PoolRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for PoolRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong =
            || format!("\"{text}\" is no range such as 10000-30000, of two ports or more from 1024 on");
        let (first, last) = text.split_once('-').ok_or_else(wrong)?;
        match (first.parse(), last.parse()) {
            (Ok(first), Ok(last)) if first >= FIRST_UNPRIVILEGED && first < last => Ok(Self { first, last }),
            _ => Err(wrong()),
        }
    }
}

/// What each guest may take; zero is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GuestQuotas {
    /// Flows at a time.
    pub flows: u32,
    /// TCP flows at a time whose handshake is not complete.
    pub half_open: u32,
    /// New flows a second, on average.
    pub rate: u32,
    /// New flows at once, after a rest.
    pub burst: u32,
}

impl Default for GuestQuotas {
    fn default() -> Self {
        let Quotas { flows, half_open, rate, burst } = Quotas::DEFAULT;
        Self { flows, half_open, rate, burst }
    }
}

impl From<GuestQuotas> for Quotas {
    fn from(quotas: GuestQuotas) -> Self {
        let GuestQuotas { flows, half_open, rate, burst } = quotas;
        Self { flows, half_open, rate, burst }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filtering_and_its_bits_are_one() {
        for filtering in [Filtering::AddressAndPortDependent, Filtering::EndpointIndependent] {
            assert_eq!(Filtering::of_flags(filtering.flags()), filtering);
            assert_eq!(serde_json::to_string(&filtering).unwrap(), format!("\"{}\"", filtering.name()));
        }
    }

    #[test]
    fn a_pool_is_a_range_of_unprivileged_ports() {
        assert_eq!("10000-30000".parse(), Ok(PoolRange { first: 10_000, last: 30_000 }));
        assert_eq!(PoolRange::default().to_string(), "1024-65535");
        for text in ["", "10000", "30000-10000", "10000-10000", "80-90", "1024-65536", "a-b", "1-2-3"] {
            assert!(text.parse::<PoolRange>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_state_from_before_there_were_quotas_has_the_usual_ones() {
        let bridge: Bridge = serde_json::from_str(r#"{"name":"virbr0"}"#).unwrap();
        assert_eq!(bridge, Bridge::new("virbr0"));
        let quotas: GuestQuotas = serde_json::from_str(r#"{"flows":7}"#).unwrap();
        assert_eq!(quotas, GuestQuotas { flows: 7, ..GuestQuotas::default() });
    }
}
