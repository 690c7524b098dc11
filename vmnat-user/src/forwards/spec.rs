//! What leads where, as people write it: `[HOSTIP:]PORT[-PORT]:TARGET:PORT[-PORT][/tcp|udp|sctp|tcp+udp]`.

use std::{fmt, net::Ipv4Addr};

use serde::{Deserialize, Serialize};
use vmnat_common::{Mac, Protocol};

/// Consecutive ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ports {
    first: u16,
    last: u16,
}

impl Ports {
    /// The ports from `first` to `last`; none for port 0, and where `last` lies below `first`.
    #[must_use]
    pub const fn new(first: u16, last: u16) -> Option<Self> {
        if first > 0 && first <= last { Some(Self { first, last }) } else { None }
    }

    /// The first port.
    #[must_use]
    pub const fn first(self) -> u16 {
        self.first
    }

    /// The last port.
    #[must_use]
    pub const fn last(self) -> u16 {
        self.last
    }

    /// Ports after the first.
    #[must_use]
    pub const fn span(self) -> u16 {
        self.last.saturating_sub(self.first)
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// The protocols of a port forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocols {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP, whose port numbers stay.
    Sctp,
    /// TCP and UDP under one number.
    TcpAndUdp,
}

impl Protocols {
    /// Every choice.
    pub const ALL: [Self; 4] = [Self::Tcp, Self::Udp, Self::Sctp, Self::TcpAndUdp];

    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
            Self::TcpAndUdp => "tcp+udp",
        }
    }

    /// The choice that a word names; `udp+tcp` is `tcp+udp`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let name = if name == "udp+tcp" { "tcp+udp" } else { name };
        Self::ALL.into_iter().find(|protocols| protocols.name() == name)
    }

    /// One by one.
    #[must_use]
    pub const fn each(self) -> &'static [Protocol] {
        match self {
            Self::Tcp => &[Protocol::Tcp],
            Self::Udp => &[Protocol::Udp],
            Self::Sctp => &[Protocol::Sctp],
            Self::TcpAndUdp => &[Protocol::Tcp, Protocol::Udp],
        }
    }
}

/// Where a port forward leads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// A guest's address.
    Address(Ipv4Addr),
    /// The name of a guest's lease, in small letters.
    Name(String),
    /// A guest's MAC.
    Mac(Mac),
}

impl Target {
    /// The address, where that is what was written.
    #[must_use]
    pub const fn address(&self) -> Option<Ipv4Addr> {
        match self {
            Self::Address(address) => Some(*address),
            Self::Name(_) | Self::Mac(_) => None,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Name(name) => f.write_str(name),
            Self::Mac(mac) => write!(f, "[{mac}]"),
        }
    }
}

/// What leads where.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ForwardSpec {
    /// The protocols.
    pub protocols: Protocols,
    /// The external address; without one it is every uplink's, or those of the interface that it is bound to.
    pub host: Option<Ipv4Addr>,
    /// The external ports.
    pub ports: Ports,
    /// The guest.
    pub target: Target,
    /// The guest's port that the first external one leads to.
    pub target_port: u16,
}

impl ForwardSpec {
    /// The guest's ports.
    #[must_use]
    pub const fn target_ports(&self) -> Ports {
        Ports { first: self.target_port, last: self.target_port.saturating_add(self.ports.span()) }
    }
}

impl fmt::Display for ForwardSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(host) = self.host {
            write!(f, "{host}:")?;
        }
        write!(f, "{}:{}:{}/{}", self.ports, self.target, self.target_ports(), self.protocols.name())
    }
}

impl Serialize for ForwardSpec {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ForwardSpec {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn target() -> impl Strategy<Value = Target> {
        prop_oneof![
            any::<[u8; 4]>().prop_map(|octets| Target::Address(octets.into())),
            any::<[u8; 6]>().prop_map(|bytes| Target::Mac(Mac::new(bytes))),
            "[a-z][a-z0-9_-]{0,10}(\\.[a-z]{1,5})?".prop_map(Target::Name),
        ]
    }

    fn host() -> impl Strategy<Value = Option<Ipv4Addr>> {
        let address = (1_u8..=223, any::<[u8; 3]>()).prop_map(|(a, [b, c, d])| Ipv4Addr::new(a, b, c, d));
        proptest::option::of(address.prop_filter("not loopback", |address| !address.is_loopback()))
    }

    prop_compose! {
        fn spec()(protocols in prop::sample::select(&Protocols::ALL), host in host(), first in 1_u16..60_000,
                  span in 0_u16..5_000, target in target(), port in 1_u16..60_000) -> ForwardSpec {
            let target_port = if protocols == Protocols::Sctp { first } else { port };
            let ports = Ports::new(first, first.saturating_add(span)).unwrap();
            ForwardSpec { protocols, host, ports, target, target_port }
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(spec in spec()) {
            prop_assert_eq!(spec.to_string().parse::<ForwardSpec>().unwrap(), spec);
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in "[0-9a-z:\\[\\]./+-]{0,40}") {
            let _ = text.parse::<ForwardSpec>();
        }
    }
}
