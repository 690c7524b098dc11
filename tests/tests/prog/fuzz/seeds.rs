//! Sound frames of every kind that the programs know, by the hook where they come in.

use vmnat_common::room;
use vmnat_tests::lab::frame::{Ends, Packet, checksum};

use crate::{
    errors::error,
    fragments::{from_room, parts},
    rig::{
        BRIDGE, BRIDGE_MAC, EXTERNAL, GATEWAY, GUEST1, GUEST1_MAC, GUEST2_MAC, OTHER_SERVER, PORT1,
        ROOM_INNER, ROOM_OUTER, SERVER, UPLINK, from_guest1, from_world,
    },
};

const ACK: u8 = 0x10;
const SYN: u8 = 0x02;

/// A program, the interface that it looks at, and frames that come in there.
pub struct Hook {
    pub program: &'static str,
    pub interface: u32,
    pub seeds: Vec<Vec<u8>>,
}

/// Every program that looks at packets.
pub fn hooks() -> Vec<Hook> {
    let (guests, worlds) = (guests(), worlds());
    let left = |frame: &Vec<u8>| with_source(frame, EXTERNAL);
    let guard = guests.iter().map(left).chain(guests.iter().cloned()).collect();
    let outward = in_room(&guests, room::OUTER_MAC.bytes(), SERVER, &with_source(&guests[0], EXTERNAL));
    let inward = in_room(&worlds, room::INNER_MAC.bytes(), GUEST1, &guests[0]);
    let hook = |program, interface, seeds| Hook { program, interface, seeds };
    vec![
        hook("outbound_port", PORT1, guests.clone()),
        hook("outbound_bridge", BRIDGE, guests),
        hook("inbound", UPLINK, worlds),
        hook("guard", UPLINK, guard),
        hook("room_inward", ROOM_INNER, inward),
        hook("room_outward", ROOM_OUTER, outward),
    ]
}

/// What comes out of the room: what went in, and its own errors about `quoted`.
fn in_room(frames: &[Vec<u8>], mac: [u8; 6], told: [u8; 4], quoted: &[u8]) -> Vec<Vec<u8>> {
    let mut all: Vec<_> = frames.iter().map(|frame| from_room(frame.clone(), mac)).collect();
    let ends = Ends { from_mac: mac, to_mac: mac, source: room::ADDRESS.octets(), destination: told };
    let asker = Ends { source: GATEWAY, destination: GUEST1, ..ends };
    all.push(Packet::udp(asker, 53, 5000, b"the relay's answer").bytes());
    for (kind, code) in [(3, 4), (3, 13), (11, 0), (11, 1)] {
        all.push(error(ends, kind, code, &quoted[14..], quoted.len() - 14).bytes());
    }
    all
}

fn guests() -> Vec<Vec<u8>> {
    let server = from_guest1(SERVER);
    let mut frames = conversation(server, 5000, 7, 80, 8);
    for called in [EXTERNAL, GATEWAY, OTHER_SERVER, [198, 18, 0, 1], [192, 168, 122, 77], [10, 9, 0, 9]] {
        frames.push(Packet::udp(from_guest1(called), 5000, 8080, b"called").bytes());
        frames.push(Packet::tcp(from_guest1(called), 5000, 8080, 1, SYN).bytes());
    }
    frames.push(Packet::udp(from_guest1(GATEWAY), 5000, 53, b"a question").bytes());
    let arrived = Packet::udp(Ends { destination: GUEST1, ..from_world(SERVER) }, 7, 5000, b"answer").bytes();
    frames.extend(errors(server, &arrived));
    let sibling = Ends { to_mac: GUEST2_MAC, ..from_guest1([192, 168, 122, 11]) };
    frames.push(Packet::udp(sibling, 5000, 7, b"beside").bytes());
    frames.push(arp());
    frames
}

fn worlds() -> Vec<Vec<u8>> {
    let server = from_world(SERVER);
    let mut frames = conversation(server, 7, 5000, 5000, 0);
    frames.push(Packet::tcp(server, 80, 5000, 1, SYN | ACK).bytes());
    frames.push(Packet::tcp(server, 80, 5000, 1, ACK).bytes());
    for port in [8080, 9003, 22] {
        frames.push(Packet::tcp(from_world(OTHER_SERVER), 40_000, port, 1, SYN).bytes());
        frames.push(Packet::udp(from_world(OTHER_SERVER), 40_000, port, b"called").bytes());
    }
    let sent = |packet: &Packet| with_source(&packet.bytes(), EXTERNAL);
    let question = Packet::udp(from_guest1(SERVER), 5000, 7, b"a question");
    frames.extend(errors(server, &sent(&question)));
    frames.extend(errors(server, &sent(&Packet::tcp(from_guest1(SERVER), 5000, 80, 1, SYN))));
    frames.extend(errors(server, &sent(&Packet::echo(from_guest1(SERVER), 5000, 1, b"ping"))));
    frames.extend(errors(server, &with_options(&sent(&question))));
    frames.push(arp());
    frames
}

/// Both transports, queries, all other protocols, options and fragments.
fn conversation(ends: Ends, from: u16, to: u16, web: u16, query: u8) -> Vec<Vec<u8>> {
    let datagram = Packet::udp(ends, from, to, b"a datagram to be changed");
    let echo = Packet {
        body: [&[query, 0, 0, 0], &5000_u16.to_be_bytes()[..], b"\0\x01ping"].concat(),
        ..Packet::echo(ends, 0, 0, b"")
    };
    let timestamp = Packet {
        body: [&[if query == 0 { 14 } else { 13 }, 0, 0, 0], &[0x13, 0x88][..], &[0; 14]].concat(),
        ..echo.clone()
    };
    let mut frames = vec![
        datagram.bytes(),
        Packet { checksum_at: None, ..datagram.clone() }.bytes(),
        with_options(&datagram.bytes()),
        Packet::tcp(ends, 5000, web, 1, SYN).bytes(),
        Packet::tcp(ends, 5000, web, 2, ACK).bytes(),
        handshake(ends, 5000, web, &[2, 4, 0x05, 0xb4, 4, 2, 1, 1]),
        // The announced size at an odd place.
        handshake(ends, 5000, web, &[1, 2, 4, 0x23, 0x28, 3, 3, 7]),
        echo.bytes(),
        timestamp.bytes(),
        Packet::udp(ends, from, to, &[9; 1900]).bytes(),
        Packet { fragment: 0, ..Packet::udp(ends, from, to, &[9; 1900]) }.bytes(),
        Packet { ttl: 1, ..datagram }.bytes(),
    ];
    let body = [&from.to_be_bytes()[..], &to.to_be_bytes(), &[0, 8, 0, 0], b"a payload"].concat();
    for (protocol, sum) in [(132, None), (47, None), (50, None), (136, Some(6)), (33, Some(6)), (2, None)] {
        frames.push(Packet::new(ends, protocol, body.clone(), sum).bytes());
    }
    let mut segment = Packet::tcp(ends, 5000, web, 3, ACK);
    segment.body.extend([7; 900]);
    for (number, whole) in [(1, Packet::udp(ends, from, to, &[8; 900])), (2, segment), (3, echo)] {
        frames.extend(parts(&whole, number, if number == 3 { 8 } else { 400 }));
    }
    frames
}

fn handshake(ends: Ends, from: u16, to: u16, options: &[u8]) -> Vec<u8> {
    let mut packet = Packet::tcp(ends, from, to, 1, SYN);
    packet.body[12] = u8::try_from((20 + options.len()) / 4).unwrap() << 4;
    packet.body.extend(options);
    packet.bytes()
}

fn errors(ends: Ends, quoted: &[u8]) -> Vec<Vec<u8>> {
    let whole = quoted.len() - 14;
    let cut = 28.min(whole);
    [(3, 4, whole), (3, 3, cut), (11, 0, whole), (12, 0, cut)]
        .map(|(kind, code, length)| error(ends, kind, code, &quoted[14..], length).bytes())
        .to_vec()
}

/// The frame with a record of two words in its IPv4 header.
fn with_options(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame.splice(34..34, [7, 7, 4, 0, 0, 0, 0, 0]);
    frame[14] = 0x47;
    let total = u16::try_from(frame.len() - 14).unwrap();
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    frame[24..26].fill(0);
    let sum = checksum(&[&frame[14..42]]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// The frame as if it had left: only its addresses matter to what quotes it.
fn with_source(frame: &[u8], source: [u8; 4]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[26..30].copy_from_slice(&source);
    frame
}

/// Guest 1 announces itself.
fn arp() -> Vec<u8> {
    announcement(GUEST1_MAC, GUEST1)
}

/// A guest announces itself.
pub fn announcement(mac: [u8; 6], address: [u8; 4]) -> Vec<u8> {
    let head = [&BRIDGE_MAC[..], &mac, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
    [&head[..], &mac, &address, &[0; 6], &GATEWAY, &[0; 18]].concat()
}
