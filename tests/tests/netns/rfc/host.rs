//! The host beside its guests: its ports and its numbering are its own.

use std::net::TcpListener;

use anyhow::{Context, Result, ensure};
use vmnat_tests::lab::{
    BRIDGE_MAC, EXTERNAL, Lab, RESOLVER, SERVER, SERVER_ECHO, Setup,
    client::{self, Asker, Conversation},
    frame::{Ends, Packet, Tap},
    guest_address, octets,
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
    lab.up(Hook::of_the_kernel())?;
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
    lab.up(Hook::of_the_kernel())?;
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
    lab.up_with(Hook::of_the_kernel(), &["--no-nat", &format!("{RESOLVER}/32")])?;
    let guest = lab.guest(1)?;
    let seen_as = client::ask(guest, &near)?;
    ensure!(seen_as.ip().to_string() == guest_address(1), "the near server sees {seen_as}");
    let seen_as = client::ask(guest, SERVER_ECHO)?;
    ensure!(seen_as.ip().to_string() == EXTERNAL, "the other server sees {seen_as}");
    lab.up_with(Hook::of_the_kernel(), &["--no-nat", "none"])?;
    lab.leaks.forget()?;
    let seen_as = client::ask(guest, &near)?;
    ensure!(seen_as.ip().to_string() == EXTERNAL, "after --no-nat none the near server sees {seen_as}");
    lab.assert_invariants()
}

/// A kind of packet that a guest sends.
type Kind = fn(Ends) -> Packet;

/// What guest `number` of 200 sends: each behind the first guest's port, with an address and a MAC of its own.
fn busy(number: u8, packet: Kind, to: &str) -> Result<Vec<u8>> {
    let ends = Ends {
        from_mac: [0x52, 0x54, 0, 0, 1, number],
        to_mac: BRIDGE_MAC,
        source: [192, 168, 122, number],
        destination: octets(to)?,
    };
    Ok(packet(ends).bytes())
}

/// 1. 200 guests ping with one identifier, ask for names and the time and renew leases, from the ports of these protocols, towards the
///    same servers; 2. meanwhile the host does the same from the same ports, with the same identifier, and has all its answers.
#[test]
fn the_host_keeps_its_services_beside_200_busy_guests() -> Result<()> {
    const IDENTIFIER: u16 = 77;
    let mut lab = Lab::new()?;
    let _servers = [123, 67].map(|port| Service::udp_echo(&lab.world, &format!("{SERVER}:{port}")));
    lab.up(Hook::of_the_kernel())?;
    let kinds: [(Kind, &str); 4] = [
        (|ends| Packet::echo(ends, IDENTIFIER, 1, b"ping"), SERVER),
        (|ends| Packet::udp(ends, 123, 123, b"time"), SERVER),
        (|ends| Packet::udp(ends, 68, 67, b"lease"), SERVER),
        (|ends| Packet::udp(ends, 40_053, 53, b"name"), RESOLVER),
    ];
    let wire = Tap::open(lab.guest(1)?, "eth0")?;
    for round in 0..3 {
        for number in 20..220 {
            for (packet, to) in kinds {
                wire.send(&busy(number, packet, to)?)?;
            }
        }
        let what = || format!("round {round}");
        client::ping_as(&lab.host, IDENTIFIER, SERVER, client::PATIENCE).with_context(what)?;
        for (from, to) in [(123, format!("{SERVER}:123")), (68, format!("{SERVER}:67"))] {
            let seen_as = Asker::new(&lab.host, from)?.ask(&to).with_context(what)?;
            ensure!(seen_as.port() == from, "the host's port {from} is seen as {seen_as}");
        }
        lab.host.exec(&["busybox", "nslookup", "-type=a", "host.lab", RESOLVER]).with_context(what)?;
    }
    ensure!(lab.flow_count()? > 600, "only {} flows of 200 guests", lab.flow_count()?);
    lab.assert_sound_but_for_invalid_packets()
}

/// A10 in full, with the quotas that nobody set: one guest opens 70,000 UDP flows and 35,000 handshakes as fast as it can. Its share
/// stops it, a sibling opens flows as ever, and the sessions of both go on.
#[test]
fn seventy_thousand_flows_of_a_guest_starve_nobody() -> Result<()> {
    let mut lab = Lab::new()?;
    lab.router.ip("route add blackhole 192.0.2.0/24\n")?;
    lab.up(Hook::of_the_kernel())?;
    let mut sessions =
        [Conversation::open(lab.guest(1)?, SERVER_ECHO)?, Conversation::open(lab.guest(2)?, SERVER_ECHO)?];
    let wire = Tap::open(lab.guest(1)?, "eth0")?;
    for number in 0..105_000_u32 {
        let [_, _, high, low] = number.to_be_bytes();
        let remote = [192, 0, 2, 1 + (number % 7) as u8];
        let ends = Ends { destination: remote, ..lab.outbound_ends(1, SERVER)? };
        let port = u16::from_be_bytes([high, low]);
        let packet = if number % 3 == 0 {
            Packet::tcp(ends, port, 80, 1, 0x02)
        } else {
            Packet::udp(ends, port, 80, b"flow")
        };
        wire.send(&packet.bytes())?;
        if number % 15_000 == 0 {
            client::ask(lab.guest(2)?, SERVER_ECHO)?;
        }
    }
    client::converse(lab.guest(2)?, SERVER_ECHO)?;
    for session in &mut sessions {
        session.exchange(50_000)?;
    }
    let rows = lab.rows(&["guests"])?;
    let refused = rows.iter().find(|row| row["address"] == guest_address(1)).map(|row| &row["refused"]);
    let refused = refused.and_then(serde_json::Value::as_u64).context("guest 1 was refused nothing")?;
    ensure!(refused > 60_000, "only {refused} of 105,000 were refused");
    ensure!(lab.flow_count()? <= 16_384 + 16, "{} flows", lab.flow_count()?);
    lab.assert_sound_but_for_invalid_packets()
}
