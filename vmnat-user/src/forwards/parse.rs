//! Reads a port forward, and says what is wrong with one that makes no sense.

use std::{net::Ipv4Addr, str::FromStr};

use super::spec::{ForwardSpec, Ports, Protocols, Target};
use crate::{error::Error, leases};

/// How a port forward is written.
pub const FORM: &str = "[HOSTIP:]PORT[-PORT]:TARGET:PORT[-PORT][/tcp|udp|sctp|tcp+udp]";

/// The longest name of a host (RFC 1035 section 2.3.4).
const LONGEST_NAME: usize = 253;

impl FromStr for ForwardSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        read(text).map_err(|what| {
            Error::Usage(format!(
                "\"{text}\" is no port forward: {what}; write {FORM}, for example 8080:192.168.122.10:80"
            ))
        })
    }
}

fn read(text: &str) -> Result<ForwardSpec, String> {
    let (ends, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocols = Protocols::from_name(protocol)
        .ok_or_else(|| format!("\"{protocol}\" is none of tcp, udp, sctp and tcp+udp"))?;
    let Parts { host, ports, target, target_ports } = split(ends)?;
    let host = host.filter(|host| !host.is_empty() && *host != "0.0.0.0").map(host_address).transpose()?;
    let (ports, target_ports) = (range(ports)?, range(target_ports)?);
    if ports.span() != target_ports.span() {
        return Err(format!(
            "{ports} is {} and {target_ports} is {}, and both sides need the same number",
            count(ports),
            count(target_ports)
        ));
    }
    if protocols == Protocols::Sctp && ports != target_ports {
        return Err(format!(
            "SCTP keeps its port number, because its checksum covers it: write {ports} on both sides"
        ));
    }
    Ok(ForwardSpec {
        protocols,
        host,
        ports,
        target: read_target(target)?,
        target_port: target_ports.first(),
    })
}

struct Parts<'a> {
    host: Option<&'a str>,
    ports: &'a str,
    target: &'a str,
    target_ports: &'a str,
}

/// Divides at the colons; those between brackets are a MAC's.
fn split(ends: &str) -> Result<Parts<'_>, String> {
    if let Some(bracket) = ends.find('[') {
        let (head, rest) = ends.split_at_checked(bracket).unwrap_or((ends, ""));
        let (Some(head), Some((target, target_ports))) = (head.strip_suffix(':'), rest.split_once("]:"))
        else {
            return Err("a MAC stands alone in its brackets, between colons".to_owned());
        };
        let (host, ports) = head.split_once(':').map_or((None, head), |(host, ports)| (Some(host), ports));
        let target = target.strip_prefix('[').unwrap_or(target);
        // Brackets tell a MAC from a name, so an empty or odd content must not pass as one.
        return match leases::mac(target) {
            Some(_) => Ok(Parts { host, ports, target, target_ports }),
            None => Err(format!("\"{target}\" is no MAC such as 52:54:00:12:34:56")),
        };
    }
    let words: Vec<&str> = ends.split(':').collect();
    match words[..] {
        [ports, target, target_ports] => Ok(Parts { host: None, ports, target, target_ports }),
        [host, ports, target, target_ports] => Ok(Parts { host: Some(host), ports, target, target_ports }),
        _ if words.len() >= 8 => Err("a MAC is written in brackets".to_owned()),
        _ => Err("it needs three or four parts between colons".to_owned()),
    }
}

fn host_address(text: &str) -> Result<Ipv4Addr, String> {
    let address: Ipv4Addr = text.parse().map_err(|_| format!("\"{text}\" is no IPv4 address"))?;
    let [first, ..] = address.octets();
    let is_other_loopback = address.is_loopback() && address != Ipv4Addr::LOCALHOST;
    if first == 0 || first >= 224 || is_other_loopback {
        return Err(format!(
            "{address} is no address of a host that can be called from elsewhere, nor 127.0.0.1"
        ));
    }
    Ok(address)
}

fn range(text: &str) -> Result<Ports, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    Ports::new(first, last).ok_or_else(|| format!("the range {text} ends before it begins"))
}

fn port(text: &str) -> Result<u16, String> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("\"{text}\" is no port"));
    }
    match text.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("port {text} lies outside 1-65535")),
    }
}

fn read_target(text: &str) -> Result<Target, String> {
    if let Some(mac) = leases::mac(text) {
        return Ok(Target::Mac(mac));
    }
    if let Ok(address) = text.parse() {
        return Ok(Target::Address(address));
    }
    if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return Err(format!("\"{text}\" is no IPv4 address"));
    }
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if text.len() > LONGEST_NAME || !text.bytes().all(fits) {
        return Err(format!("\"{text}\" is no address, name of a lease, or MAC in brackets"));
    }
    Ok(Target::Name(text.to_ascii_lowercase()))
}

fn count(ports: Ports) -> String {
    match u32::from(ports.span()).saturating_add(1) {
        1 => "1 port".to_owned(),
        several => format!("{several} ports"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> String {
        text.parse::<ForwardSpec>().unwrap().to_string()
    }

    #[test]
    fn forwards_are_read_as_written() {
        for text in [
            "8080:10.0.0.2:80/tcp",
            "192.0.2.1:53:10.0.0.2:5353/udp",
            "127.0.0.1:8000-8009:web:9000-9009/tcp+udp",
            "36412:web.example.org:36412/sctp",
            "22:[52:54:00:12:34:56]:22/tcp",
            "192.0.2.1:22:[52:54:00:12:34:56]:22/tcp",
        ] {
            assert_eq!(written(text), text);
        }
    }

    #[test]
    fn other_spellings_have_one_form() {
        for (text, form) in [
            ("22:10.0.0.2:22", "22:10.0.0.2:22/tcp"),
            ("0.0.0.0:22:10.0.0.2:22", "22:10.0.0.2:22/tcp"),
            (":22:10.0.0.2:22", "22:10.0.0.2:22/tcp"),
            ("22-22:Web:22/udp+tcp", "22:web:22/tcp+udp"),
            ("22:[52:54:00:AB:cd:56]:22", "22:[52:54:00:ab:cd:56]:22/tcp"),
        ] {
            assert_eq!(written(text), form);
        }
    }

    #[test]
    fn nonsense_is_refused_with_the_reason_and_the_form() {
        for (text, reason) in [
            ("", "three or four parts"),
            ("80:10.0.0.2", "three or four parts"),
            ("1:2:3:4:5", "three or four parts"),
            ("0:10.0.0.2:80", "port 0 lies outside 1-65535"),
            ("80:10.0.0.2:65536", "port 65536 lies outside 1-65535"),
            ("99999999999:10.0.0.2:80", "port 99999999999 lies outside 1-65535"),
            ("http:10.0.0.2:80", "\"http\" is no port"),
            ("+80:10.0.0.2:80", "\"+80\" is no port"),
            ("90-80:10.0.0.2:80-90", "the range 90-80 ends before it begins"),
            ("80-89:10.0.0.2:80-84", "80-89 is 10 ports and 80-84 is 5 ports"),
            ("80-89:10.0.0.2:80", "80-89 is 10 ports and 80 is 1 port"),
            ("80:10.0.0.2:80/icmp", "\"icmp\" is none of tcp, udp, sctp and tcp+udp"),
            ("80:10.0.0.2:81/sctp", "SCTP keeps its port number"),
            ("80:10.0.0:80", "\"10.0.0\" is no IPv4 address"),
            ("80:a guest:80", "\"a guest\" is no address, name of a lease, or MAC in brackets"),
            ("host:80:10.0.0.2:80", "\"host\" is no IPv4 address"),
            ("224.0.0.1:80:10.0.0.2:80", "224.0.0.1 is no address of a host"),
            ("127.0.0.2:80:10.0.0.2:80", "nor 127.0.0.1"),
            ("80:52:54:00:12:34:56:80", "a MAC is written in brackets"),
            ("80:[52:54]:80", "\"52:54\" is no MAC"),
            ("80:[52:54:00:12:34:56]", "between colons"),
        ] {
            let error = text.parse::<ForwardSpec>().unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains(FORM), "{text}: {error}");
        }
    }
}
