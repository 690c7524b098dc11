//! Fragments (RFC 791, RFC 4787 REQ-13 and REQ-14, RFC 6864): in order and out of it, both ways, in floods and in nonsense.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use vmnat_tests::lab::{
    BRIDGE_MAC, SERVER_ECHO, Setup, UPLINK_MAC,
    client::{self, Asker, Conversation},
    frame::{Address, Ipv4, Packet, Tap},
    service::content,
};

use super::scene::{
    OUTSIDE, S1, SOON, Scene, from_guest, from_remote, reply, sound, source_port, with_header,
};

/// More to come, in the field of flags and offset.
const MORE: u16 = 0x2000;

/// The packet in parts of `size` bytes, a multiple of eight, with this identification.
fn parts(whole: &Packet, identification: u16, size: usize) -> Vec<Vec<u8>> {
    let frame = whole.bytes();
    let (head, body) = frame.split_at(34);
    let count = body.len().div_ceil(size);
    let parts = body.chunks(size).enumerate().map(|(number, part)| {
        let offset = u16::try_from(number * size / 8).unwrap_or(0);
        let more = if number + 1 < count { MORE } else { 0 };
        with_header([head, part].concat(), |header| {
            header[4..6].copy_from_slice(&identification.to_be_bytes());
            header[6..8].copy_from_slice(&(offset | more).to_be_bytes());
        })
    });
    parts.collect()
}

/// A datagram as it is put together from the parts that come in.
#[derive(Default)]
struct Assembly {
    head: Vec<u8>,
    pieces: Vec<(usize, Vec<u8>)>,
    length: Option<usize>,
}

impl Assembly {
    /// Takes a part; true when the datagram is whole.
    fn take(&mut self, frame: &[u8]) -> bool {
        let field = u16::from_be_bytes([frame[20], frame[21]]);
        let total = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
        let (offset, body) = (usize::from(field & 0x1fff) * 8, frame[34..14 + total].to_vec());
        if field & MORE == 0 {
            self.length = Some(offset + body.len());
        }
        if offset == 0 {
            self.head = frame[..34].to_vec();
        }
        self.pieces.push((offset, body));
        let have: usize = self.pieces.iter().map(|(_, body)| body.len()).sum();
        self.length == Some(have)
    }

    /// The packet, whose checksum over all parts must be right.
    fn packet(mut self) -> Result<Ipv4> {
        self.pieces.sort();
        let body = self.pieces.into_iter().flat_map(|(_, body)| body).collect();
        let frame = with_header([self.head, body].concat(), |header| header[6..8].fill(0));
        sound(&frame)
    }
}

/// The next datagram from `source` to `destination` that comes whole or in parts, and in how many.
pub fn next_datagram(tap: &Tap, source: Address, destination: Address) -> Result<(Ipv4, usize)> {
    next_datagrams(tap, source, destination, 1)?.pop().context("one was asked for")
}

/// The next so many datagrams. Parts are told apart by their identification.
fn next_datagrams(
    tap: &Tap,
    source: Address,
    destination: Address,
    number: usize,
) -> Result<Vec<(Ipv4, usize)>> {
    let deadline = Instant::now() + SOON;
    let mut assemblies = BTreeMap::new();
    let mut whole = Vec::new();
    while whole.len() < number {
        let left = deadline.saturating_duration_since(Instant::now());
        let frame = tap.receive(left);
        let frame = frame.with_context(|| format!("no whole datagram from {source:?} within {SOON:?}"))?;
        let is_it = frame.len() >= 34
            && [UPLINK_MAC, BRIDGE_MAC].iter().any(|mac| frame[6..12] == *mac)
            && frame[12..15] == [0x08, 0x00, 0x45]
            && frame[26..34] == [source, destination].concat();
        if !is_it {
            continue;
        }
        let identification = frame[18..20].to_vec();
        let assembly: &mut Assembly = assemblies.entry(identification.clone()).or_default();
        if assembly.take(&frame)
            && let Some(assembly) = assemblies.remove(&identification)
        {
            let count = assembly.pieces.len();
            whole.push((assembly.packet()?, count));
        }
    }
    Ok(whole)
}

/// Guest `number` sends these parts; the datagram that leaves.
fn leaves(scene: &Scene, number: usize, parts: &[Vec<u8>]) -> Result<Ipv4> {
    drop(scene.router.drain());
    parts.iter().try_for_each(|part| scene.guests[number - 1].send(part))?;
    let destination = parts[0][30..34].try_into()?;
    Ok(next_datagram(&scene.router, OUTSIDE, destination)?.0)
}

/// The router sends these parts; the datagram that arrives at guest `number`.
fn arrives(scene: &Scene, number: usize, parts: &[Vec<u8>]) -> Result<Ipv4> {
    let guest = &scene.guests[number - 1];
    drop(guest.drain());
    parts.iter().try_for_each(|part| scene.router.send(part))?;
    Ok(next_datagram(guest, parts[0][26..30].try_into()?, from_guest(number, S1).source)?.0)
}

/// Orders in which three parts may come.
type Orders = &'static [[usize; 3]];

/// 2.5 kB by UDP, TCP and echo, in three parts, in each of these orders, both ways. Guest 2 has the ports first, so that ports change.
fn in_orders(orders: Orders) -> Result<()> {
    let mut scene = Scene::new()?;
    let payload = content(2500);
    let mut segment = Packet::tcp(from_guest(1, S1), 5000, 80, 1, 0x18);
    segment.body.extend(&payload);
    let outs = [
        Packet::udp(from_guest(1, S1), 5000, 7, &payload),
        segment,
        Packet::echo(from_guest(1, S1), 5000, 1, &payload),
    ];
    scene.open(2, 5000, S1, 7)?;
    let mut identification = 100;
    for out in outs {
        for order in orders {
            let shuffled = |packet: &Packet, identification| {
                let parts = parts(packet, identification, 1024);
                order.map(|place| parts[place].clone())
            };
            identification += 1;
            let what = || format!("protocol {} in the order {order:?}", out.protocol);
            let left = leaves(&scene, 1, &shuffled(&out, identification)).with_context(what)?;
            ensure!(left.body.ends_with(&payload), "{} left changed", what());
            let mut back = match out.protocol {
                17 => Packet::udp(from_remote(S1), 7, source_port(&left)?, &payload),
                6 => Packet::tcp(from_remote(S1), 80, source_port(&left)?, 1, 0x18),
                _ => reply(S1, u16::from_be_bytes(left.body[4..6].try_into()?), 1, &payload),
            };
            if out.protocol == 6 {
                back.body.extend(&payload);
            }
            let came =
                arrives(&scene, 1, &shuffled(&back, identification)).with_context(|| what() + ", inward")?;
            ensure!(came.body.ends_with(&payload), "{} arrived changed", what());
        }
    }
    scene.lab.assert_invariants()
}

#[test]
fn fragments_in_order_are_translated_both_ways() -> Result<()> {
    in_orders(&[[0, 1, 2]])
}

#[test]
fn fragments_out_of_order_are_translated_both_ways() -> Result<()> {
    in_orders(&[[2, 1, 0], [1, 0, 2], [0, 2, 1], [1, 2, 0], [2, 0, 1]])
}

/// With real stacks: datagrams of up to 20,000 bytes there and back, which both ends send in fragments.
#[test]
fn large_datagrams_are_exchanged() -> Result<()> {
    let mut scene = Scene::new()?;
    for number in [1, 2] {
        let asker = Asker::new(scene.lab.guest(number)?, 23_000)?;
        for size in [1473, 2960, 9000, 20_000] {
            asker.ask_within(SERVER_ECHO, size, client::PATIENCE).with_context(|| format!("{size} bytes"))?;
        }
    }
    scene.lab.assert_invariants()
}

/// Both guests send datagrams with one identification to one remote, part by part in turn: each leaves whole, with its own bytes.
#[test]
fn one_identification_of_two_guests_never_mixes() -> Result<()> {
    let mut scene = Scene::new()?;
    for identification in [7, 8, 9] {
        let payloads = [vec![0x11; 2500], vec![0x22; 2500]];
        let datagram = |number: usize| Packet::udp(from_guest(number, S1), 5000, 7, &payloads[number - 1]);
        let (one, two) =
            (parts(&datagram(1), identification, 1024), parts(&datagram(2), identification, 1024));
        drop(scene.router.drain());
        for (one, two) in one.iter().zip(&two) {
            scene.guests[0].send(one)?;
            scene.guests[1].send(two)?;
        }
        let left = next_datagrams(&scene.router, OUTSIDE, S1, 2)?;
        let mut left: Vec<_> = left.into_iter().map(|(packet, _)| packet.body[8..].to_vec()).collect();
        left.sort();
        ensure!(left == payloads, "datagrams of two guests were mixed");
    }
    scene.lab.assert_invariants()
}

/// 3,000 fragments without a first one from each side, and odd ones (tiny, overlapping, past the end, repeated, a teardrop): none
/// leaves with a private source, live conversations go on, and so do fragments of others.
#[test]
fn a_flood_of_fragments_stops_nothing() -> Result<()> {
    let mut scene = Scene::with(Setup { ip_forward: true, ..Setup::default() }, &[])?;
    let mut conversation = Conversation::open(scene.lab.guest(2)?, SERVER_ECHO)?;
    let external = scene.open(1, 5000, S1, 7)?;
    let out = Packet::udp(from_guest(1, S1), 5000, 7, &content(2000));
    let back = Packet::udp(from_remote(S1), 7, external, &content(2000));
    let fields = [0x0001, MORE | 0x0001, 0x1ffd, 0x1fff, MORE | 0x1fff, MORE, MORE | 2, 0x8000];
    for (tap, packet) in [(&scene.guests[0], &out), (&scene.router, &back)] {
        for identification in 0..3000 {
            tap.send(&parts(packet, identification, 1024)[1])?;
        }
        for (number, field) in (40_000_u16..).zip(fields.into_iter().cycle().take(400)) {
            let length = 34 + [1, 8, 9, 16, 24, 300][usize::from(number % 6)];
            let odd = with_header(packet.bytes()[..length].to_vec(), |header| {
                header[4..6].copy_from_slice(&(number / 4).to_be_bytes());
                header[6..8].copy_from_slice(&field.to_be_bytes());
            });
            tap.send(&odd)?;
        }
    }
    scene.lab.leaks.assert_none()?;
    conversation.exchange(1_000_000)?;
    ensure!(scene.open(1, 5000, S1, 7)? == external, "the mapping has moved");
    scene.arrives(1, &Packet::udp(from_remote(S1), 7, external, b"still here"))?;
    let others = Packet::udp(from_guest(2, S1), 5001, 7, &content(2000));
    ensure!(leaves(&scene, 2, &parts(&others, 50_000, 1024))?.body[8..] == content(2000), "changed");
    let asker = Asker::new(scene.lab.guest(2)?, 0)?;
    asker
        .ask_within(SERVER_ECHO, 5000, Duration::from_secs(5))
        .context("a large datagram after the flood")?;
    scene.lab.assert_sound_but_for_invalid_packets()
}
