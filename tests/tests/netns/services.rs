//! Guests reach the services of their gateway that are allowed, and no others, whatever INPUT says.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use vmnat_tests::lab::{
    GATEWAY, Lab, RESOLVER, Setup,
    client::{self, Transport, must_fail, resolve},
    dnsmasq::{Dnsmasq, NAME},
    firewall::{self, NFT_DROPS},
    octets,
    service::Service,
    vmnat::Hook,
    wait_until,
};

on_both_hooks!(
    the_hosts_own_server_answers_with_input_on_drop,
    the_hosts_own_server_answers_with_every_rp_filter_and_down_puts_it_back,
    what_is_not_listed_stays_closed_and_the_list_can_change,
    the_relay_answers_where_nobody_listens_and_gives_way_to_who_does,
    the_relay_asks_who_was_named,
    the_relay_asks_the_hosts_own_server_where_the_loopback_stays_strict,
);

const SHORT: Duration = Duration::from_millis(400);

/// Debian's iptables users write this rule first.
const INVALID_DROPS: &str = "
table inet strict {
  chain input {
    type filter hook input priority -10; policy accept;
    ct state invalid drop
  }
}
";

fn at_gateway(port: u16) -> String {
    format!("{GATEWAY}:{port}")
}

/// Both guests ask by UDP and TCP, and get the name that the host alone knows.
fn all_resolve(lab: &Lab) -> Result<()> {
    for guest in &lab.guests {
        for over in [Transport::Udp, Transport::Tcp] {
            let found = resolve(guest, over, &at_gateway(53), NAME.0, client::PATIENCE)?;
            ensure!(found == NAME.1, "{found:?}");
        }
    }
    Ok(())
}

fn nobody_resolves(lab: &Lab) -> Result<()> {
    for over in [Transport::Udp, Transport::Tcp] {
        let asked = resolve(lab.guest(1)?, over, &at_gateway(53), NAME.0, SHORT);
        must_fail("a question through a closed INPUT", asked)?;
    }
    Ok(())
}

/// How `status` says that names are answered.
fn answers(lab: &Lab) -> Result<String> {
    let status = lab.vmnat_ok(&["status"])?;
    let line = status.lines().find(|line| line.contains("DNS (tcp and udp) at 192.168.122.1"));
    Ok(line.with_context(|| format!("no line about DNS in {status}"))?.to_owned())
}

/// 1. The host's dnsmasq is cut off from its guests, by nftables, by iptables-legacy, with the bridge's packets shown to
///    both or not; 2. after `up` it answers them all.
fn the_hosts_own_server_answers_with_input_on_drop(hook: Hook) -> Result<()> {
    for (nft, legacy, br_netfilter) in [(true, false, false), (false, true, true), (true, true, true)] {
        let mut lab = Lab::with(Setup { br_netfilter, ..Setup::default() })?;
        if nft {
            lab.host.nft(NFT_DROPS)?;
            lab.host.nft(INVALID_DROPS)?;
        }
        if legacy {
            firewall::legacy_drops(&lab.host)?;
        }
        let _server = Dnsmasq::start(&lab, "")?;
        nobody_resolves(&lab)?;
        lab.up(hook)?;
        all_resolve(&lab)?;
        let line = answers(&lab)?;
        ensure!(line.ends_with("the host's own server, through lo"), "{line}");
        ensure!(lab.counter("gateway_service")? > 0);
        lab.assert_invariants()?;
    }
    Ok(())
}

/// ufw writes strict filtering to `conf.all`, at any time.
fn the_hosts_own_server_answers_with_every_rp_filter_and_down_puts_it_back(hook: Hook) -> Result<()> {
    const LOOPBACK: &str = "net/ipv4/conf/lo/rp_filter";
    for rp_filter in [0, 1, 2] {
        let mut lab = Lab::with(Setup { rp_filter, ..Setup::default() })?;
        lab.host.set_sysctl(LOOPBACK, "1")?;
        lab.host.nft(NFT_DROPS)?;
        let _server = Dnsmasq::start(&lab, "")?;
        lab.up(hook)?;
        all_resolve(&lab)?;
        for scope in ["all", "lo"] {
            lab.host.set_sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0")?;
        }
        lab.host.set_sysctl(LOOPBACK, "1")?;
        lab.host.set_sysctl("net/ipv4/conf/all/rp_filter", "1")?;
        wait_until("the agent has heard of it", Duration::from_secs(5), || {
            Ok(lab.host.sysctl(LOOPBACK)? == "2")
        })?;
        all_resolve(&lab)?;
        lab.assert_invariants()?;
        lab.vmnat_ok(&["down"])?;
        ensure!(lab.host.sysctl(LOOPBACK)? == "1", "rp_filter of lo is not as it was");
    }
    Ok(())
}

/// 1. Only names are open; 2. port 7000 over TCP beside them; 3. nothing.
fn what_is_not_listed_stays_closed_and_the_list_can_change(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    let (shell, echo) = (at_gateway(22), at_gateway(7000));
    let _shell = Service::tcp_echo(&lab.host, "0.0.0.0:22")?;
    lab.host.nft(NFT_DROPS)?;
    let _server = Dnsmasq::start(&lab, "")?;
    lab.up(hook)?;
    all_resolve(&lab)?;
    let calls = |at: &str| client::connect(lab.guest(1)?, None, at, SHORT);
    let asks = || client::Asker::new(lab.guest(1)?, 0)?.ask_within(&echo, 64, SHORT);
    must_fail("sshd's port", calls(&shell))?;
    must_fail("TCP to the echo", calls(&echo))?;
    must_fail("UDP to the echo", asks())?;

    lab.vmnat_ok(&["up", "--service", "dns,7000/tcp"])?;
    all_resolve(&lab)?;
    client::converse(lab.guest(1)?, &echo)?;
    must_fail("sshd's port", calls(&shell))?;
    must_fail("UDP to the echo", asks())?;
    let status = lab.vmnat_ok(&["status"])?;
    let line = "port 7000 (tcp) at 192.168.122.1 to guests of virbr0: the host's own server, through lo";
    ensure!(status.contains(line), "{status}");

    lab.vmnat_ok(&["up", "--service", "none"])?;
    nobody_resolves(&lab)?;
    must_fail("TCP to the echo", calls(&echo))?;
    let status = lab.vmnat_ok(&["status"])?;
    ensure!(status.contains("no service of the host"), "{status}");
    let status = lab.listing(&["status"])?;
    let services = &status.at(0)["services"];
    ensure!(services.as_array().is_some_and(Vec::is_empty), "{services}");
    lab.assert_invariants()
}

/// The lab's host asks the world's resolver, as its own `resolv.conf` says.
fn use_worlds_resolver() -> Result<()> {
    fs::write("/run/resolv.conf", format!("nameserver {RESOLVER}\n"))?;
    let (from, to) = ("/run/resolv.conf", "/etc/resolv.conf");
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).context("a resolv.conf of its own")
}

/// The world's resolver answers every question with its caller's address: the host itself has asked.
fn resolved_by_host(lab: &Lab, over: Transport) -> Result<()> {
    let found = resolve(lab.guest(1)?, over, &at_gateway(53), "www.example.org", client::PATIENCE)?;
    ensure!(found == octets("203.0.113.2")?, "{found:?}");
    Ok(())
}

/// 1. A bridge without a server, as systemd-networkd makes it: the agent asks the host's resolvers; 2. a server starts and
///    finds its port free, and answers from its first moment on; 3. it ends, and the agent answers again.
fn the_relay_answers_where_nobody_listens_and_gives_way_to_who_does(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.host.nft(NFT_DROPS)?;
    use_worlds_resolver()?;
    lab.up(hook)?;
    let _names = Service::names_over_tcp(&lab.world, &format!("{RESOLVER}:53"))?;
    for over in [Transport::Udp, Transport::Tcp] {
        resolved_by_host(&lab, over)?;
    }
    let line = answers(&lab)?;
    ensure!(line.contains(&format!("the host's resolvers ({RESOLVER}), because nobody listens")), "{line}");
    let server = Dnsmasq::start(&lab, "")?;
    all_resolve(&lab)?;
    drop(server);
    // A process that it made for a question by TCP may hold its sockets a moment longer.
    wait_until("the agent answers again", Duration::from_secs(30), || {
        Ok(resolved_by_host(&lab, Transport::Udp).is_ok())
    })?;
    lab.assert_invariants()
}

/// For a host whose own server is dead, or asks a dead resolver.
fn the_relay_asks_who_was_named(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.host.nft(NFT_DROPS)?;
    let _server = Dnsmasq::start(&lab, "server=198.51.100.200")?;
    lab.up_with(hook, &["--dns", RESOLVER])?;
    resolved_by_host(&lab, Transport::Udp)?;
    let line = answers(&lab)?;
    ensure!(line.ends_with(&format!("relayed by the agent to {RESOLVER}")), "{line}");
    lab.vmnat_ok(&["up", "--dns", "none"])?;
    all_resolve(&lab)?;
    lab.assert_invariants()
}

/// As in a container that may not write to `/proc/sys`.
fn the_relay_asks_the_hosts_own_server_where_the_loopback_stays_strict(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.host.nft(NFT_DROPS)?;
    let _server = Dnsmasq::start(&lab, "")?;
    lab.up_with(hook, &["--service", "none"])?;
    lab.host.set_sysctl("net/ipv4/conf/all/rp_filter", "1")?;
    let none = None::<&str>;
    let proc = "/proc/sys";
    mount(Some(proc), proc, none, MsFlags::MS_BIND, none)?;
    mount(none, proc, none, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none)?;
    let agent = lab.agent()?;
    lab.kill_agent()?;
    let printed = lab.vmnat_ok(&["up", "--service", "dns,7000/tcp"])?;
    ensure!(agent != lab.agent()?, "the agent is the old one, which may write");
    ensure!(printed.contains("warning: guests reach 7000/tcp at 192.168.122.1 only where"), "{printed}");
    all_resolve(&lab)?;
    let line = answers(&lab)?;
    let why = "relayed by the agent to the host's own server, because rp_filter is strict at lo";
    ensure!(line.contains(why), "{line}");
    let refused = client::connect(lab.guest(1)?, None, &at_gateway(7000), SHORT);
    must_fail("what cannot come in by the loopback", refused)?;
    lab.assert_invariants()
}
