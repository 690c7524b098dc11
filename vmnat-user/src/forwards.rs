//! Port forwards as people write them: `[hostip:]port:guest:port[/tcp|udp]`.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use serde::{Deserialize, Serialize};
use vmnat_common::{Endpoint, Port, Protocol};

use crate::error::Error;

/// A port forward with the number that it keeps for life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortForward {
    /// The number.
    pub id: u32,
    /// What leads where.
    pub spec: ForwardSpec,
}

/// What leads where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ForwardSpec {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The external address; every uplink's when absent.
    pub host: Option<Ipv4Addr>,
    /// The external port.
    pub port: u16,
    /// The guest.
    pub guest: Ipv4Addr,
    /// The guest's port.
    pub guest_port: u16,
}

impl ForwardSpec {
    /// The guest's endpoint.
    #[must_use]
    pub fn target(&self) -> Endpoint {
        Endpoint::new(self.guest.into(), Port::new(self.guest_port))
    }

    /// True when both claim an external endpoint.
    #[must_use]
    pub fn collides_with(&self, other: &Self) -> bool {
        let same_address = self.host.is_none() || other.host.is_none() || self.host == other.host;
        self.protocol == other.protocol && self.port == other.port && same_address
    }
}

impl FromStr for ForwardSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |what: &str| {
            Error::Usage(format!(
                "\"{text}\" is no port forward ({what}): write [HOSTIP:]PORT:GUEST:PORT[/tcp|udp], for example 8080:192.168.122.10:80"
            ))
        };
        let (ends, protocol) = match text.split_once('/') {
            None | Some((_, "tcp")) => (text.split('/').next().unwrap_or_default(), Protocol::Tcp),
            Some((ends, "udp")) => (ends, Protocol::Udp),
            Some((_, other)) => return Err(wrong(&format!("\"{other}\" is neither tcp nor udp"))),
        };
        let parts: Vec<&str> = ends.split(':').collect();
        let (host, port, guest, guest_port) = match parts[..] {
            [port, guest, guest_port] => (None, port, guest, guest_port),
            [host, port, guest, guest_port] => (Some(host), port, guest, guest_port),
            _ => return Err(wrong("it needs three or four parts between colons")),
        };
        let address = |text: &str| {
            text.parse::<Ipv4Addr>().map_err(|_| wrong(&format!("\"{text}\" is no IPv4 address")))
        };
        let number = |text: &str| match text.parse::<u16>() {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(wrong(&format!("\"{text}\" is no port from 1 to 65535"))),
        };
        Ok(Self {
            protocol,
            host: host.filter(|host| *host != "0.0.0.0" && !host.is_empty()).map(address).transpose()?,
            port: number(port)?,
            guest: address(guest)?,
            guest_port: number(guest_port)?,
        })
    }
}

impl fmt::Display for ForwardSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(host) = self.host {
            write!(f, "{host}:")?;
        }
        write!(f, "{}:{}:{}/{}", self.port, self.guest, self.guest_port, self.protocol)
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
    use super::*;

    #[test]
    fn specs_are_read_as_written() {
        for text in ["8080:10.0.0.2:80/tcp", "192.0.2.1:53:10.0.0.2:5353/udp"] {
            assert_eq!(text.parse::<ForwardSpec>().unwrap().to_string(), text);
        }
        assert_eq!("22:10.0.0.2:22".parse::<ForwardSpec>().unwrap().to_string(), "22:10.0.0.2:22/tcp");
        assert_eq!("0.0.0.0:22:10.0.0.2:22".parse::<ForwardSpec>().unwrap().host, None);
    }

    #[test]
    fn nonsense_is_refused_with_the_form() {
        for text in
            ["", "80", "80:10.0.0.2", "0:10.0.0.2:80", "80:guest:80", "80:10.0.0.2:80/sctp", "1:2:3:4:5"]
        {
            let error = text.parse::<ForwardSpec>().unwrap_err().to_string();
            assert!(error.contains("[HOSTIP:]PORT:GUEST:PORT"), "{error}");
        }
    }

    #[test]
    fn forwards_collide_where_an_external_endpoint_is_shared() {
        let spec = |text: &str| text.parse::<ForwardSpec>().unwrap();
        assert!(spec("80:10.0.0.2:80").collides_with(&spec("192.0.2.1:80:10.0.0.3:80")));
        assert!(!spec("80:10.0.0.2:80").collides_with(&spec("80:10.0.0.2:80/udp")));
        assert!(!spec("192.0.2.2:80:10.0.0.2:80").collides_with(&spec("192.0.2.1:80:10.0.0.3:80")));
    }
}
