//! UDP (RFC 4787): mapping, filtering, and what is left alone.

use std::net::UdpSocket;

use anyhow::{Context, Result, ensure};
use vmnat_tests::lab::{
    Lab, RESOLVER, SERVER_ECHO, STRANGER,
    client::Asker,
    frame::{Packet, Tap},
    vmnat::Hook,
};

use super::scene::{A_WHILE, OUTSIDE, S1, S2, SOON, Scene, from_guest, from_remote, source_port};

/// Who calls the port before its guest does has no influence: 1. a stranger sends to external port 22,000; 2. guest 1 asks
///    from 22,000, and so do guests whose port is taken; 3. each is one caller to all, the stranger too, and the first keeps
///    its port.
#[test]
fn mapping_survives_a_stranger() -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(Hook::of_the_kernel())?;
    let router = Tap::open(&lab.router, "wan0")?;
    for port in [7000, 7001] {
        router
            .send(&Packet::udp(lab.inbound_ends(STRANGER, "203.0.113.2")?, port, 22_000, b"first").bytes())?;
    }
    for number in [1, 2] {
        let asker = Asker::new(lab.guest(number)?, 22_000)?;
        let first = asker.ask(&format!("{STRANGER}:7000"))?;
        ensure!(number == 2 || first.port() == 22_000, "the stranger has moved guest 1 to {first}");
        for other in [SERVER_ECHO, &format!("{RESOLVER}:7000"), &format!("{STRANGER}:7000")] {
            let seen_as = asker.ask(other)?;
            ensure!(seen_as == first, "guest {number} is {first} to the stranger and {seen_as} to {other}");
        }
    }
    // What the host answers to the stranger's raw frames is no answer to the stranger's own connection tracking.
    lab.assert_sound_but_for_invalid_packets()
}

/// Eight ports, each wanted by two guests: both keep the class (below 1024 or not) and the parity of what they wanted.
#[test]
fn changed_ports_keep_class_and_parity() -> Result<()> {
    let mut scene = Scene::new()?;
    for wanted in [600, 601, 900, 1023, 1024, 1025, 20_000, 65_001] {
        for (number, to) in [(1, S1), (2, S1)] {
            let got = scene.open(number, wanted, to, 9)?;
            ensure!((got < 1024) == (wanted < 1024), "guest {number}: {wanted} became {got}, another class");
            ensure!(got % 2 == wanted % 2, "guest {number}: {wanted} became {got}, another parity");
            ensure!((got == wanted) == (number == 1), "guest {number}: {wanted} became {got}");
        }
    }
    scene.lab.assert_invariants()
}

/// One port of a guest towards S1:7, S1:8 and S2:7, while another guest has that port: one external port each, and each
///    remote reaches its own guest.
#[test]
fn replies_reach_the_guest_that_asked_whatever_ports_collide() -> Result<()> {
    let mut scene = Scene::new()?;
    for number in [1, 2] {
        let external = scene.open(number, 5000, S1, 7)?;
        for (remote, port) in [(S1, 7), (S1, 8), (S2, 7)] {
            let seen_as = scene.open(number, 5000, remote, port)?;
            ensure!(seen_as == external, "guest {number}: {external}, but {seen_as} to {remote:?}:{port}");
            let answer = Packet::udp(from_remote(remote), port, external, b"answer");
            let got = scene.arrives(number, &answer)?;
            ensure!(got.ports() == Some((port, 5000)), "guest {number} gets {got:?}");
        }
    }
    scene.lab.assert_invariants()
}

/// A mapping that was opened towards S1:x lets in S1:x alone: not S1:y, not S2:x, not an unsolicited port. Once the guest has
///    sent to S2:x, that one too.
#[test]
fn filtering_depends_on_address_and_port() -> Result<()> {
    let mut scene = Scene::new()?;
    let external = scene.open(1, 5000, S1, 7)?;
    let datagram = |from, port| Packet::udp(from_remote(from), port, external, b"in").bytes();
    scene.none_arrives("from other endpoints", &[datagram(S1, 8), datagram(S2, 7), datagram(S2, 8)])?;
    let unmapped = Packet::udp(from_remote(S1), 7, external ^ 2, b"in").bytes();
    scene.none_arrives("to a port without a mapping", &[unmapped])?;
    scene.arrives_as_frame(1, 17, &datagram(S1, 7))?;
    scene.open(1, 5000, S2, 7)?;
    scene.arrives_as_frame(1, 17, &datagram(S2, 7))?;
    scene.none_arrives("from the other's port", &[datagram(S2, 8)])?;
    scene.lab.assert_invariants()
}

/// No application's protocol is read: what names the guest's private address in SIP, FTP, DNS and NAT-PMP arrives byte by
///    byte, both ways.
#[test]
fn payloads_are_left_alone() -> Result<()> {
    let mut scene = Scene::new()?;
    let sip = b"INVITE sip:bob@192.0.2.10 SIP/2.0\r\nVia: SIP/2.0/UDP 192.168.122.10:5060\r\n\
        Contact: <sip:alice@192.168.122.10:5060>\r\n\r\nc=IN IP4 192.168.122.10\r\nm=audio 5004 RTP/AVP 0\r\n";
    let dns = b"\x12\x34\x81\x80\0\x01\0\x01\0\0\0\0\x01a\0\0\x01\0\x01\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\xc0\xa8\x7a\x0a";
    for (port, payload) in [(5060, &sip[..]), (53, dns), (5351, b"\0\x01\0\0\x13\x88\x13\x88\0\0\x0e\x10")] {
        let out = Packet::udp(from_guest(1, S1), port, port, payload);
        let left = scene.leaves(1, &out)?;
        ensure!(left.body[8..] == *payload, "port {port}: the payload was changed on its way out");
        let back = Packet::udp(from_remote(S1), port, source_port(&left)?, payload);
        ensure!(scene.arrives(1, &back)?.body[8..] == *payload, "port {port}: changed on its way in");
    }
    let mut ftp = Packet::tcp(from_guest(1, S1), 20_021, 21, 1, 0x18);
    ftp.body.extend(b"PORT 192,168,122,10,78,52\r\n");
    let left = scene.leaves(1, &ftp)?;
    ensure!(left.body[20..] == ftp.body[20..], "FTP: {:?}", String::from_utf8_lossy(&left.body[20..]));
    let unasked = Packet::tcp(from_remote(S1), 20, 20_020, 1, 0x02).bytes();
    scene.none_arrives("the data connection that PORT named", &[unasked])?;
    scene.lab.assert_invariants()
}

/// One external address serves all protocols of all guests.
#[test]
fn every_protocol_of_a_guest_has_the_same_external_address() -> Result<()> {
    let mut scene = Scene::new()?;
    for number in [1, 2] {
        let ends = from_guest(number, S1);
        for packet in
            [Packet::udp(ends, 1, 2, b""), Packet::tcp(ends, 1, 2, 3, 2), Packet::echo(ends, 1, 1, b"")]
        {
            ensure!(scene.leaves(number, &packet)?.source == OUTSIDE, "{packet:?}");
        }
    }
    scene.lab.assert_invariants()
}

/// Two guests, both behind their port 5000, that know nothing but each other's external endpoints. Siblings are filtered as the world is,
/// so each must have sent to the other; then each reaches the other, and sees the other's external endpoint.
#[test]
fn guests_reach_each_other_by_external_endpoints() -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(Hook::of_the_kernel())?;
    let mut ends = Vec::new();
    for guest in &lab.guests {
        let seen_as = Asker::new(guest, 5000)?.ask(SERVER_ECHO)?;
        let socket = guest.run(|| UdpSocket::bind("0.0.0.0:5000"))?;
        socket.set_read_timeout(Some(A_WHILE))?;
        ends.push((socket, seen_as));
    }
    let (one, two) = (&ends[0], &ends[1]);
    one.0.send_to(b"filtered", two.1)?;
    let filtered = two.0.recv_from(&mut [0; 64]);
    ensure!(filtered.is_err(), "a sibling is not filtered as the world is: {filtered:?}");
    for ((from, own), (to, there)) in [(two, one), (one, two), (two, one)] {
        to.set_read_timeout(Some(SOON))?;
        from.send_to(b"hairpin", there)?;
        let (length, seen_as) = to.recv_from(&mut [0; 64]).with_context(|| format!("{own} to {there}"))?;
        ensure!(length == 7 && seen_as == *own, "{own} is seen as {seen_as}");
    }
    lab.assert_invariants()
}
