//! Seeded mutations of live frames on the wire, from both sides (abuse row A1).
//!
//! `VMNAT_FUZZ_SEED` and `VMNAT_FUZZ_FRAMES` ask for another run, or a longer one; a failure names the seed and the frame.

use std::env;

use anyhow::{Result, ensure};
use vmnat_tests::lab::{
    BRIDGE_MAC, SERVER_ECHO, Setup, UPLINK_MAC,
    client::{Asker, Conversation},
    frame::{Ipv4, Packet, Tap, checksum},
};

use super::scene::{A_WHILE, OUTSIDE, PATH, S1, Scene, error, from_guest, from_remote, reply};

const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
/// Frames of each side.
const FRAMES: u64 = 100_000;
/// Sent between two looks at what came of them.
const BATCH: u64 = 200;

/// xorshift64: the same frames for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).unwrap_or(0)
    }

    fn byte(&mut self) -> u8 {
        // Small numbers, all ones and single bits meet more rules than numbers by chance.
        match self.below(4) {
            0 => [0, 1, 0xff, 0x80, 4, 6, 17, 45][self.below(8)],
            1 => 1 << self.below(8),
            _ => u8::try_from(self.below(256)).unwrap_or(0),
        }
    }
}

fn number(variable: &str, otherwise: u64) -> u64 {
    env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Frames of live conversations by UDP, TCP and echo, errors about them, and fragments of them.
fn seeds(scene: &Scene) -> Result<[Vec<Vec<u8>>; 2]> {
    let datagram = Packet::udp(from_guest(1, S1), 5000, 7, b"a datagram to be changed");
    let outside = scene.leaves_as_frame(1, 17, &datagram.bytes())?[14..].to_vec();
    let inside = Packet::udp(from_remote(S1), 7, 5000, b"answer").bytes();
    let inside = scene.arrives_as_frame(1, 17, &inside)?[14..].to_vec();
    let mut out = vec![
        datagram.clone(),
        Packet::tcp(from_guest(1, S1), 5000, 80, 1, 0x10),
        Packet::tcp(from_guest(1, S1), 5000, 80, 1, 0x02),
        Packet::echo(from_guest(1, S1), 5000, 1, b"a query to be changed"),
        error(from_guest(1, S1), 3, 3, &inside, inside.len()),
    ];
    for packet in &out[1..4] {
        scene.leaves(1, packet)?;
    }
    let mut back = vec![
        Packet::udp(from_remote(S1), 7, 5000, b"an answer to be changed"),
        Packet::tcp(from_remote(S1), 80, 5000, 1, 0x12),
        Packet::tcp(from_remote(S1), 80, 5000, 1, 0x18),
        reply(S1, 5000, 1, b"a reply to be changed"),
        error(from_remote(PATH), 3, 1, &outside, outside.len()),
        error(from_remote(PATH), 11, 0, &outside, 28),
    ];
    for (packets, first) in
        [(&mut out, &datagram), (&mut back, &Packet::udp(from_remote(S1), 7, 5000, &[9; 64]))]
    {
        for fragment in [0x2000, 0x2008, 0x0010] {
            packets.push(Packet { fragment, ..first.clone() });
        }
    }
    Ok([out, back].map(|packets| packets.iter().map(Packet::bytes).collect()))
}

/// A seed with one to six bytes changed behind the MAC addresses. Where the checksums are to be right afterwards, none of them is a
/// length, a version, the flags of a fragment or the protocol.
fn mutated(random: &mut Random, seed: &[u8], right: bool) -> Vec<u8> {
    const KEPT: [usize; 11] = [12, 13, 14, 16, 17, 20, 21, 23, 38, 39, 46];
    let mut frame = seed.to_vec();
    for _ in 0..=random.below(6) {
        let at = 12 + random.below(frame.len() - 12);
        let value = random.byte();
        if !(right && KEPT.contains(&at)) {
            frame[at] = value;
        }
    }
    if right {
        make_right(&mut frame);
        return frame;
    }
    match random.below(6) {
        0 => frame.truncate(14 + random.below(frame.len() - 13)),
        1 => frame.extend(std::iter::repeat_n(random.byte(), random.below(64))),
        _ => {}
    }
    frame
}

/// Computes the header's checksum, and the transport's where the packet is no fragment.
fn make_right(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let sum = checksum(&[&frame[14..34]]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    let (at, with_addresses) = match frame[23] {
        1 => (36, false),
        6 => (50, true),
        _ => (40, true),
    };
    if u16::from_be_bytes([frame[20], frame[21]]) & 0x3fff != 0 {
        return;
    }
    frame[at..at + 2].fill(0);
    let length = u16::try_from(frame.len() - 34).unwrap_or(0).to_be_bytes();
    let pseudo = [&frame[26..34], &[0, frame[23]], &length].concat();
    let before = if with_addresses { &pseudo[..] } else { &[] };
    let sum = checksum(&[before, &frame[34..]]).to_be_bytes();
    let is_none = frame[23] == 17 && sum == [0, 0];
    frame[at..at + 2].copy_from_slice(&if is_none { [0xff; 2] } else { sum });
}

/// What came out must have the external source, towards the world, and right checksums where it went in so.
fn look(at: &Tap, from_mac: [u8; 6], right: bool) -> Result<()> {
    for frame in at.drain() {
        if frame.len() < 34 || frame[6..12] != from_mac || frame[12..14] != [0x08, 0x00] {
            continue;
        }
        let is_outward = from_mac == UPLINK_MAC;
        ensure!(!is_outward || frame[26..30] == OUTSIDE, "a foreign source left: {frame:02x?}");
        let is_fragment = u16::from_be_bytes([frame[20], frame[21]]) & 0x3fff != 0;
        if right
            && !is_fragment
            && let Some(packet) = Ipv4::parse(&frame)
        {
            ensure!(packet.header_is_sound && packet.body_is_sound, "it came out damaged: {frame:02x?}");
        }
    }
    Ok(())
}

/// 100,000 frames of each side, half of them with checksums made right, while conversations of the other guest live: nothing leaves with
/// a foreign source, nothing right comes out wrong, and the live ones go on with their ports.
#[test]
fn mutated_frames_do_no_harm() -> Result<()> {
    let mut scene = Scene::with(Setup { ip_forward: true, ..Setup::default() }, &[])?;
    scene.spare_the_host()?;
    let mut conversation = Conversation::open(scene.lab.guest(2)?, SERVER_ECHO)?;
    let asker = Asker::new(scene.lab.guest(2)?, 6001)?;
    let seen_as = asker.ask(SERVER_ECHO)?;
    let seeds = seeds(&scene)?;
    let (seed, frames) = (number("VMNAT_FUZZ_SEED", SEED), number("VMNAT_FUZZ_FRAMES", FRAMES));
    let mut random = Random(seed.max(1));
    let batches = frames / BATCH;
    for batch in 0..batches {
        // All that are right come first, so that none of the others is taken for one of them.
        let right = batch < batches / 2;
        for (tap, seeds) in [(&scene.guests[0], &seeds[0]), (&scene.router, &seeds[1])] {
            for _ in 0..BATCH {
                let chosen = random.below(seeds.len());
                tap.send(&mutated(&mut random, &seeds[chosen], right))?;
            }
        }
        std::thread::sleep(A_WHILE / 100);
        let looked =
            look(&scene.router, UPLINK_MAC, right).and_then(|()| look(&scene.guests[0], BRIDGE_MAC, right));
        looked.map_err(|error| error.context(format!("seed {seed}, batch {batch}")))?;
        if batch % 10 == 0 {
            conversation.exchange(10_000)?;
        }
    }
    ensure!(asker.ask(SERVER_ECHO)? == seen_as, "the other guest's mapping has moved");
    conversation.exchange(100_000)?;
    scene.open(1, 5000, S1, 7)?;
    scene.lab.leaks.assert_none()?;
    scene.lab.assert_host_reaches_the_world()?;
    scene.lab.keep_quiet();
    Ok(())
}
