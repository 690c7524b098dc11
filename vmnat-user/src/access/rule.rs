//! A rule as people write it: `[BRIDGE=]NETWORK[:PORT[-PORT]][/PROTOCOL]`.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use vmnat_common::{
    Protocol,
    access::{LAST, place},
};

/// Whether a rule allows or denies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verb {
    /// It allows.
    Allow,
    /// It denies.
    Deny,
}

impl Verb {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

/// Who calls whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// Guests call the network.
    To,
    /// The network calls guests.
    From,
}

impl Direction {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::To => "to",
            Self::From => "from",
        }
    }
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// What it says.
    pub verb: Verb,
    /// Of which calls.
    pub direction: Direction,
    /// The rest, as it is written.
    #[serde(flatten)]
    pub spec: RuleSpec,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.verb.name(), self.direction.name(), self.spec)
    }
}

/// Whose calls, with whom, by what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleSpec {
    /// The bridge whose guests are meant; those of all bridges without one.
    pub bridge: Option<String>,
    /// The others.
    pub network: Ipv4Net,
    /// First and last port of who is called; all where none are named.
    pub ports: Option<(u16, u16)>,
    /// The protocol; all where none is named.
    pub protocol: Option<String>,
}

impl RuleSpec {
    /// The places that it is about, in order, none over another.
    #[must_use]
    pub fn places(&self) -> Vec<(u32, u32)> {
        let named = self.protocol.as_deref().and_then(protocol);
        match (named, self.ports) {
            (None, None) => vec![(0, LAST)],
            (Some(protocol), ports) => {
                let (first, last) = ports.unwrap_or((0, u16::MAX));
                vec![(place(protocol.number(), first), place(protocol.number(), last))]
            }
            (None, Some((first, last))) => {
                let with_ports = Protocol::ALL.iter().filter(|protocol| **protocol != Protocol::Icmp);
                let mut places: Vec<(u32, u32)> = with_ports
                    .map(|protocol| (place(protocol.number(), first), place(protocol.number(), last)))
                    .collect();
                places.sort_unstable();
                places
            }
        }
    }
}

fn protocol(name: &str) -> Option<Protocol> {
    Protocol::ALL.into_iter().find(|protocol| protocol.name() == name)
}

impl fmt::Display for RuleSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bridge, network, ports, protocol } = self;
        if let Some(bridge) = bridge {
            write!(f, "{bridge}=")?;
        }
        if network.prefix_len() == 32 { write!(f, "{}", network.addr()) } else { write!(f, "{network}") }?;
        match ports {
            None => {}
            Some((first, last)) if first == last => write!(f, ":{first}")?,
            Some((first, last)) => write!(f, ":{first}-{last}")?,
        }
        protocol.as_ref().map_or(Ok(()), |protocol| write!(f, "/{protocol}"))
    }
}

impl FromStr for RuleSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (bridge, rest) = match text.split_once('=') {
            Some(("", _)) => return Err(format!("\"{text}\" names no bridge before its =")),
            Some((bridge, rest)) => (Some(bridge.to_owned()), rest),
            None => (None, text),
        };
        let (rest, protocol_name) = match rest.rsplit_once('/') {
            Some((rest, word)) if word.starts_with(|c: char| c.is_ascii_alphabetic()) => {
                (rest, Some(word.to_ascii_lowercase()))
            }
            _ => (rest, None),
        };
        if let Some(name) = protocol_name.as_deref().filter(|name| protocol(name).is_none()) {
            let known = Protocol::ALL.map(Protocol::name).join(", ");
            return Err(format!("there is no protocol \"{name}\" for access lists; there are {known}"));
        }
        let (network, ports) = match rest.split_once(':') {
            Some((network, ports)) => (read_network(network)?, Some(read_ports(ports)?)),
            None => (read_network(rest)?, None),
        };
        if ports.is_some() && protocol_name.as_deref() == Some(Protocol::Icmp.name()) {
            return Err(format!("\"{text}\": icmp has no ports"));
        }
        Ok(Self { bridge, network, ports, protocol: protocol_name })
    }
}

fn read_network(text: &str) -> Result<Ipv4Net, String> {
    let wrong = || format!("\"{text}\" is no IPv4 network such as 10.0.0.0/8, address, or \"any\"");
    if text == "any" {
        return Ok(Ipv4Net::default());
    }
    let network = match text.parse::<Ipv4Addr>() {
        Ok(address) => Ipv4Net::from(address),
        Err(_) => text.parse().map_err(|_| wrong())?,
    };
    Ok(network.trunc())
}

fn read_ports(text: &str) -> Result<(u16, u16), String> {
    let wrong = || format!("\"{text}\" is no port such as 443, nor a range such as 8000-8099");
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (u16, u16) = (first.parse().map_err(|_| wrong())?, last.parse().map_err(|_| wrong())?);
    if first == 0 || first > last { Err(wrong()) } else { Ok((first, last)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_read_as_they_are_written() {
        for text in [
            "10.0.0.0/8",
            "10.1.2.3",
            "10.1.2.3:443/tcp",
            "virbr0=10.0.0.0/8:8000-8099/udp",
            "0.0.0.0/0:25",
            "192.0.2.0/24/icmp",
            "192.0.2.1/sctp",
        ] {
            assert_eq!(text.parse::<RuleSpec>().unwrap().to_string(), text);
        }
        let any: RuleSpec = "any/TCP".parse().unwrap();
        assert_eq!(any.to_string(), "0.0.0.0/0/tcp");
        assert_eq!("10.1.2.3/8".parse::<RuleSpec>().unwrap().to_string(), "10.0.0.0/8");
    }

    #[test]
    fn each_mistake_has_its_sentence() {
        for (text, why) in [
            ("", "\"\" is no IPv4 network"),
            ("10.0.0.0/33", "\"10.0.0.0/33\" is no IPv4 network"),
            ("fd00::/8", "is no IPv4 network"),
            ("=10.0.0.0/8", "names no bridge"),
            ("10.0.0.0/8:0", "\"0\" is no port"),
            ("10.0.0.0/8:90-80", "\"90-80\" is no port"),
            ("10.0.0.0/8:65536", "\"65536\" is no port"),
            ("10.0.0.0/8:", "\"\" is no port"),
            ("10.0.0.0/8/ospf", "there is no protocol \"ospf\" for access lists; there are icmp, tcp"),
            ("10.0.0.0/8:7/icmp", "icmp has no ports"),
            ("example.org", "\"example.org\" is no IPv4 network"),
        ] {
            let error = text.parse::<RuleSpec>().unwrap_err();
            assert!(error.contains(why) && !error.contains('\n'), "{text}: {error}");
        }
    }

    #[test]
    fn ports_without_a_protocol_are_those_of_all_that_have_ports() {
        let places = "10.0.0.1:53".parse::<RuleSpec>().unwrap().places();
        assert_eq!(places, [6_u8, 17, 33, 132, 136].map(|number| (place(number, 53), place(number, 53))));
        assert_eq!("10.0.0.1".parse::<RuleSpec>().unwrap().places(), [(0, LAST)]);
        let icmp = "10.0.0.1/icmp".parse::<RuleSpec>().unwrap().places();
        assert_eq!(icmp, [(place(1, 0), place(1, u16::MAX))]);
    }
}
