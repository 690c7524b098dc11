//! What routers and hosts of the world say about a guest's packets reaches the guest, whatever the firewall says.

use std::{io::ErrorKind, net::UdpSocket, time::Duration};

use anyhow::{Context as _, Result, ensure};
use vmnat_tests::lab::{
    Lab, ROUTER, SERVER, SERVER_ECHO, Setup,
    client::{self, Conversation},
    firewall::NFT_DROPS,
    frame::{Packet, Tap},
    guest_address, octets,
    vmnat::Hook,
};

on_both_hooks!(
    traceroute_sees_the_router_behind_the_host,
    a_closed_port_of_the_world_refuses_the_guest,
    a_closed_port_of_the_guest_refuses_the_world,
    a_small_link_behind_the_router_is_found_out,
);

const SOON: Duration = Duration::from_secs(2);

/// 1. a datagram of guest 1 with TTL 2 ends at the router; 2. ICMP 11/0 comes back from the router's own address, quoting
///    the packet as guest 1 sent it.
fn traceroute_sees_the_router_behind_the_host(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.host.nft(NFT_DROPS)?;
    lab.up(hook)?;
    client::ping(lab.guest(1)?, SERVER)?;
    let guest = Tap::open(lab.guest(1)?, "eth0")?;
    let mut datagram = Packet::udp(lab.outbound_ends(1, SERVER)?, 33_000, 33_435, b"traceroute");
    datagram.ttl = 2;
    guest.send(&datagram.bytes())?;
    let answer = guest.expect("time exceeded", SOON, |packet| packet.icmp() == Some((11, 0)))?;
    ensure!(answer.source == octets(ROUTER)?, "answered by {:?}", answer.source);
    ensure!(answer.header_is_sound && answer.body_is_sound, "damaged: {answer:?}");
    let quoted = answer.body.get(8..).context("no quote")?;
    ensure!(quoted.get(12..16) == Some(&datagram.source), "the quote's source is not the guest: {quoted:?}");
    ensure!(quoted.get(20..24) == datagram.body.get(..4), "the quote's ports are others: {quoted:?}");
    ensure!(lab.counter("error_inbound")? == 1, "error_inbound has not moved");
    lab.assert_sound_but_for_invalid_packets()
}

/// Guest 1's socket learns that nobody listens at the server's UDP port 9: the world's ICMP 3/3 belongs to its flow.
fn a_closed_port_of_the_world_refuses_the_guest(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.host.nft(NFT_DROPS)?;
    lab.up(hook)?;
    let refused = lab.guest(1)?.run(|| refused_by(&format!("{SERVER}:9")))?;
    ensure!(refused, "guest 1 waits for an answer that does not come");
    lab.assert_invariants()
}

/// The world's socket learns that nobody listens behind a UDP port forward: the guest's ICMP 3/3 leaves translated.
fn a_closed_port_of_the_guest_refuses_the_world(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.host.nft(NFT_DROPS)?;
    lab.up(hook)?;
    lab.vmnat_ok(&["dnat", "add", &format!("9999:{}:9/udp", guest_address(1))])?;
    let refused = lab.world.run(|| refused_by("203.0.113.2:9999"))?;
    ensure!(refused, "the world waits for an answer that does not come");
    ensure!(lab.counter("error_outbound")? > 0, "error_outbound has not moved");
    lab.assert_invariants()
}

fn refused_by(to: &str) -> Result<bool> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(SOON))?;
    socket.send(b"is anybody there?")?;
    match socket.recv(&mut [0; 64]) {
        Err(error) => Ok(error.kind() == ErrorKind::ConnectionRefused),
        Ok(_) => Ok(false),
    }
}

/// With MTU 1300 between router and world, and 1500 everywhere else: the router's ICMP 3/4 reaches guest 1, whose stream of
/// 3 MB then gets through. Without it every full segment would be lost for good.
fn a_small_link_behind_the_router_is_found_out(hook: Hook) -> Result<()> {
    let mut lab = Lab::with(Setup { offloads: false, ..Setup::default() })?;
    lab.host.nft(NFT_DROPS)?;
    lab.router.ip("link set lan0 mtu 1300\n")?;
    // The world's own packets fit, single ones too: a veth drops what its peer's MTU does not hold. It announces the usual size
    // all the same, so that the guest's do not.
    lab.world.ip("route replace default via 198.51.100.1 mtu 1300 advmss 1460\n")?;
    lab.up(hook)?;
    let mut conversation = Conversation::open(lab.guest(1)?, SERVER_ECHO)?;
    conversation.exchange(3_000_000)?;
    ensure!(lab.counter("error_inbound")? > 0, "the router had nothing to say: the test is void");
    lab.assert_invariants()
}
