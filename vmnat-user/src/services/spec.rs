//! Services as people write them: `53`, `53/udp`, `8000/tcp`, `dns`, `none`; and resolvers to ask instead of the host's.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddrV4},
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use vmnat_common::Protocol;

use super::DNS;

/// A port of one protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ServicePort {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

/// What is allowed while nobody has said otherwise: names.
#[must_use]
pub fn dns() -> Vec<ServicePort> {
    [Protocol::Udp, Protocol::Tcp].map(|protocol| ServicePort { protocol, port: DNS }).into()
}

impl fmt::Display for ServicePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.port, self.protocol)
    }
}

impl From<ServicePort> for String {
    fn from(service: ServicePort) -> Self {
        service.to_string()
    }
}

impl TryFrom<String> for ServicePort {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match services_of(&text)?[..] {
            [service] => Ok(service),
            _ => Err(format!("\"{text}\" names no protocol")),
        }
    }
}

/// A list of services, as `--service` takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceList(pub Vec<ServicePort>);

impl FromStr for ServiceList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(Vec::new()));
        }
        let mut services = Vec::new();
        for word in text.split(',') {
            services.extend(services_of(word)?);
        }
        services.sort_unstable();
        services.dedup();
        Ok(Self(services))
    }
}

/// The services of one word: a port without a protocol is both.
fn services_of(word: &str) -> Result<Vec<ServicePort>, String> {
    if word == "dns" {
        return Ok(dns());
    }
    let wrong =
        || format!("\"{word}\" is no service: write 53, 53/udp, 8000/tcp, dns, several with commas, or none");
    let (port, protocols) = match word.split_once('/') {
        None => (word, vec![Protocol::Udp, Protocol::Tcp]),
        Some((port, "udp")) => (port, vec![Protocol::Udp]),
        Some((port, "tcp")) => (port, vec![Protocol::Tcp]),
        Some(_) => return Err(wrong()),
    };
    let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    match port.parse() {
        Ok(port) if port > 0 && is_number => {
            Ok(protocols.into_iter().map(|protocol| ServicePort { protocol, port }).collect())
        }
        _ => Err(wrong()),
    }
}

/// A resolver to ask, as `--dns` takes it; none for the host's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forwarder(pub Option<SocketAddrV4>);

impl FromStr for Forwarder {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        let whole = || text.parse::<Ipv4Addr>().map(|address| SocketAddrV4::new(address, DNS));
        let found = text.parse().or_else(|_| whole());
        let found = found.ok().filter(|found| !found.ip().is_unspecified() && found.port() > 0);
        let wrong = || format!("\"{text}\" is no resolver such as 9.9.9.9 or 127.0.0.1:5353, nor \"none\"");
        found.map(|found| Self(Some(found))).ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<String>, String> {
        let list: ServiceList = text.parse()?;
        Ok(list.0.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn services_are_ports_with_or_without_their_protocol() {
        assert_eq!(read("53").unwrap(), ["53/tcp", "53/udp"]);
        assert_eq!(read("dns").unwrap(), ["53/tcp", "53/udp"]);
        assert_eq!(read("8000/tcp,53/udp,8000/tcp").unwrap(), ["8000/tcp", "53/udp"]);
        assert_eq!(read("none"), Ok(Vec::new()));
        for text in ["", "0", "+53", "53/icmp", "53/", "65536", "53,", "53-60", "none,53", "http"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_service_survives_the_state_file() {
        for service in dns() {
            let written = serde_json::to_string(&service).unwrap();
            assert_eq!(serde_json::from_str::<ServicePort>(&written).unwrap(), service);
        }
        assert!(serde_json::from_str::<ServicePort>("\"53\"").is_err());
    }

    #[test]
    fn a_forwarder_is_an_address_with_or_without_a_port() {
        let read = |text: &str| text.parse::<Forwarder>().map(|read| read.0.map(|to| to.to_string()));
        assert_eq!(read("9.9.9.9"), Ok(Some("9.9.9.9:53".into())));
        assert_eq!(read("127.0.0.1:5353"), Ok(Some("127.0.0.1:5353".into())));
        assert_eq!(read("none"), Ok(None));
        for text in ["", "0.0.0.0", "9.9.9.9:0", "dns.example", "::1"] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
