//! Guests reach the world: bulk, small, many, and at once.

use std::thread;

use anyhow::{Result, ensure};
use vmnat_tests::lab::{
    EXTERNAL, Lab, RESOLVER, SERVER, SERVER_ECHO, SERVER_HTTP, STRANGER, Setup,
    client::{self, Asker, Conversation},
    iperf::{self, Way},
    set_offloads,
    vmnat::Hook,
};

on_both_hooks!(
    guest_pings_the_world_and_is_seen_as_the_external_address,
    tcp_bulk_goes_both_ways_with_offloads,
    tcp_bulk_goes_both_ways_with_offloads_off_on_the_uplink,
    tcp_bulk_goes_both_ways_with_offloads_off_in_the_guest,
    large_transfers_arrive_unharmed,
    udp_of_every_size_arrives_unharmed,
    a_thousand_connections_live_at_once,
    two_guests_with_one_source_port_reach_the_same_server,
    one_internal_endpoint_has_one_external_endpoint,
);

/// 1. guest 1 pings .10; 2. talks TCP and UDP to it, which report their caller.
fn guest_pings_the_world_and_is_seen_as_the_external_address(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let guest = lab.guest(1)?;
    client::ping(guest, SERVER)?;
    let over_tcp = client::converse(guest, SERVER_ECHO)?;
    let over_udp = client::ask(guest, SERVER_ECHO)?;
    ensure!(over_tcp.ip().to_string() == EXTERNAL, "seen as {over_tcp} over TCP");
    ensure!(over_udp.ip().to_string() == EXTERNAL, "seen as {over_udp} over UDP");
    lab.assert_invariants()
}

fn bulk_both_ways(lab: &Lab) -> Result<()> {
    for way in [Way::Up, Way::Down] {
        let bits = iperf::run(lab.guest(1)?, &lab.world, SERVER, way, 1)?;
        eprintln!("{way:?}: {:.0} Mbit/s", bits / 1e6);
        ensure!(bits > 50e6, "{way:?}: only {:.1} Mbit/s", bits / 1e6);
    }
    Ok(())
}

/// iperf3, one stream each way, segments of up to 64 kB with checksums left to the receiver.
fn tcp_bulk_goes_both_ways_with_offloads(hook: Hook) -> Result<()> {
    let mut lab = Lab::with(Setup { offloads: true, ..Setup::default() })?;
    lab.up(hook)?;
    bulk_both_ways(&lab)?;
    lab.assert_invariants()
}

/// The same with tx, tso and gso off on both ends of the uplink: the host computes each checksum after the
/// translation, and the peers verify it.
fn tcp_bulk_goes_both_ways_with_offloads_off_on_the_uplink(hook: Hook) -> Result<()> {
    let mut lab = Lab::with(Setup { offloads: false, ..Setup::default() })?;
    lab.up(hook)?;
    bulk_both_ways(&lab)?;
    lab.assert_invariants()
}

/// The same with tx, tso and gso off in the guest and in the world: complete checksums enter the translation.
fn tcp_bulk_goes_both_ways_with_offloads_off_in_the_guest(hook: Hook) -> Result<()> {
    let mut lab = Lab::with(Setup { offloads: true, ..Setup::default() })?;
    set_offloads(lab.guest(1)?, "eth0", "off")?;
    set_offloads(&lab.world, "eth0", "off")?;
    lab.up(hook)?;
    bulk_both_ways(&lab)?;
    lab.assert_invariants()
}

/// 1. guest 1 sends 20 MB and reads them back; 2. downloads 20 MB by HTTP, whose hash is known.
fn large_transfers_arrive_unharmed(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let mut conversation = Conversation::open(lab.guest(1)?, SERVER_ECHO)?;
    conversation.exchange(20_000_000)?;
    conversation.close()?;
    client::download(lab.guest(1)?, SERVER_HTTP, 20_000_000)?;
    lab.assert_invariants()
}

/// Every length from 0 to 40, odd and even ones beyond, and the largest that needs no fragments.
fn udp_of_every_size_arrives_unharmed(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let asker = Asker::new(lab.guest(1)?, 0)?;
    for size in (0..=40).chain([63, 64, 65, 511, 512, 1001, 1440, 1448]) {
        // The answer carries the caller's address too, and must not need fragments either.
        asker.ask_within(SERVER_ECHO, size, client::PATIENCE)?;
    }
    lab.assert_invariants()
}

/// 1. guest 1 opens 1,000 connections and keeps them; 2. each then exchanges 1,000 bytes; 3. no two share a port.
fn a_thousand_connections_live_at_once(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let guest = lab.guest(1)?;
    let open = || (0..125).map(|_| Conversation::open(guest, SERVER_ECHO)).collect::<Result<Vec<_>>>();
    let batches: Vec<_> = thread::scope(|scope| {
        let openers: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
        openers
            .into_iter()
            .map(|opener| opener.join().map_err(|_| anyhow::anyhow!("an opener panicked")))
            .collect()
    });
    let mut conversations = Vec::new();
    for batch in batches {
        conversations.extend(batch??);
    }
    for conversation in &mut conversations {
        conversation.exchange(1000)?;
    }
    let mut ports: Vec<u16> = conversations.iter().map(|conversation| conversation.seen_as.port()).collect();
    ports.sort_unstable();
    ports.dedup();
    ensure!(ports.len() == 1000, "1,000 connections came from {} ports", ports.len());
    let flows = lab.flow_count()?;
    ensure!(flows >= 1000, "{flows} flows for 1,000 live connections");
    drop(conversations);
    lab.assert_invariants()
}

/// Guest 1 and guest 2 both from port 25000 (TCP, UDP) and with echo identifier 77, at once, to one server.
fn two_guests_with_one_source_port_reach_the_same_server(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let (one, two) = (lab.guest(1)?, lab.guest(2)?);
    let mut first = Conversation::open_from(one, 25000, SERVER_ECHO)?;
    let mut second = Conversation::open_from(two, 25000, SERVER_ECHO)?;
    ensure!(first.seen_as != second.seen_as, "both are {}", first.seen_as);
    first.exchange(100_000)?;
    second.exchange(100_000)?;
    first.exchange(1000)?;
    let (asker_one, asker_two) = (Asker::new(one, 25000)?, Asker::new(two, 25000)?);
    let (seen_one, seen_two) = (asker_one.ask(SERVER_ECHO)?, asker_two.ask(SERVER_ECHO)?);
    ensure!(seen_one != seen_two, "both are {seen_one} over UDP");
    ensure!(asker_one.ask(SERVER_ECHO)? == seen_one, "guest 1 has moved");
    thread::scope(|scope| {
        let other = scope.spawn(|| client::ping_as(two, 77, SERVER, client::PATIENCE));
        client::ping_as(one, 77, SERVER, client::PATIENCE)?;
        other.join().map_err(|_| anyhow::anyhow!("the second ping panicked"))?
    })?;
    lab.assert_invariants()
}

/// RFC 4787 REQ-1: one socket of a guest asks three servers and is the same caller to each; so it is for the
/// guest that came second to its port.
fn one_internal_endpoint_has_one_external_endpoint(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    for number in [1, 2] {
        let asker = Asker::new(lab.guest(number)?, 21_000)?;
        let first = asker.ask(SERVER_ECHO)?;
        for other in [format!("{RESOLVER}:7000"), format!("{STRANGER}:7000")] {
            let seen_as = asker.ask(&other)?;
            ensure!(seen_as == first, "guest {number} is {first} to one server and {seen_as} to {other}");
        }
    }
    lab.assert_invariants()
}
