//! ICMP (RFC 5508, RFC 4884): queries, and errors about what guests have sent.

use std::{io::ErrorKind, net::UdpSocket, time::Duration};

use anyhow::{Context, Result, ensure};
use vmnat_tests::lab::{
    SERVER, SERVER_ECHO,
    client::{self, Conversation},
    frame::{Address, Ipv4, Packet, checksum},
    octets,
};

use super::{
    scene::{OUTSIDE, PATH, S1, S2, Scene, error, from_guest, from_remote, reply, sound},
    tcp::{ACK, Line, PSH, SYN},
};

/// Guest 1.
const GUEST: Address = [192, 168, 122, 10];

/// The quoted packet, whose header checksum must be right.
fn quote(packet: &Ipv4) -> Result<&[u8]> {
    let quote = packet.body.get(8..).context("no quote")?;
    let header = usize::from(quote[0] & 0xf) * 4;
    ensure!(checksum(&[&quote[..header]]) == 0, "the quoted header's checksum is wrong: {quote:02x?}");
    Ok(quote)
}

/// Both guests ping both remotes with identifier 1, as Windows does: each has one external identifier whatever the remote, no two
/// the same one, and each reply comes back with identifier, sequence and bytes of its own query.
#[test]
fn queries_keep_one_identifier_and_replies_find_their_guest() -> Result<()> {
    let mut scene = Scene::new()?;
    let mut externals = Vec::new();
    for guest in [1, 2] {
        for remote in [S1, S2] {
            let payload = format!("guest {guest} to {remote:?}");
            let asked =
                scene.leaves(guest, &Packet::echo(from_guest(guest, remote), 1, 7, payload.as_bytes()))?;
            let identifier = u16::from_be_bytes(asked.body[4..6].try_into()?);
            externals.push(identifier);
            let answer = scene.arrives(guest, &reply(remote, identifier, 7, payload.as_bytes()))?;
            ensure!(answer.body[4..8] == [0, 1, 0, 7], "guest {guest} gets {answer:?}");
            ensure!(answer.body[8..] == *payload.as_bytes(), "guest {guest} gets {answer:?}");
        }
    }
    ensure!(externals[0] == externals[1] && externals[2] == externals[3], "not by endpoint: {externals:?}");
    ensure!(externals[0] != externals[2], "both guests are {externals:?}");
    let mut timestamp = Packet::echo(from_guest(1, S1), 1, 7, &[0; 12]);
    timestamp.body[0] = 13;
    scene.leaves(1, &timestamp)?;
    scene.lab.assert_invariants()
}

/// A flow of guest 1 of each kind, with what an error would quote of it.
fn flows(scene: &Scene) -> Result<Vec<(&'static str, Vec<u8>)>> {
    // Guest 2 has the ports first, so every quote must be changed back.
    for guest in [2, 1] {
        Line::established(scene, guest, 5000, S1, 80)?;
    }
    let mut flows = Vec::new();
    for (name, packet) in [
        ("UDP", |guest| Packet::udp(from_guest(guest, S1), 5000, 7, b"about this datagram")),
        ("TCP", |guest| Packet::tcp(from_guest(guest, S1), 5000, 80, 0x1000_1388, ACK)),
        ("echo", |guest| Packet::echo(from_guest(guest, S1), 5000, 1, b"about this ping")),
    ] as [(_, fn(usize) -> Packet); 3]
    {
        scene.leaves(2, &packet(2))?;
        let sent = packet(1);
        flows.push((name, scene.leaves_as_frame(1, sent.protocol, &sent.bytes())?[14..].to_vec()));
    }
    Ok(flows)
}

/// Every unreachable, time exceeded and parameter problem, about UDP, TCP and echo, quoting 28 bytes or all, from the remote and
/// from the path: guest 1 gets it with type, code, rest of the header and outer source kept, and quoting its own packet.
#[test]
fn errors_reach_their_owner_quoting_its_own_packet() -> Result<()> {
    let mut scene = Scene::new()?;
    let kinds = (0..16).map(|code| (3, code)).chain([(11, 0), (11, 1), (12, 0), (12, 1), (12, 2)]);
    let flows = flows(&scene)?;
    for (kind, code) in kinds {
        for (name, quoted) in &flows {
            for (from, length) in [(PATH, 28), (S1, quoted.len())] {
                let mut packet = error(from_remote(from), kind, code, quoted, length);
                packet.body[4..8].copy_from_slice(&[9, 0, 0x05, 0x14]);
                let got = scene.arrives(1, &packet).with_context(|| format!("{kind}/{code} about {name}"))?;
                ensure!(
                    got.icmp() == Some((kind, code)) && got.body[4..8] == [9, 0, 0x05, 0x14],
                    "{name}: {got:?}"
                );
                let quote = quote(&got)?;
                ensure!(quote.len() == length && quote[12..16] == GUEST, "{name}: it quotes {quote:02x?}");
                let port_at = if *name == "echo" { 24 } else { 20 };
                ensure!(
                    quote[port_at..port_at + 2] == 5000_u16.to_be_bytes(),
                    "{name}: it quotes {quote:02x?}"
                );
                if length > 28 {
                    let frame = [&[0; 12], &[0x08, 0x00][..], quote].concat();
                    sound(&frame).with_context(|| format!("{name}: the whole quote as a packet"))?;
                }
            }
        }
    }
    scene.lab.assert_invariants()
}

/// No message of any type, about a flow of any kind, ends a flow: 256 types with code 0 and every code of type 3, thrice, and
/// then data both ways through UDP, TCP and echo.
#[test]
fn no_message_ends_a_mapping() -> Result<()> {
    let mut scene = Scene::new()?;
    let mut line = Line::established(&scene, 1, 5000, S1, 80)?;
    let udp = scene.open(1, 5000, S1, 7)?;
    let question = Packet::echo(from_guest(1, S1), 5000, 1, b"").bytes();
    let ping = sound(&scene.leaves_as_frame(1, 1, &question)?)?;
    let identifier = u16::from_be_bytes(ping.body[4..6].try_into()?);
    let quotes = [
        Packet::udp(from_guest(1, S1), 5000, 7, b"x").bytes(),
        Packet::tcp(from_guest(1, S1), 5000, 80, line.next.0, ACK).bytes(),
        question,
    ];
    for quoted in quotes {
        let left = scene.leaves_as_frame(1, quoted[23], &quoted)?;
        let kinds = (0..=255).map(|kind| (kind, 0)).chain((1..16).map(|code| (3, code)));
        for (kind, code) in kinds {
            for from in [PATH, S1, OUTSIDE] {
                scene.router.send(&error(from_remote(from), kind, code, &left[14..], 28).bytes())?;
            }
        }
    }
    line.data_both_ways()?;
    ensure!(scene.open(1, 5000, S1, 7)? == udp, "the UDP mapping has moved");
    scene.arrives(1, &Packet::udp(from_remote(S1), 7, udp, b"data"))?;
    scene.arrives(1, &reply(S1, identifier, 1, b""))?;
    scene.lab.assert_sound_but_for_invalid_packets()
}

/// RFC 4884: time exceeded with a quote padded to 128 bytes, its length said in words, and an extension behind it (here MPLS): all
/// behind the quoted headers arrives unchanged, and the message's checksum is right.
#[test]
fn extensions_survive() -> Result<()> {
    let mut scene = Scene::new()?;
    for (name, mut quoted) in flows(&scene)? {
        let extension = [0x20, 0, 0x7b, 0x9c, 0, 8, 1, 1, 0x06, 0x8a, 0x61, 0x40];
        let headers = quoted.len();
        quoted.resize(128, 0);
        quoted.extend(extension);
        let mut packet = error(from_remote(PATH), 11, 0, &quoted, quoted.len());
        packet.body[5] = 128 / 4;
        let got = scene.arrives(1, &packet).with_context(|| format!("an error about {name}"))?;
        ensure!(got.body[4..8] == [0, 32, 0, 0], "{name}: the length has become {:?}", &got.body[4..8]);
        let quote = quote(&got)?;
        ensure!(quote.len() == 140 && quote[headers..] == quoted[headers..], "{name}: {quote:02x?}");
    }
    scene.lab.assert_invariants()
}

/// The quote's IP options are stepped over, its transport checksum, wrong on purpose, is not judged, and neither is touched but
/// for the difference that the endpoint makes.
#[test]
fn quotes_with_options_and_wrong_transport_checksums_arrive() -> Result<()> {
    let mut scene = Scene::new()?;
    for (name, mut quoted) in flows(&scene)? {
        let sum_at =
            [26, 36, 22][["UDP", "TCP", "echo"].iter().position(|known| *known == name).unwrap_or(0)];
        quoted[sum_at] ^= 0x5a;
        let got = scene.arrives(1, &error(from_remote(PATH), 3, 1, &quoted, quoted.len()))?;
        ensure!(quote(&got)?[12..16] == GUEST, "{name}: {got:?}");
        let framed = super::scene::with_header([&[0; 14], &quoted[..]].concat(), |header| {
            header[0] = 0x46;
            header.extend([1, 1, 1, 0]);
        });
        let got = scene.arrives(1, &error(from_remote(PATH), 3, 1, &framed[14..], framed.len()))?;
        let quote = quote(&got)?;
        ensure!(
            quote[0] == 0x46 && quote[12..16] == GUEST && quote[20..24] == [1, 1, 1, 0],
            "{name}: {quote:02x?}"
        );
    }
    scene.lab.assert_invariants()
}

/// Redirects, source quench, router advertisements and types that are long dead, quoting a live flow, reach no guest; nor do errors
/// that quote no flow, or a live flow the wrong way round.
#[test]
fn what_is_no_error_about_a_flow_reaches_no_guest() -> Result<()> {
    let mut scene = Scene::new()?;
    let flows = flows(&scene)?;
    let mut frames = Vec::new();
    for (_, quoted) in &flows {
        for kind in [4, 5, 6, 9, 10, 15, 16, 17, 18, 30, 37, 38, 40, 42, 255] {
            for code in 0..4 {
                frames.push(error(from_remote(PATH), kind, code, quoted, 28).bytes());
            }
        }
        let mut of_nobody = quoted.clone();
        of_nobody[20..28].iter_mut().for_each(|byte| *byte ^= 2);
        let mut elsewhere = quoted.clone();
        elsewhere[16..20].copy_from_slice(&S2);
        let mut reversed = quoted.clone();
        reversed[12..20].rotate_left(4);
        for wrong in [of_nobody, elsewhere, reversed] {
            frames.push(error(from_remote(PATH), 3, 1, &wrong, 28).bytes());
        }
        for cut in [0, 1, 8, 19, 20, 21, 23] {
            frames.push(error(from_remote(PATH), 3, 1, quoted, cut).bytes());
        }
    }
    scene.none_arrives("what is no error about a flow", &frames)?;
    scene.lab.assert_sound_but_for_invalid_packets()
}

/// A guest's errors leave quoting the external endpoint; those about the other guest's flow, about none, or sent to somebody else
/// do not leave.
#[test]
fn a_guests_errors_are_about_its_own_flows() -> Result<()> {
    let mut scene = Scene::new()?;
    let external = scene.open(1, 5000, S1, 7)?;
    let answer = Packet::udp(from_remote(S1), 7, external, b"answer");
    let got = scene.arrives_as_frame(1, 17, &answer.bytes())?[14..].to_vec();
    for (kind, code) in [(3, 3), (3, 1), (11, 1)] {
        let left = scene.leaves(1, &error(from_guest(1, S1), kind, code, &got, got.len()))?;
        ensure!(left.icmp() == Some((kind, code)), "{left:?}");
        let quote = quote(&left)?;
        ensure!(quote[12..20] == [S1, OUTSIDE].concat(), "it quotes {quote:02x?}");
        ensure!(quote[20..24] == answer.body[..4], "it quotes {quote:02x?}");
    }
    let to = |guest, remote| error(from_guest(guest, remote), 3, 3, &got, got.len()).bytes();
    let mut of_nobody = got.clone();
    of_nobody[23] ^= 2;
    let wrong = error(from_guest(1, S1), 3, 3, &of_nobody, of_nobody.len()).bytes();
    scene.none_leaves(2, "an error about the other guest's flow", &[to(2, S1), to(1, S1)])?;
    scene.none_leaves(1, "an error to a bystander or about nothing", &[to(1, S2), wrong])?;
    scene.lab.assert_invariants()
}

/// RFC 4787 REQ-12 and RFC 5382 REQ-10 with real stacks: "unreachable" of every code in the middle of a conversation by TCP, and it
/// goes on.
#[test]
fn unreachables_do_not_end_a_live_conversation() -> Result<()> {
    let mut scene = Scene::new()?;
    let mut conversation = Conversation::open_from(scene.lab.guest(1)?, 31_800, SERVER_ECHO)?;
    conversation.exchange(10_000)?;
    let sent = [31_800_u16, 7000].map(u16::to_be_bytes).concat();
    let mut quoted = Packet::new(from_remote(octets(SERVER)?), 6, sent, None).bytes()[14..].to_vec();
    quoted[12..20].copy_from_slice(&[OUTSIDE, octets(SERVER)?].concat());
    quoted.extend([0x11, 0x22, 0x33, 0x44]);
    for code in (0..14).filter(|code| *code != 4) {
        scene.arrives(1, &error(from_remote(PATH), 3, code, &quoted, 28))?;
    }
    conversation.exchange(1_000_000)?;
    conversation.close()?;
    scene.lab.assert_sound_but_for_invalid_packets()
}

/// A message with a wrong checksum of its own ends nothing at the guest: its connected socket hears of no error. The same message
/// with the right one is heard.
#[test]
fn an_error_with_a_wrong_checksum_is_not_heard() -> Result<()> {
    let mut scene = Scene::new()?;
    let socket = scene.lab.guest(1)?.run(|| UdpSocket::bind("0.0.0.0:5000"))?;
    socket.connect(SERVER_ECHO)?;
    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    socket.send(b"hello")?;
    socket.recv(&mut [0; 64]).context("the echo's answer")?;
    let datagram = Packet::udp(from_guest(1, octets(SERVER)?), 5000, 7000, b"hello").bytes();
    let left = scene.leaves_as_frame(1, 17, &datagram)?;
    socket.recv(&mut [0; 64]).context("the echo's answer")?;
    let mut message = error(from_remote(octets(SERVER)?), 3, 3, &left[14..], left.len());
    let right = message.bytes();
    message.checksum_at = None;
    message.body[2..4].copy_from_slice(&[right[36] ^ 0x40, right[37]]);
    scene.router.send(&message.bytes())?;
    let heard = |what: &str| match socket.recv(&mut [0; 64]) {
        Err(error) => Ok(error.kind() == ErrorKind::ConnectionRefused),
        Ok(length) => anyhow::bail!("{what}: {length} bytes that nobody sent"),
    };
    ensure!(!heard("a wrong checksum")?, "the guest believed an error with a wrong checksum");
    scene.router.send(&right)?;
    ensure!(heard("a right checksum")?, "the guest did not hear of an error with a right checksum");
    client::ping(scene.lab.guest(1)?, SERVER)?;
    // The end hosts count the damaged message, which is the point of it.
    scene.lab.leaks.assert_none()?;
    scene.lab.keep_quiet();
    Ok(())
}

/// A conversation by TCP of which only eight bytes are quoted, in the middle of its handshake: the error arrives, and the handshake
/// completes.
#[test]
fn a_handshake_completes_after_a_soft_error() -> Result<()> {
    let mut scene = Scene::new()?;
    let mut line = Line::new(&scene, 1, 5000, S1, 80);
    let syn = Packet::tcp(from_guest(1, S1), 5000, 80, line.next.0, SYN).bytes();
    let left = scene.leaves_as_frame(1, 6, &syn)?;
    for code in [0, 1, 5, 13] {
        scene.arrives(1, &error(from_remote(PATH), 3, code, &left[14..], 28))?;
    }
    line.handshake()?;
    line.out(PSH | ACK, b"on")?;
    scene.lab.assert_invariants()
}
