//! The IP header and the checksums (RFC 791, RFC 1812, RFC 3022, RFC 1624, RFC 768, RFC 6864).

use anyhow::{Context, Result, ensure};
use vmnat_tests::lab::{
    EXTERNAL, Lab, ROUTER_MAC, Setup,
    frame::{Address, Packet, Tap, checksum},
    service::content,
    vmnat::Hook,
};

use super::scene::{A_WHILE, OUTSIDE, S1, Scene, from_guest, from_remote, reply, sound, with_header};

const MARK: &[u8] = b"marked by the test";

/// The packets of one conversation each by UDP, TCP and echo, with a payload: the guest's, and the remote's.
fn pairs(payload: &[u8]) -> [(Packet, Packet); 3] {
    let segment = |ends, source_port, destination_port| {
        let mut segment = Packet::tcp(ends, source_port, destination_port, 1, 0x18);
        segment.body.extend(payload);
        segment
    };
    [
        (Packet::udp(from_guest(1, S1), 5000, 7, payload), Packet::udp(from_remote(S1), 7, 5000, payload)),
        (segment(from_guest(1, S1), 5000, 80), segment(from_remote(S1), 80, 5000)),
        (Packet::echo(from_guest(1, S1), 5000, 1, payload), reply(S1, 5000, 1, payload)),
    ]
}

/// Where the payload begins in a body.
fn payload_at(packet: &Packet) -> usize {
    if packet.protocol == 6 { 20 } else { 8 }
}

/// 71 lengths and 1,000 random payloads of random lengths, each by UDP, TCP and echo (so 3,000 of them), both ways: every checksum
/// that arrives is right and every byte is the one that was sent. Guest 2 has the ports first, so ports change too.
#[test]
fn checksums_are_right_for_every_length_and_content() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.open(2, 5000, S1, 7)?;
    let random = content(1_100_000);
    let lengths = (0..=64).chain([127, 128, 129, 511, 1023, 1452]).map(|length| &random[..length]);
    let contents = (0..1000).map(|number| {
        let [high, low] = [random[number * 2], random[number * 2 + 1]];
        let length = usize::from(u16::from_be_bytes([high, low])) % 1200;
        &random[number * 1024..][..length]
    });
    for payload in lengths.chain(contents) {
        for (out, mut back) in pairs(payload) {
            let at = payload_at(&out);
            let left = scene.leaves(1, &out)?;
            ensure!(left.body[at..] == *payload, "{} bytes of {payload:02x?} were changed", payload.len());
            // A reply goes to where the question came from.
            let near = if out.protocol == 1 { 4..6 } else { 0..2 };
            let back_near = if out.protocol == 1 { 4..6 } else { 2..4 };
            back.body[back_near].copy_from_slice(&left.body[near]);
            let came = scene.arrives(1, &back)?;
            ensure!(came.body[at..] == *payload, "{} bytes of {payload:02x?} were changed", payload.len());
        }
    }
    scene.lab.assert_invariants()
}

/// RFC 768: a datagram without a checksum leaves and arrives without one; one whose checksum is computed as zero leaves and
/// arrives with 0xffff, and one that had 0xffff is still right.
#[test]
fn a_udp_checksum_of_zero_means_none() -> Result<()> {
    let mut scene = Scene::new()?;
    let bare = |mut packet: Packet| {
        packet.checksum_at = None;
        packet
    };
    let left = scene.leaves(1, &bare(Packet::udp(from_guest(1, S1), 5000, 7, b"no checksum")))?;
    ensure!(left.body[6..8] == [0, 0], "none became {:02x?} on its way out", &left.body[6..8]);
    let came = scene.arrives(1, &bare(Packet::udp(from_remote(S1), 7, 5000, b"no checksum")))?;
    ensure!(came.body[6..8] == [0, 0], "none became {:02x?} on its way in", &came.body[6..8]);

    let out = Packet::udp(from_guest(1, S1), 5000, 7, b"tuned..");
    let left = scene.leaves(1, &tuned(&out, |out| out.source = OUTSIDE))?;
    ensure!(left.body[6..8] == [0xff; 2], "computed zero left as {:02x?}", &left.body[6..8]);
    let back = Packet::udp(from_remote(S1), 7, 5000, b"tuned..");
    let came = scene.arrives(1, &tuned(&back, |back| back.destination = from_guest(1, S1).source))?;
    ensure!(came.body[6..8] == [0xff; 2], "computed zero arrived as {:02x?}", &came.body[6..8]);

    for length in 1..16 {
        let mut own = tuned(&Packet::udp(from_guest(1, S1), 5000, 7, &content(length * 2)), |_| ());
        own.checksum_at = None;
        own.body[6..8].copy_from_slice(&[0xff; 2]);
        let left = scene.leaves(1, &own)?;
        ensure!(left.body[6..8] != [0, 0], "a checksum of 0xffff left as none");
    }
    scene.lab.assert_invariants()
}

/// The datagram with its first two bytes of payload chosen so that its checksum is zero once it is changed so.
fn tuned(packet: &Packet, changed: impl Fn(&mut Packet)) -> Packet {
    let mut packet = packet.clone();
    packet.body[8..10].fill(0);
    let mut translated = packet.clone();
    changed(&mut translated);
    let sum: [u8; 2] = translated.bytes()[40..42].try_into().unwrap_or_default();
    packet.body[8..10].copy_from_slice(&sum);
    packet
}

/// DSCP and ECN, "do not fragment" on and off, and the identification arrive as they were sent, both ways; of the header only
/// addresses, hop count and checksum change.
#[test]
fn header_fields_are_kept() -> Result<()> {
    let mut scene = Scene::new()?;
    let numbers = content(512);
    for tos in 0..=255_u8 {
        for flags in [0x00, 0x40] {
            let id = &numbers[usize::from(tos) * 2..][..2];
            let set = |header: &mut Vec<u8>| {
                header[1] = tos;
                header[4..6].copy_from_slice(id);
                header[6] = flags;
            };
            let out = with_header(Packet::udp(from_guest(1, S1), 5000, 7, b"kept").bytes(), set);
            let back = with_header(Packet::udp(from_remote(S1), 7, 5000, b"kept").bytes(), set);
            for (sent, got) in
                [(&out, scene.leaves_as_frame(1, 17, &out)?), (&back, scene.arrives_as_frame(1, 17, &back)?)]
            {
                sound(&got)?;
                ensure!(got[14..22] == sent[14..22], "{:02x?} became {:02x?}", &sent[14..22], &got[14..22]);
                ensure!(got[22] == 63, "64 hops became {}", got[22]);
            }
        }
    }
    scene.lab.assert_invariants()
}

/// IP options travel as they are or not at all: no-operation, record route, timestamp, router alert, security, experimental,
/// source routes, forty bytes of them, both ways, by UDP, TCP and echo.
#[test]
fn options_arrive_undamaged_or_not_at_all() -> Result<()> {
    let mut scene = Scene::with(Setup { ip_forward: true, ..Setup::default() }, &[])?;
    for (out, _) in pairs(b"opens") {
        scene.leaves(1, &out)?;
    }
    let options: [&[u8]; 8] = [
        &[1, 1, 1, 0],
        &[7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[148, 4, 0, 0],
        &[130, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[94, 4, 1, 2],
        &[131, 7, 4, 192, 0, 2, 20, 0],
        &[1; 40],
    ];
    let mut passed = 0;
    for options in options {
        let add = |header: &mut Vec<u8>| {
            header[0] = 0x45 + u8::try_from(options.len() / 4).unwrap_or(0);
            header.extend(options);
        };
        for (out, back) in pairs(b"with options") {
            for (sent, tap, other) in [
                (with_header(out.bytes(), add), &scene.guests[0], &scene.router),
                (with_header(back.bytes(), add), &scene.router, &scene.guests[0]),
            ] {
                drop(other.drain());
                tap.send(&sent)?;
                let length = sent.len();
                let is_it = |frame: &Vec<u8>| {
                    frame.len() == length && frame[23] == out.protocol && frame[26..34] != sent[26..34]
                };
                let deadline = std::time::Instant::now() + A_WHILE / 4;
                let mut got = std::iter::from_fn(|| {
                    other.receive(deadline.saturating_duration_since(std::time::Instant::now()))
                });
                let Some(got) = got.find(is_it) else { continue };
                sound(&got)?;
                ensure!(
                    got[34..34 + options.len()] == *options,
                    "{options:?} became {:?}",
                    &got[34..34 + options.len()]
                );
                ensure!(got[14..22] == sent[14..22], "the header was changed: {got:02x?}");
                passed += 1;
            }
        }
    }
    ensure!(passed >= 2 * 3 * 4, "only {passed} of 48 packets with options got through");
    scene.lab.assert_sound_but_for_invalid_packets()
}

/// With forwarding open in the kernel: what is neither TCP nor UDP nor a query leaves as the external address or not at all.
#[test]
fn unknown_protocols_never_leave_untranslated() -> Result<()> {
    let mut scene = Scene::with(Setup { ip_forward: true, ..Setup::default() }, &[])?;
    scene.open(1, 5000, S1, 7)?;
    drop(scene.router.drain());
    for protocol in [0, 2, 4, 33, 41, 47, 50, 51, 89, 94, 103, 112, 115, 132, 136, 253, 254, 255] {
        for length in [0, 4, 8, 12, 20, 64] {
            let mut body = [0x13, 0x88, 0, 7].to_vec();
            body.extend(content(60));
            body.truncate(length);
            scene.guests[0].send(&Packet::new(from_guest(1, S1), protocol, body, None).bytes())?;
        }
    }
    let foreign =
        scene.router.collect(A_WHILE, |packet| packet.from_mac != ROUTER_MAC && packet.source != OUTSIDE);
    ensure!(foreign.is_empty(), "{} left, the first of them {:?}", foreign.len(), foreign.first());
    scene.open(1, 5000, S1, 7)?;
    scene.lab.assert_sound_but_for_invalid_packets()
}

/// Broadcasts, the uplink's among them, multicasts and what no public router forwards stay where they are, whatever station they are
/// addressed to, and whoever the guest says that it is.
#[test]
fn broadcast_and_multicast_are_not_forwarded() -> Result<()> {
    let mut lab = Lab::with(Setup { ip_forward: true, ..Setup::default() })?;
    lab.up(Hook::of_the_kernel())?;
    let (guest, router) = (Tap::open(lab.guest(1)?, "eth0")?, Tap::open(&lab.router, "wan0")?);
    let everybody: [Address; 8] = [
        [255, 255, 255, 255],
        [192, 168, 122, 255],
        [192, 168, 122, 0],
        [203, 0, 113, 255],
        [224, 0, 0, 251],
        [239, 255, 255, 250],
        [240, 0, 0, 1],
        [0, 0, 2, 10],
    ];
    for to in everybody {
        for to_mac in [None, Some([0xff; 6]), Some([0x01, 0, 0x5e, to[1] & 0x7f, to[2], to[3]])] {
            let mut ends = from_guest(1, to);
            ends.to_mac = to_mac.unwrap_or(ends.to_mac);
            for packet in [Packet::udp(ends, 5000, 1900, MARK), Packet::echo(ends, 1, 1, MARK)] {
                guest.send(&packet.bytes())?;
                guest.send(&Packet { source: [8, 8, 8, 8], ..packet }.bytes())?;
            }
        }
    }
    let left = router.collect(A_WHILE, |packet| {
        packet.from_mac != ROUTER_MAC && packet.body.windows(MARK.len()).any(|bytes| bytes == MARK)
    });
    ensure!(left.is_empty(), "{} left {EXTERNAL}, the first of them {:?}", left.len(), left.first());
    lab.assert_sound_but_for_invalid_packets().context("beside broadcasts")
}

/// The checksum arithmetic of the lab itself, which all of these rest on (the example of RFC 1071 section 3).
#[test]
fn the_lab_can_add() {
    assert_eq!(checksum(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]), !0xddf2);
}
