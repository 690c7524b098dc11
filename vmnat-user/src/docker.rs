//! Docker's published ports. Where its user-land proxy is off no socket holds them, only rules of netfilter, which a
//! port forward would take them from unseen; so Docker is asked.

use std::{
    io::{Read as _, Write as _},
    net::Ipv4Addr,
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use serde::Deserialize;
use tracing::debug;
use vmnat_common::Protocol;

use crate::forwards::Ports;

/// Where Docker listens.
const SOCKETS: [&str; 2] = ["/var/run/docker.sock", "/run/docker.sock"];

/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// The longest answer that is read, bytes.
const LONGEST: u64 = 32 << 20;

const REQUEST: &str = "GET /containers/json HTTP/1.0\r\nHost: docker\r\n\r\n";

/// A port that Docker publishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The protocol.
    pub protocol: Protocol,
    /// The host's port.
    pub port: u16,
    /// The host's address; none for all of them.
    pub at: Option<Ipv4Addr>,
    /// Name of the container.
    pub container: String,
}

/// The first published port among these.
#[must_use]
pub fn find<'a>(
    published: &'a [Published],
    protocol: Protocol,
    ports: Ports,
    addresses: &[Ipv4Addr],
) -> Option<&'a Published> {
    published.iter().find(|found| {
        found.protocol == protocol
            && (ports.first()..=ports.last()).contains(&found.port)
            && found.at.is_none_or(|at| addresses.contains(&at))
    })
}

/// Asks Docker; nothing where there is none, or it does not answer.
#[must_use]
pub fn published() -> Vec<Published> {
    for path in SOCKETS {
        match ask(path) {
            Ok(answer) => return read(&answer).unwrap_or_default(),
            Err(error) => debug!("Docker does not answer at {path}: {error}"),
        }
    }
    Vec::new()
}

fn ask(path: &str) -> std::io::Result<String> {
    let since = Instant::now();
    let mut stream = UnixStream::connect(path)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(REQUEST.as_bytes())?;
    let mut answer = Vec::new();
    let mut part = [0_u8; 16 << 10];
    loop {
        let left = PATIENCE.saturating_sub(since.elapsed());
        if left.is_zero() || u64::try_from(answer.len()).unwrap_or(u64::MAX) > LONGEST {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut part)? {
            0 => break,
            length => answer.extend_from_slice(part.get(..length).unwrap_or_default()),
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Container {
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    ports: Vec<PortRow>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct PortRow {
    #[serde(rename = "IP", default)]
    ip: Option<String>,
    #[serde(default)]
    public_port: Option<u16>,
    #[serde(default, rename = "Type")]
    kind: String,
}

/// Reads an answer of `GET /containers/json`.
pub(crate) fn read(answer: &str) -> Option<Vec<Published>> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    if head.split_whitespace().nth(1) != Some("200") {
        return None;
    }
    let containers: Vec<Container> = serde_json::from_str(body).ok()?;
    Some(containers.iter().flat_map(ports_of).collect())
}

fn ports_of(container: &Container) -> impl Iterator<Item = Published> {
    let name = container.names.first().map_or("", String::as_str).trim_start_matches('/');
    container.ports.iter().filter_map(move |row| {
        let protocol = Protocol::ALL.into_iter().find(|protocol| protocol.name() == row.kind)?;
        let at = match row.ip.as_deref() {
            None | Some("" | "::") => None,
            // An IPv6 address is another port.
            Some(text) => Some(text.parse::<Ipv4Addr>().ok()?).filter(|address| !address.is_unspecified()),
        };
        Some(Published { protocol, port: row.public_port?, at, container: name.to_owned() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = concat!(
        "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n",
        r#"[{"Id":"4c01","Names":["/web"],"Ports":["#,
        r#"{"IP":"0.0.0.0","PrivatePort":80,"PublicPort":8080,"Type":"tcp"},"#,
        r#"{"IP":"::","PrivatePort":80,"PublicPort":8080,"Type":"tcp"},"#,
        r#"{"IP":"127.0.0.1","PrivatePort":53,"PublicPort":5353,"Type":"udp"},"#,
        r#"{"PrivatePort":443,"Type":"tcp"}]}]"#
    );

    #[test]
    fn published_ports_are_read() {
        let published = read(ANSWER).unwrap();
        assert_eq!(published.len(), 3);
        let find = |protocol, port, address: [u8; 4]| {
            find(&published, protocol, Ports::new(port, port).unwrap(), &[address.into()])
        };
        assert_eq!(
            find(Protocol::Tcp, 8080, [192, 0, 2, 1]).map(|found| found.container.as_str()),
            Some("web")
        );
        assert_eq!(find(Protocol::Udp, 8080, [192, 0, 2, 1]), None);
        assert_eq!(find(Protocol::Udp, 5353, [192, 0, 2, 1]), None);
        assert!(find(Protocol::Udp, 5353, [127, 0, 0, 1]).is_some());
    }

    #[test]
    fn what_is_no_answer_publishes_nothing() {
        for text in ["", "HTTP/1.0 404 Not Found\r\n\r\n{}", "HTTP/1.0 200 OK\r\n\r\n{\"message\":1}"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
