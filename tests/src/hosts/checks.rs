//! What guests, the world and the host itself can do, tried all at once.

use std::{collections::BTreeMap, fmt, thread, time::Duration};

use anyhow::{Context, Result, ensure};

use super::stage::{Guests, PRINT_LEASE, Stage};
use crate::lab::{
    EXTERNAL, RESOLVER, SERVER, SERVER_ECHO, SERVER_HTTP,
    client::{self, Asker},
    namespace::Namespace,
    resolver,
    service::ECHO,
};

/// How long a try may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// The size of a datagram that no link carries in one piece.
const FRAGMENTED: usize = 3000;

/// The size of a download.
const DOWNLOAD: usize = 1_000_000;

/// The port at which Docker publishes its container.
pub const PUBLISHED: u16 = 8080;

/// What the container serves.
pub const PAGE: &str = "published\n";

/// Something that has to work on a host of guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Check {
    /// A guest pings the world.
    Ping,
    /// A guest talks TCP with the world, which sees the host's address.
    Tcp,
    /// A guest downloads over HTTP, and the hash is right.
    Http,
    /// A guest talks UDP with the world, which sees the host's address.
    Udp,
    /// A guest asks a name server of the world.
    Dns,
    /// A guest's datagrams go and come in fragments.
    Fragments,
    /// A guest pings its gateway.
    Gateway,
    /// A guest asks its gateway for a name.
    GatewayDns,
    /// A guest without an address gets one.
    Dhcp,
    /// A guest talks to its sibling.
    Sibling,
    /// The world reaches a guest's server at the host's address, and the guest sees who calls.
    Forward,
    /// The host itself reaches the world and its guests.
    Host,
    /// The world reaches the port that Docker publishes.
    Published,
    /// Docker's container reaches the world.
    Egress,
    /// Nothing has left by the uplink with a guest's own address.
    NoLeak,
    /// A TCP stream that was open before the host changed lives on.
    Stream,
    /// A UDP flow and pings that were there before the host changed go on.
    OldFlows,
    /// UDP flows that open while the host changes, and after.
    NewFlows,
}

impl Check {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 18] = [
        Self::Ping,
        Self::Tcp,
        Self::Http,
        Self::Udp,
        Self::Dns,
        Self::Fragments,
        Self::Gateway,
        Self::GatewayDns,
        Self::Dhcp,
        Self::Sibling,
        Self::Forward,
        Self::Host,
        Self::Published,
        Self::Egress,
        Self::NoLeak,
        Self::Stream,
        Self::OldFlows,
        Self::NewFlows,
    ];

    /// All that a guest does with the world.
    pub const WORLD: [Self; 6] = [Self::Ping, Self::Tcp, Self::Http, Self::Udp, Self::Dns, Self::Fragments];

    /// Its name in the table.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Udp => "udp",
            Self::Dns => "dns",
            Self::Fragments => "fragments",
            Self::Gateway => "gateway",
            Self::GatewayDns => "gw dns",
            Self::Dhcp => "dhcp",
            Self::Sibling => "sibling",
            Self::Forward => "forward",
            Self::Host => "host",
            Self::Published => "published",
            Self::Egress => "egress",
            Self::NoLeak => "no leak",
            Self::Stream => "stream",
            Self::OldFlows => "old flows",
            Self::NewFlows => "new flows",
        }
    }

    /// The check of a name in the table.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|check| check.name() == name)
    }

    /// What it tries, for the page's legend.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Ping => "a guest pings the world",
            Self::Tcp => "a guest's TCP conversation with the world, which sees the host's address",
            Self::Http => "a guest downloads 1 MB over HTTP; the SHA-256 is right",
            Self::Udp => "a guest asks the world over UDP, which sees the host's address",
            Self::Dns => "a guest asks a name server of the world",
            Self::Fragments => "a guest's datagram of 3,000 bytes, which goes and comes in IPv4 fragments",
            Self::Gateway => "a guest pings its gateway",
            Self::GatewayDns => "a guest asks its gateway for a name",
            Self::Dhcp => "a guest without an address gets one, with its gateway",
            Self::Sibling => "a guest's TCP conversation with its sibling on the bridge",
            Self::Forward => {
                "the world calls port 80 of the host and reaches a guest, which sees the caller's address"
            }
            Self::Host => "the host's own ping, UDP and TCP with the world, and TCP with a guest",
            Self::Published => "the world reaches the port that Docker publishes",
            Self::Egress => "Docker's container reaches the world",
            Self::NoLeak => "nothing has left by the uplink with a guest's own address",
            Self::Stream => {
                "a guest's TCP stream that was open before lives through it; the SHA-256 is right"
            }
            Self::OldFlows => {
                "a guest's UDP flow and pings that were there before go on within seconds, from the same external port"
            }
            Self::NewFlows => "UDP flows that a guest opens every 20 ms are answered again within seconds",
        }
    }
}

/// What the checks of one moment have found: how each that failed did, and which there were.
#[derive(Debug, Default)]
pub struct Findings(BTreeMap<Check, Result<()>>);

impl Findings {
    /// The checks that failed.
    #[must_use]
    pub fn failed(&self) -> Vec<Check> {
        self.0.iter().filter(|(_, result)| result.is_err()).map(|(check, _)| *check).collect()
    }

    /// Adds what another check has found, or overrides what it found before.
    pub fn note(&mut self, check: Check, result: Result<()>) {
        self.0.insert(check, result);
    }

    /// The checks that were tried.
    #[must_use]
    pub fn tried(&self) -> Vec<Check> {
        self.0.keys().copied().collect()
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (check, result) in &self.0 {
            match result {
                Ok(()) => writeln!(formatter, "  {} ok", check.name())?,
                Err(error) => writeln!(formatter, "  {} FAILS: {error:#}", check.name())?,
            }
        }
        Ok(())
    }
}

/// Tries everything, all at once.
///
/// # Errors
///
/// When the trying itself is not possible, which says nothing about the host.
pub fn all(stage: &Stage) -> Result<Findings> {
    stage.lab.leaks.forget()?;
    let mut findings = thread::scope(|scope| {
        let mut running = Vec::new();
        for guests in &stage.networks {
            for check in guests_checks() {
                running.push((check, scope.spawn(move || of_a_guest(stage, guests, check))));
            }
        }
        running.push((Check::Forward, scope.spawn(|| forward(stage))));
        running.push((Check::Host, scope.spawn(|| host(stage))));
        if stage.has_container {
            running.push((Check::Published, scope.spawn(|| published(stage))));
            running.push((Check::Egress, scope.spawn(|| egress(stage))));
        }
        let mut findings = Findings::default();
        for (check, thread) in running {
            let result = thread.join().map_err(|_| anyhow::anyhow!("the check {} panicked", check.name()))?;
            // Of several networks, one that fails is enough.
            if result.is_err() || !findings.0.contains_key(&check) {
                findings.0.insert(check, result);
            }
        }
        Ok::<_, anyhow::Error>(findings)
    })?;
    findings.0.insert(Check::NoLeak, stage.lab.leaks.assert_none());
    Ok(findings)
}

fn guests_checks() -> impl Iterator<Item = Check> {
    Check::WORLD.into_iter().chain([Check::Gateway, Check::GatewayDns, Check::Dhcp, Check::Sibling])
}

fn of_a_guest(stage: &Stage, guests: &Guests, check: Check) -> Result<()> {
    let guest = stage.lab.guest(guests.first)?;
    let network = guests.network;
    match check {
        Check::Ping => client::ping_as(guest, 1, SERVER, PATIENCE).map(drop),
        Check::Tcp => seen_as_the_host(&client::converse(guest, SERVER_ECHO)?.ip().to_string()),
        Check::Http => client::download(guest, SERVER_HTTP, DOWNLOAD),
        Check::Udp => ask(guest, 200),
        Check::Fragments => ask(guest, FRAGMENTED),
        Check::Dns => {
            seen_as_the_host(&resolver::resolve(guest, RESOLVER, "whoami.lab", PATIENCE)?.to_string())
        }
        Check::Gateway => client::ping_as(guest, 2, &network.gateway(), PATIENCE).map(drop),
        Check::GatewayDns => {
            let answer = resolver::resolve(guest, &network.gateway(), "whoami.lab", PATIENCE)?;
            seen_as_the_host(&answer.to_string())
        }
        Check::Dhcp => lease(guests),
        _ => client::converse(guest, &format!("{}:{ECHO}", network.address(true))).map(drop),
    }
}

fn seen_as_the_host(address: &str) -> Result<()> {
    ensure!(address == EXTERNAL, "the world saw {address}");
    Ok(())
}

fn ask(guest: &Namespace, size: usize) -> Result<()> {
    let seen = Asker::new(guest, 0)?.ask_within(SERVER_ECHO, size, PATIENCE)?;
    seen_as_the_host(&seen.ip().to_string())
}

/// A lease by a real client, which prints what it was given instead of setting it.
fn lease(guests: &Guests) -> Result<()> {
    let client = format!("busybox udhcpc -i eth0 -n -q -f -t 4 -T 1 -s {PRINT_LEASE}");
    let printed = guests.newcomer.exec(&client.split(' ').collect::<Vec<_>>())?;
    let value = |name: &str| {
        let mut lines = printed.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        lines.next_back().with_context(|| format!("a lease without {name}:\n{printed}"))
    };
    let (address, router) = (value("ip")?, value("router")?);
    ensure!(address.starts_with(&format!("{}.", guests.network.prefix)), "a lease of {address}");
    ensure!(router == guests.network.gateway(), "a lease with the gateway {router}");
    Ok(())
}

fn forward(stage: &Stage) -> Result<()> {
    let page = client::get(&stage.lab.world, &format!("{EXTERNAL}:80"), "/")?;
    let caller = String::from_utf8_lossy(&page).into_owned();
    ensure!(caller.starts_with(&format!("{SERVER}:")), "the guest saw {caller:?} call");
    Ok(())
}

fn host(stage: &Stage) -> Result<()> {
    stage.lab.assert_host_reaches_the_world()?;
    let guest = stage.network()?.address(true);
    client::converse(&stage.lab.host, &format!("{guest}:{ECHO}"))
        .context("the host calling a guest")
        .map(drop)
}

fn published(stage: &Stage) -> Result<()> {
    let page = client::get(&stage.lab.world, &format!("{EXTERNAL}:{PUBLISHED}"), "/")?;
    ensure!(page == PAGE.as_bytes(), "another page: {:?}", String::from_utf8_lossy(&page));
    Ok(())
}

fn egress(stage: &Stage) -> Result<()> {
    let echo = ECHO.to_string();
    let client = ["docker", "exec", "web", "/bin/busybox", "nc", "-w", "4", SERVER, &echo];
    let seen = stage.run(&client)?;
    let (address, _port) = seen.split_once(':').with_context(|| format!("the server's line was {seen:?}"))?;
    seen_as_the_host(address)
}
