//! `--probe`: a synthetic guest on the bridge tries what guests do, a step a finding. It has an interface, a MAC and an
//! address of its own, and takes all of it away again, however it ends.

mod counts;
mod guest;
mod wire;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Context as _, Result};

use self::{counts::Counts, guest::Guest, wire::Lease};
use super::{
    facts::{self, Answer, Facts, Subject},
    finding::{Finding, Passes, Takes},
};
use crate::{paths::Instance, tables::Tables};

/// Causes that were found without a probe come first.
const RANK: u8 = 90;

/// How many addresses are tried before the network counts as full.
const CANDIDATES: usize = 16;

/// Somebody in the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its address.
    pub host: Ipv4Addr,
    /// Its TCP port.
    pub port: Option<u16>,
}

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is no target such as 192.0.2.1 or 192.0.2.1:443");
        if let Ok(host) = text.parse() {
            return Ok(Self { host, port: None });
        }
        let target: SocketAddrV4 = text.parse().map_err(|_| wrong())?;
        Ok(Self { host: *target.ip(), port: Some(target.port()).filter(|port| *port != 0) })
    }
}

/// A guest's address, the bits of its network, and its router.
type Way = ([u8; 4], u8, [u8; 4]);

/// A step's result, and what was counted meanwhile.
struct Tried<T> {
    result: T,
    evidence: Vec<String>,
}

/// A probe of one bridge.
struct Probe<'a> {
    facts: &'a Facts,
    subject: &'a Subject,
    guest: Guest,
    tables: Option<Tables>,
    findings: Vec<Finding>,
}

/// Tries everything from a guest of its own at the bridge of a subject.
#[must_use]
pub fn run(instance: &Instance, facts: &Facts, subject: &Subject, targets: &[Target]) -> Vec<Finding> {
    let bridge = &subject.bridge.name;
    let guest = match Guest::make(&subject.bridge) {
        Ok(guest) => guest,
        Err(error) => {
            let finding = Finding::note(
                "probe-guest",
                format!("No synthetic guest could be made at {bridge}: {error:#}."),
            );
            return vec![finding.about(bridge)];
        }
    };
    let tables = facts.vmnat.serves(bridge).then(|| Tables::open(instance).ok()).flatten();
    let mut probe = Probe { facts, subject, guest, tables, findings: Vec::new() };
    if let Err(error) = probe.walk(targets) {
        probe
            .findings
            .push(Finding::note("probe-guest", format!("The probe at {bridge} ended early: {error:#}.")));
    }
    probe.findings.into_iter().map(|finding| finding.about(bridge)).collect()
}

impl Probe<'_> {
    fn walk(&mut self, targets: &[Target]) -> Result<()> {
        let delay = self.facts.more_of(self.subject.bridge.index).stp_delay.unwrap_or(0);
        let patience =
            Duration::from_millis(u64::from(delay).saturating_mul(20)).saturating_add(Duration::from_secs(3));
        if !self.guest.wait(patience) {
            let sentence =
                format!("The bridge does not let a new port forward within {} s.", patience.as_secs());
            self.failed("probe-guest", Takes::World, sentence, Vec::new());
            return Ok(());
        }
        if self.tables.is_some() {
            // The agent attaches to the new port; the bridge's hook serves it until then.
            std::thread::sleep(Duration::from_millis(500));
        }
        let lease = self.dhcp()?;
        let Some((address, prefix, router)) = self.address(lease.as_ref())? else { return Ok(()) };
        self.guest.run(move || guest::settle(address, prefix, router))??;
        self.gateway(router)?;
        self.gateway_dns(lease.as_ref())?;
        self.world(targets)?;
        if let Some(lease) = lease {
            let mac = self.guest.mac;
            // A server that does not hear it lets the lease expire.
            let _ = self.guest.run(move || wire::release(mac, &lease))?;
        }
        Ok(())
    }

    fn dhcp(&mut self) -> Result<Option<Lease>> {
        let mac = self.guest.mac;
        let is_expected = self.facts.servers.dhcp_at(self.subject.bridge.index).is_some();
        // vmnat's own server waits, with a new guest, whether another one answers.
        let attempts = if is_expected || self.tables.is_some() { 2 } else { 1 };
        let tried = self.try_step(move || wire::dhcp(mac, attempts))?;
        match tried.result {
            Ok(Some(lease)) => {
                let from = Ipv4Addr::from(lease.server);
                self.passed(
                    "probe-dhcp",
                    format!(
                        "DHCP gave a new guest {}/{} (from {from}).",
                        Ipv4Addr::from(lease.address),
                        lease.prefix
                    ),
                );
                return Ok(Some(lease));
            }
            Ok(None) if is_expected => {
                self.failed(
                    "probe-dhcp",
                    Takes::Addresses,
                    "A new guest gets no answer to DHCP, although a server runs here.".into(),
                    tried.evidence,
                );
            }
            Ok(None) => self.findings.push(Finding::note(
                "probe-dhcp",
                "A new guest gets no answer to DHCP, and no server was found here.",
            )),
            Err(error) => {
                self.findings.push(Finding::note("probe-dhcp", format!("DHCP could not be tried: {error}.")));
            }
        }
        Ok(None)
    }

    /// By DHCP, or one that nobody answers for.
    fn address(&mut self, lease: Option<&Lease>) -> Result<Option<Way>> {
        let Some((network, gateway)) = self.subject.networks.first().copied() else {
            self.findings.push(Finding::note(
                "probe-guest",
                "The bridge has no network of which a guest could have an address.",
            ));
            return Ok(None);
        };
        if let Some(lease) = lease {
            return Ok(Some((lease.address, lease.prefix, lease.router.unwrap_or(gateway))));
        }
        // From the end: servers and people begin at the front.
        let last = u32::from(network.broadcast());
        let known = |address: Ipv4Addr| {
            self.facts.net.neighbours.iter().any(|neighbour| Ipv4Addr::from(neighbour.address) == address)
        };
        let candidates: Vec<[u8; 4]> = (1..1_000_u32)
            .filter_map(|step| last.checked_sub(step).map(Ipv4Addr::from))
            .filter(|address| network.contains(address) && *address != network.network())
            .filter(|address| address.octets() != gateway && !known(*address))
            .map(|address| address.octets())
            .take(CANDIDATES)
            .collect();
        let mac = self.guest.mac;
        for candidate in candidates {
            if !self.guest.run(move || wire::is_taken(mac, candidate))?.context("look for a free address")? {
                return Ok(Some((candidate, network.prefix_len(), gateway)));
            }
        }
        self.findings.push(Finding::note("probe-guest", format!("No free address was found in {network}.")));
        Ok(None)
    }

    fn gateway(&mut self, router: [u8; 4]) -> Result<()> {
        let tried = self.try_step(move || (wire::ping(router.into(), 56, false), wire::arp()))?;
        let router = Ipv4Addr::from(router);
        match tried.result {
            (Ok(true), _) => self.passed("probe-gateway", format!("The gateway {router} answers a ping.")),
            (Ok(false), arp) if arp.contains(&router) => {
                let sentence = format!(
                    "The gateway {router} answers ARP and no ping: the host's rules drop it, which takes nothing else from guests."
                );
                self.findings.push(Finding::note("probe-gateway", sentence).shown_by(tried.evidence));
            }
            (Ok(false), _) => self.failed(
                "probe-gateway",
                Takes::World,
                format!("The gateway {router} does not answer ARP: frames of guests do not reach the host."),
                tried.evidence,
            ),
            (Err(error), _) => self.failed(
                "probe-gateway",
                Takes::World,
                format!("The gateway {router} cannot be pinged: {error}."),
                tried.evidence,
            ),
        }
        Ok(())
    }

    fn gateway_dns(&mut self, lease: Option<&Lease>) -> Result<()> {
        let Some(gateway) = self.subject.gateway() else { return Ok(()) };
        let given = lease.and_then(|lease| lease.resolvers.first().copied());
        let server = Ipv4Addr::from(given.unwrap_or(gateway));
        let tried = self.try_step(move || facts::ask(IpAddr::V4(server)))?;
        let is_expected = given.is_some() || self.facts.servers.dns_at(server).is_some();
        match tried.result {
            Answer::Good => {
                self.passed("probe-gateway-dns", format!("The resolver of guests, {server}, answers."));
            }
            answer if is_expected => self.failed(
                "probe-gateway-dns",
                Takes::Names,
                format!("The resolver of guests, {server}, {} when a guest asks.", answer.text()),
                tried.evidence,
            ),
            answer => self.findings.push(Finding::note(
                "probe-gateway-dns",
                format!("The gateway {server} {} to DNS, and no server was found there.", answer.text()),
            )),
        }
        Ok(())
    }

    fn world(&mut self, targets: &[Target]) -> Result<()> {
        let router = self.facts.net.default_route().and_then(|route| route.gateway).map(Ipv4Addr::from);
        let hosts: Vec<Ipv4Addr> = match targets {
            [] => router.into_iter().collect(),
            targets => targets.iter().map(|target| target.host).collect(),
        };
        for host in &hosts {
            let host = *host;
            let tried = self.try_step(move || wire::ping(host, 56, false))?;
            self.told("probe-ping", &format!("a ping to {host}"), tried);
        }
        for target in targets {
            let Some(port) = target.port else { continue };
            let to = SocketAddrV4::new(target.host, port);
            let tried = self.try_step(move || wire::tcp(to).map(|()| true))?;
            self.told("probe-tcp", &format!("a TCP connection to {to}"), tried);
        }
        let resolvers = self
            .facts
            .resolvers
            .iter()
            .filter(|(_, answer)| answer.is_good())
            .filter_map(|(name, _)| name.parse::<Ipv4Addr>().ok());
        let beyond = resolvers.filter(|server| {
            !server.is_loopback()
                && !self.facts.net.addresses.iter().any(|own| Ipv4Addr::from(own.address) == *server)
        });
        if let Some(server) = beyond.into_iter().next() {
            let tried = self.try_step(move || facts::ask(IpAddr::V4(server)))?;
            let Tried { result, evidence } = tried;
            let result = match result {
                Answer::Good | Answer::Refused(_) => Ok(true),
                Answer::Silent => Ok(false),
                Answer::Failed(why) => Err(std::io::Error::other(why)),
            };
            self.told("probe-dns", &format!("a question of DNS to {server}"), Tried { result, evidence });
        }
        if let Some(host) = hosts.first().copied() {
            let is_reached = self.findings.iter().any(|finding| {
                finding.id == "probe-ping" && finding.severity == super::finding::Severity::Fine
            });
            if is_reached {
                let tried = self.try_step(move || wire::ping(host, 3_000, false))?;
                self.told("probe-fragments", &format!("a ping of 3,000 bytes to {host}"), tried);
                self.path_mtu(host)?;
            }
        }
        Ok(())
    }

    fn path_mtu(&mut self, host: Ipv4Addr) -> Result<()> {
        let mtu = self.subject.bridge.mtu;
        let bytes = usize::try_from(mtu.saturating_sub(28)).unwrap_or(0);
        let tried = self.try_step(move || (wire::ping(host, bytes, true), wire::path_mtu(host)))?;
        match tried.result {
            (Ok(true), _) => {
                self.passed("probe-mtu", format!("The path to {host} takes packets of {mtu} bytes whole."));
            }
            (_, Ok(learned)) if learned < mtu => self.passed(
                "probe-mtu",
                format!("The path to {host} takes packets of {learned} bytes whole, and says so."),
            ),
            _ => {
                let sentence = format!(
                    "Packets of {mtu} bytes to {host} vanish, and nobody says why: large downloads and uploads hang."
                );
                self.failed("probe-mtu", Takes::World, sentence, tried.evidence);
            }
        }
        Ok(())
    }

    fn told(&mut self, id: &'static str, what: &str, tried: Tried<std::io::Result<bool>>) {
        match tried.result {
            Ok(true) => self.passed(id, format!("From a new guest, {what} is answered.")),
            Ok(false) => self.failed(
                id,
                Takes::World,
                format!("From a new guest, {what} gets no answer."),
                tried.evidence,
            ),
            Err(error) => self.failed(
                id,
                Takes::World,
                format!("From a new guest, {what} fails: {error}."),
                tried.evidence,
            ),
        }
    }

    fn passed(&mut self, id: &'static str, sentence: String) {
        self.findings.push(Finding::fine(id, sentence));
    }

    fn failed(&mut self, id: &'static str, takes: Takes, sentence: String, evidence: Vec<String>) {
        let served = self.facts.vmnat.serves(&self.subject.bridge.name);
        let (passes, why) = match (served, takes) {
            (true, _) => (Passes::No, "it serves this bridge, and the step failed all the same"),
            (false, Takes::World) => {
                (Passes::Yes, "unless another finding says otherwise; run it and probe again")
            }
            (false, _) => (Passes::No, "this is between guests and the host"),
        };
        self.findings.push(Finding::problem(id, RANK, takes, sentence).shown_by(evidence).past(passes, why));
    }

    /// Runs a step inside the guest, and notes what dropped packets meanwhile.
    fn try_step<T: Send + 'static>(&self, step: impl FnOnce() -> T + Send + 'static) -> Result<Tried<T>> {
        let before = Counts::read(self.tables.as_ref());
        let result = self.guest.run(step)?;
        Ok(Tried { result, evidence: before.lost(&Counts::read(self.tables.as_ref())) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_addresses_with_or_without_a_port() {
        assert_eq!("192.0.2.1".parse(), Ok(Target { host: [192, 0, 2, 1].into(), port: None }));
        assert_eq!("192.0.2.1:443".parse(), Ok(Target { host: [192, 0, 2, 1].into(), port: Some(443) }));
        for text in ["", "example", "192.0.2.1:", "192.0.2.1:70000", "::1"] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }
}
