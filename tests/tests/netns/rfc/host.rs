//! The host beside its guests: its ports and its numbering are its own.

use std::net::TcpListener;

use anyhow::{Context, Result, ensure};
use vmnat_tests::lab::{
    EXTERNAL, Lab, RESOLVER, SERVER_ECHO, Setup,
    client::{self, Asker, Conversation},
    guest_address,
    service::Service,
    vmnat::Hook,
};

/// Port forwards, port 0 and the ports of host sockets are no guest's: 22 and 53 where servers listen, an ephemeral one of a
/// conversation each by TCP and UDP, one that a socket takes after `up`. 1. the host has them all; 2. both guests send from the
/// same ports, to the same servers; 3. each is seen under another port of the same class, and the host's sockets have lost nothing.
#[test]
fn ports_of_the_hosts_sockets_are_no_guests() -> Result<()> {
    let mut lab = Lab::new()?;
    let _servers = [Service::tcp_echo(&lab.host, "0.0.0.0:22")?, Service::udp_echo(&lab.host, "0.0.0.0:53")?];
    let asker = Asker::new(&lab.host, 40_001)?;
    let own = asker.ask(SERVER_ECHO)?;
    let mut conversation = Conversation::open_from(&lab.host, 40_002, SERVER_ECHO)?;
    lab.up(Hook::Tcx)?;
    let _late_servers =
        [Service::tcp_echo(&lab.host, "0.0.0.0:21500")?, Service::udp_echo(&lab.host, "0.0.0.0:21501")?];
    let late = Asker::new(&lab.host, 21_502)?;
    let late_own = late.ask(SERVER_ECHO)?;

    for number in [1, 2] {
        let guest = lab.guest(number)?;
        for port in [22, 40_002, 21_500] {
            let mut guests = Conversation::open_from(guest, port, SERVER_ECHO)
                .with_context(|| format!("TCP from {port}"))?;
            let seen_as = guests.seen_as.port();
            ensure!(
                seen_as != port && (seen_as < 1024) == (port < 1024),
                "TCP {port} of guest {number} is {seen_as}"
            );
            guests.exchange(1000)?;
        }
        for port in [53, 40_001, 21_501, 21_502] {
            let seen_as = Asker::new(guest, port)?.ask(SERVER_ECHO)?.port();
            ensure!(
                seen_as != port && (seen_as < 1024) == (port < 1024),
                "UDP {port} of guest {number} is {seen_as}"
            );
        }
        ensure!(asker.ask(SERVER_ECHO)? == own, "the host's UDP conversation has lost its port");
        ensure!(late.ask(SERVER_ECHO)? == late_own, "the host's late UDP conversation has lost its port");
        conversation.exchange(10_000)?;
        for port in [22, 21_500] {
            client::converse(&lab.world, &format!("{EXTERNAL}:{port}"))?;
        }
        for port in [53, 21_501] {
            client::ask(&lab.world, &format!("{EXTERNAL}:{port}"))?;
        }
    }
    lab.assert_invariants()
}

/// RFC 4787 REQ-7: a network of guests with the numbers of the uplink's own network, whole or in part, is refused with a word and an
/// exit code of its own, and the host is left alone.
#[test]
fn inside_and_outside_with_the_same_numbers_are_refused() -> Result<()> {
    let mut lab = Lab::new()?;
    for network in ["203.0.113.0/24", "203.0.113.128/25", "203.0.0.0/16"] {
        lab.refused_with(8, &["up", "--bridge", "virbr0", "--uplink", "enp3s0", "--network", network])?;
    }
    lab.host.run(|| TcpListener::bind("0.0.0.0:2222")).context("a socket of the host")?;
    lab.up(Hook::Tcx)?;
    client::converse(lab.guest(1)?, SERVER_ECHO)?;
    lab.assert_invariants()
}

/// RFC 6888 REQ-6: 1. the way back to the guests is known to the router; 2. `up --no-nat` for one server: it sees the guest itself, a
/// second one the external address; 3. `--no-nat none`: both see the external address, and nothing of a guest's leaves any more.
#[test]
fn destinations_without_translation_see_the_guest_itself() -> Result<()> {
    let mut lab = Lab::with(Setup { ip_forward: true, ..Setup::default() })?;
    lab.router.ip(&format!("route add 192.168.122.0/24 via {EXTERNAL}\n"))?;
    let near = format!("{RESOLVER}:7000");
    lab.up_with(Hook::Tcx, &["--no-nat", &format!("{RESOLVER}/32")])?;
    let guest = lab.guest(1)?;
    let seen_as = client::ask(guest, &near)?;
    ensure!(seen_as.ip().to_string() == guest_address(1), "the near server sees {seen_as}");
    let seen_as = client::ask(guest, SERVER_ECHO)?;
    ensure!(seen_as.ip().to_string() == EXTERNAL, "the other server sees {seen_as}");
    lab.up_with(Hook::Tcx, &["--no-nat", "none"])?;
    lab.leaks.forget()?;
    let seen_as = client::ask(guest, &near)?;
    ensure!(seen_as.ip().to_string() == EXTERNAL, "after --no-nat none the near server sees {seen_as}");
    lab.assert_invariants()
}
