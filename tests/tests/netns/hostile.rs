//! What a guest or a stranger forges arrives nowhere.
//!
//! Raw frames pass the sender's own connection tracking unseen, so what it says of the answers means nothing here.

use std::time::Duration;

use anyhow::{Result, ensure};
use vmnat_tests::lab::{
    EXTERNAL, Lab, ROUTER, ROUTER_MAC, SERVER, SERVER_ECHO, STRANGER, Setup,
    client::{self, Asker, Conversation},
    frame::{Ipv4, Packet, Tap},
    guest_address, octets,
    vmnat::Hook,
};

on_both_hooks!(
    a_tagged_frame_never_leaves,
    a_sibling_cannot_ride_on_anothers_flow,
    a_forged_source_never_leaves,
    the_world_cannot_address_a_guest_directly,
    a_forged_private_source_from_outside_reaches_nobody,
    an_unsolicited_packet_reaches_no_guest,
    nonsense_flags_never_leave,
    a_guest_cannot_take_a_port_of_the_host,
);

const MARK: &[u8] = b"marked by the test";
const A_WHILE: Duration = Duration::from_millis(250);

/// An ICMP error that quotes the mark is an answer to it, and no arrival.
fn is_marked(packet: &Ipv4) -> bool {
    !matches!(packet.icmp(), Some((3 | 11, _))) && packet.body.windows(MARK.len()).any(|bytes| bytes == MARK)
}

/// What the router itself sends towards the host, such as an echo of the mark, is no arrival either.
fn assert_none_marked(at: &Tap, what: &str) -> Result<()> {
    let arrived = at.collect(A_WHILE, |packet| is_marked(packet) && packet.from_mac != ROUTER_MAC);
    ensure!(arrived.is_empty(), "{what}: {} arrived, the first of them {:?}", arrived.len(), arrived.first());
    Ok(())
}

/// 1. an untagged marked datagram of guest 1 arrives at the router; 2. the same with VLAN tags 5 and 0 does not, neither
///    before its flow exists nor after.
fn a_tagged_frame_never_leaves(hook: Hook) -> Result<()> {
    let mut lab = Lab::with(Setup { ip_forward: true, ..Setup::default() })?;
    lab.up(hook)?;
    client::ask(lab.guest(1)?, SERVER_ECHO)?;
    let (guest, router) = (Tap::open(lab.guest(1)?, "eth0")?, Tap::open(&lab.router, "wan0")?);
    let plain = Packet::udp(lab.outbound_ends(1, SERVER)?, 31_000, 9, MARK);
    let tagged = |tag| Packet { vlan: Some(tag), ..plain.clone() }.bytes();
    guest.send(&tagged(5))?;
    assert_none_marked(&router, "a tagged frame without a flow")?;
    guest.send(&plain.bytes())?;
    router.expect("marked datagram", Duration::from_secs(2), is_marked)?;
    guest.send(&tagged(5))?;
    assert_none_marked(&router, "a tagged frame on a live flow")?;
    ensure!(lab.counter("vlan_tagged")? >= 2, "vlan_tagged has not moved");
    lab.assert_sound_but_for_invalid_packets()
}

/// 1. guest 1 has a UDP flow; 2. guest 2 sends on the same tuple with guest 1's address, with its own MAC and with
///    guest 1's; 3. neither arrives, and guest 1's flow is unharmed.
fn a_sibling_cannot_ride_on_anothers_flow(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let asker = Asker::new(lab.guest(1)?, 31_100)?;
    let seen_as = asker.ask(SERVER_ECHO)?;
    let (sibling, router) = (Tap::open(lab.guest(2)?, "eth0")?, Tap::open(&lab.router, "wan0")?);
    let honest = lab.outbound_ends(1, SERVER)?;
    let sibling_mac = lab.outbound_ends(2, SERVER)?.from_mac;
    for from_mac in [sibling_mac, honest.from_mac] {
        let mut ends = honest;
        ends.from_mac = from_mac;
        sibling.send(&Packet::udp(ends, 31_100, 7000, MARK).bytes())?;
        sibling.send(&Packet::udp(ends, 31_101, 7000, MARK).bytes())?;
    }
    assert_none_marked(&router, "a sibling's frame with guest 1's address")?;
    // The bridge has learned guest 1's MAC at the wrong port; any frame of guest 1 puts that right.
    ensure!(asker.ask(SERVER_ECHO)? == seen_as, "guest 1 has moved");
    lab.assert_sound_but_for_invalid_packets()
}

/// Guest 1 forges eight sources of every kind; nothing marked arrives at the router, not even as the external address.
fn a_forged_source_never_leaves(hook: Hook) -> Result<()> {
    let mut lab = Lab::with(Setup { ip_forward: true, ..Setup::default() })?;
    lab.up(hook)?;
    client::ask(lab.guest(1)?, SERVER_ECHO)?;
    let (guest, router) = (Tap::open(lab.guest(1)?, "eth0")?, Tap::open(&lab.router, "wan0")?);
    let gateway = "192.168.122.1";
    for forged in
        ["10.1.2.3", "8.8.8.8", EXTERNAL, ROUTER, STRANGER, "127.0.0.1", "224.0.0.1", gateway, "0.0.0.0"]
    {
        let mut ends = lab.outbound_ends(1, SERVER)?;
        ends.source = octets(forged)?;
        guest.send(&Packet::udp(ends, 31_200, 9, MARK).bytes())?;
        assert_none_marked(&router, forged)?;
    }
    client::ask(lab.guest(1)?, SERVER_ECHO)?;
    lab.assert_sound_but_for_invalid_packets()
}

/// With forwarding open in the kernel, the first-hop router sends to guest 1's own address: on no flow, on a live flow's
///    internal tuple, and a ping.
fn the_world_cannot_address_a_guest_directly(hook: Hook) -> Result<()> {
    let mut lab = Lab::with(Setup { ip_forward: true, ..Setup::default() })?;
    lab.up(hook)?;
    let asker = Asker::new(lab.guest(1)?, 31_300)?;
    asker.ask(SERVER_ECHO)?;
    let (guest, router) = (Tap::open(lab.guest(1)?, "eth0")?, Tap::open(&lab.router, "wan0")?);
    let ends = lab.inbound_ends(SERVER, &guest_address(1))?;
    router.send(&Packet::udp(ends, 7000, 7000, MARK).bytes())?;
    router.send(&Packet::udp(ends, 7000, 31_300, MARK).bytes())?;
    router.send(&Packet::echo(ends, 1, 1, MARK).bytes())?;
    assert_none_marked(&guest, "a packet to the guest's own address")?;
    asker.ask(SERVER_ECHO)?;
    lab.assert_sound_but_for_invalid_packets()
}

/// At a live mapping's external port, with sources of a guest, the gateway, the host itself and loopback.
fn a_forged_private_source_from_outside_reaches_nobody(hook: Hook) -> Result<()> {
    let mut lab = Lab::with(Setup { ip_forward: true, ..Setup::default() })?;
    lab.up(hook)?;
    let asker = Asker::new(lab.guest(1)?, 31_400)?;
    let external = asker.ask(SERVER_ECHO)?.port();
    let router = Tap::open(&lab.router, "wan0")?;
    let guests = [Tap::open(lab.guest(1)?, "eth0")?, Tap::open(lab.guest(2)?, "eth0")?];
    for forged in [&guest_address(1), &guest_address(2), "192.168.122.1", EXTERNAL, "127.0.0.1", "10.9.8.7"] {
        let ends = lab.inbound_ends(forged, EXTERNAL)?;
        router.send(&Packet::udp(ends, 7000, external, MARK).bytes())?;
        for guest in &guests {
            assert_none_marked(guest, forged)?;
        }
    }
    ensure!(asker.ask(SERVER_ECHO)?.port() == external, "guest 1 has moved");
    lab.assert_sound_but_for_invalid_packets()
}

/// A stranger, and the server from another port, send to a live mapping's external port: filtering depends on address
///    and port. The server itself, from its own port, still gets through.
fn an_unsolicited_packet_reaches_no_guest(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let asker = Asker::new(lab.guest(1)?, 31_500)?;
    let external = asker.ask(SERVER_ECHO)?.port();
    let (guest, router) = (Tap::open(lab.guest(1)?, "eth0")?, Tap::open(&lab.router, "wan0")?);
    for (from, port) in [(STRANGER, 7000), (SERVER, 7001)] {
        router.send(&Packet::udp(lab.inbound_ends(from, EXTERNAL)?, port, external, MARK).bytes())?;
    }
    assert_none_marked(&guest, "an unsolicited datagram")?;
    router.send(&Packet::udp(lab.inbound_ends(SERVER, EXTERNAL)?, 7000, external, MARK).bytes())?;
    let solicited = guest.expect("marked datagram", Duration::from_secs(2), is_marked)?;
    ensure!(solicited.ports() == Some((7000, 31_500)), "it arrived at {:?}", solicited.ports());
    ensure!(solicited.header_is_sound && solicited.body_is_sound, "damaged: {solicited:?}");
    lab.assert_sound_but_for_invalid_packets()
}

/// Null, xmas, SYN+FIN, SYN+RST, FIN alone: without a flow none leaves; on a live one they may leave translated, and the
/// conversation goes on.
fn nonsense_flags_never_leave(hook: Hook) -> Result<()> {
    let mut lab = Lab::with(Setup { ip_forward: true, ..Setup::default() })?;
    lab.up(hook)?;
    let mut conversation = Conversation::open_from(lab.guest(1)?, 31_600, SERVER_ECHO)?;
    let (guest, router) = (Tap::open(lab.guest(1)?, "eth0")?, Tap::open(&lab.router, "wan0")?);
    let ends = lab.outbound_ends(1, SERVER)?;
    for flags in [0x00, 0x29, 0x03, 0x06, 0x01, 0x07, 0x3f] {
        for port in [31_600, 31_601] {
            guest.send(&Packet::tcp(ends, port, 7000, 0x0bad_f1a6, flags).bytes())?;
        }
    }
    let live = conversation.seen_as.port();
    let left = router.collect(A_WHILE, |packet| {
        let is_forged = packet.protocol == 6 && packet.body.get(4..8) == Some(&[0x0b, 0xad, 0xf1, 0xa6]);
        is_forged && packet.ports() != Some((live, 7000))
    });
    ensure!(left.is_empty(), "{} left, the first of them {:?}", left.len(), left.first());
    conversation.exchange(10_000)?;
    lab.assert_sound_but_for_invalid_packets()
}

/// The host listens on 7,000 and talks from 7,100: a guest that sends from these ports gets others.
fn a_guest_cannot_take_a_port_of_the_host(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    let own = Asker::new(&lab.host, 7100)?;
    let before = own.ask(SERVER_ECHO)?;
    lab.up(hook)?;
    let seen_as = Asker::new(lab.guest(1)?, 7100)?.ask(SERVER_ECHO)?;
    ensure!(seen_as != before, "the guest took {seen_as} from the host");
    let conversation = Conversation::open_from(lab.guest(2)?, 7001, SERVER_ECHO)?;
    ensure!(conversation.seen_as.port() != 7000, "the guest is seen at the port of the host's server");
    ensure!(own.ask(SERVER_ECHO)? == before, "the host's own socket has lost its port");
    client::converse(&lab.world, &format!("{EXTERNAL}:7000"))?;
    lab.assert_invariants()
}
