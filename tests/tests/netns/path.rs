//! vmnat is a hop: it counts down the time to live and minds the size of what it sends on.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vmnat_tests::lab::{
    Lab, SERVER, SERVER_ECHO, SERVER_HTTP, Setup,
    client::{self, Conversation},
    firewall::NFT_DROPS,
    frame::{Packet, Tap},
    guest_address, octets,
    vmnat::Hook,
};

on_both_hooks!(
    time_to_live_goes_down_by_one_each_way,
    time_to_live_of_one_is_answered_by_the_gateway,
    too_big_is_answered_with_the_uplinks_mtu,
    bulk_gets_through_a_small_uplink_both_ways,
);

const SOON: Duration = Duration::from_secs(2);

/// 1. guest 1 sends an echo request with TTL 40; it passes the router's port with 39. 2. The answer, sent with 64, comes
///    back over two hops with 62.
fn time_to_live_goes_down_by_one_each_way(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    client::ping(lab.guest(1)?, SERVER)?;
    let (guest, router) = (Tap::open(lab.guest(1)?, "eth0")?, Tap::open(&lab.router, "wan0")?);
    let mut request = Packet::echo(lab.outbound_ends(1, SERVER)?, 4242, 1, b"forty hops");
    request.ttl = 40;
    guest.send(&request.bytes())?;
    let asked = router.expect("echo request", SOON, |packet| packet.icmp() == Some((8, 0)))?;
    ensure!(asked.ttl == 39, "TTL 40 went out as {}", asked.ttl);
    ensure!(asked.header_is_sound && asked.body_is_sound, "damaged on the uplink: {asked:?}");
    let answered = guest.expect("echo reply", SOON, |packet| packet.icmp() == Some((0, 0)))?;
    ensure!(answered.ttl == 62, "TTL 64 came back as {} over two hops", answered.ttl);
    ensure!(answered.header_is_sound && answered.body_is_sound, "damaged at the guest: {answered:?}");
    lab.assert_sound_but_for_invalid_packets()
}

/// Under dropping policies, with TTL 1: ICMP 11/0 from the gateway, quoting the guest's own packet; nothing leaves.
fn time_to_live_of_one_is_answered_by_the_gateway(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.host.nft(NFT_DROPS)?;
    lab.up(hook)?;
    client::ping(lab.guest(1)?, SERVER)?;
    let (guest, router) = (Tap::open(lab.guest(1)?, "eth0")?, Tap::open(&lab.router, "wan0")?);
    let mut datagram = Packet::udp(lab.outbound_ends(1, SERVER)?, 33_000, 33_434, b"traceroute");
    datagram.ttl = 1;
    guest.send(&datagram.bytes())?;
    let answer = guest.expect("time exceeded", SOON, |packet| packet.icmp() == Some((11, 0)))?;
    ensure!(answer.source == octets("192.168.122.1")?, "answered by {:?}", answer.source);
    quotes_the_guests_own_packet(&answer.body, &datagram)?;
    let left = router.collect(Duration::from_millis(200), |packet| packet.protocol == 17);
    ensure!(left.is_empty(), "it left all the same: {left:?}");
    lab.assert_sound_but_for_invalid_packets()
}

fn quotes_the_guests_own_packet(answer: &[u8], sent: &Packet) -> Result<()> {
    let quoted = answer.get(8..).context("an ICMP error without a quote")?;
    ensure!(quoted.get(12..16) == Some(&sent.source), "the quote's source is not the guest");
    ensure!(quoted.get(16..20) == Some(&sent.destination), "the quote's destination is another");
    ensure!(quoted.get(20..24) == sent.body.get(..4), "the quote's ports are others");
    Ok(())
}

/// With MTU 1400 on the uplink, a datagram of 1,450 bytes with DF: ICMP 3/4 with MTU 1400, quoting the guest's own packet.
fn too_big_is_answered_with_the_uplinks_mtu(hook: Hook) -> Result<()> {
    let mut lab = Lab::with(Setup { uplink_mtu: 1400, ..Setup::default() })?;
    lab.host.nft(NFT_DROPS)?;
    lab.up(hook)?;
    client::ask(lab.guest(1)?, SERVER_ECHO)?;
    let (guest, router) = (Tap::open(lab.guest(1)?, "eth0")?, Tap::open(&lab.router, "wan0")?);
    let datagram = Packet::udp(lab.outbound_ends(1, SERVER)?, 33_001, 7000, &[0x55; 1450 - 28]);
    guest.send(&datagram.bytes())?;
    let answer = guest.expect("fragmentation needed", SOON, |packet| packet.icmp() == Some((3, 4)))?;
    ensure!(answer.source == octets("192.168.122.1")?, "answered by {:?}", answer.source);
    let mtu = answer.body.get(6..8).and_then(|mtu| mtu.try_into().ok()).map(u16::from_be_bytes);
    ensure!(mtu == Some(1400), "it says MTU {mtu:?}");
    quotes_the_guests_own_packet(&answer.body, &datagram)?;
    let left = router.collect(Duration::from_millis(200), |packet| packet.protocol == 17);
    ensure!(
        left.is_empty(),
        "it left all the same, {} bytes",
        left.first().map_or(0, |packet| packet.body.len())
    );
    // One that fits exactly goes through.
    let fits = Packet::udp(lab.outbound_ends(1, SERVER)?, 33_002, 7000, &[0x56; 1400 - 28]);
    guest.send(&fits.bytes())?;
    router.expect("datagram of 1,400 bytes", SOON, |packet| packet.body.len() == 1380)?;
    lab.assert_sound_but_for_invalid_packets()
}

/// With MTU 1400 on the uplink and 1500 on both ends, with and without offloads: 5 MB there and back, and a download.
fn bulk_gets_through_a_small_uplink_both_ways(hook: Hook) -> Result<()> {
    for offloads in [true, false] {
        let mut lab = Lab::with(Setup { uplink_mtu: 1400, offloads, ..Setup::default() })?;
        lab.host.nft(NFT_DROPS)?;
        lab.up(hook)?;
        let mut conversation = Conversation::open(lab.guest(1)?, SERVER_ECHO)?;
        conversation.exchange(5_000_000)?;
        client::download(lab.guest(1)?, SERVER_HTTP, 5_000_000)?;
        ensure!(conversation.local()?.ip().to_string() == guest_address(1));
        lab.assert_invariants()?;
    }
    Ok(())
}
