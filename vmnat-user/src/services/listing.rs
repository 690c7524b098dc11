//! Services as people see them: what is open, and who answers.

use std::{collections::BTreeMap, fmt::Write as _, net::Ipv4Addr};

use anyhow::{Context as _, Result};
use serde::Serialize;
use vmnat_common::{
    Protocol,
    service::{ServiceKey, ServiceWay},
};

use super::{DNS, forwarders::resolvers};
use crate::{
    facts::Facts,
    forwards::Ports,
    host_sockets::{self, Sockets},
    state::State,
    tables::Tables,
};

/// A service that is open to the guests of a bridge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceRow {
    /// Name of the bridge.
    pub bridge: String,
    /// The bridge's address.
    pub address: Ipv4Addr,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// The port.
    pub port: u16,
    /// `host` or `relay`.
    pub way: &'static str,
    /// Who answers, in words.
    pub answers: String,
}

/// The services that the programs let in.
///
/// # Errors
/// What the kernel answers.
pub fn rows(state: &State, tables: &Tables, facts: &Facts) -> Result<Vec<ServiceRow>> {
    let sockets = host_sockets::sockets()?;
    let entries = tables.service.entries().context("read the services")?;
    let mut rows: Vec<ServiceRow> = entries
        .into_iter()
        .filter_map(|(key, value)| {
            let protocol = Protocol::from_number(key.protocol)?;
            let bridge = facts.name_of(key.bridge);
            let (way, answers) =
                who(&key, protocol, ServiceWay::of(value)?, &sockets, &named(state, &bridge));
            let (address, port) = (key.address.into(), key.port.number());
            Some(ServiceRow { bridge, address, protocol: protocol.name(), port, way, answers })
        })
        .collect();
    rows.sort_by(|one, other| {
        let place = |row: &ServiceRow| (row.bridge.clone(), row.address, row.port, row.protocol);
        place(one).cmp(&place(other))
    });
    Ok(rows)
}

/// The resolvers that were named for a bridge.
fn named(state: &State, bridge: &str) -> String {
    let found = state.bridges.iter().find(|found| found.name == bridge);
    list(found.into_iter().flat_map(|bridge| bridge.dns.iter().map(|to| shown(&(*to).into()))))
}

fn who(
    key: &ServiceKey,
    protocol: Protocol,
    way: ServiceWay,
    sockets: &Sockets,
    named: &str,
) -> (&'static str, String) {
    let port = key.port.number();
    let listens = Ports::new(port, port)
        .is_some_and(|ports| sockets.find(protocol, ports, &[key.address.into()]).is_some());
    match way {
        ServiceWay::Host if !listens => ("host", "nobody listens there on the host".into()),
        ServiceWay::Host => ("host", "the host's own server, through lo".into()),
        ServiceWay::HostOrRelay if listens => ("host", "the host's own server, through lo".into()),
        _ if !named.is_empty() => ("relay", format!("relayed by the agent to {named}")),
        ServiceWay::Relay if listens => {
            let why = "because rp_filter is strict at lo and cannot be changed";
            ("relay", format!("relayed by the agent to the host's own server, {why}"))
        }
        ServiceWay::Relay | ServiceWay::HostOrRelay => {
            let resolvers = list(resolvers().iter().map(shown));
            let why = "because nobody listens there on the host";
            ("relay", format!("relayed by the agent to the host's resolvers ({resolvers}), {why}"))
        }
    }
}

/// A resolver without the usual port.
fn shown(resolver: &std::net::SocketAddr) -> String {
    if resolver.port() == DNS { resolver.ip().to_string() } else { resolver.to_string() }
}

fn list(words: impl Iterator<Item = String>) -> String {
    words.collect::<Vec<_>>().join(", ")
}

/// A line for each port and who answers there.
#[must_use]
pub fn text(rows: &[ServiceRow]) -> String {
    let mut lines: BTreeMap<(&str, Ipv4Addr, u16, &str), Vec<&str>> = BTreeMap::new();
    for row in rows {
        lines.entry((&row.bridge, row.address, row.port, &row.answers)).or_default().push(row.protocol);
    }
    let mut text = String::new();
    for ((bridge, address, port, answers), protocols) in lines {
        let what = if port == DNS { "DNS".to_owned() } else { format!("port {port}") };
        let protocols = protocols.join(" and ");
        // Writing to a string cannot fail.
        let _ =
            writeln!(text, "open         {what} ({protocols}) at {address} to guests of {bridge}: {answers}");
    }
    if text.is_empty() {
        text.push_str(
            "open         no service of the host to any guest beyond what its own firewall opens\n",
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_for_both_protocols_of_a_port_that_are_answered_alike() {
        let row = |protocol, port, answers: &str| ServiceRow {
            bridge: "virbr0".into(),
            address: [192, 168, 122, 1].into(),
            protocol,
            port,
            way: "host",
            answers: answers.into(),
        };
        let own = "the host's own server, through lo";
        let rows = [row("tcp", 53, own), row("udp", 53, own), row("tcp", 8000, "nobody")];
        assert_eq!(
            text(&rows),
            "open         DNS (tcp and udp) at 192.168.122.1 to guests of virbr0: the host's own server, through lo\n\
             open         port 8000 (tcp) at 192.168.122.1 to guests of virbr0: nobody\n"
        );
        assert!(text(&[]).contains("no service"));
    }
}
