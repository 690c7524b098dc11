//! Abuse: what contradicts itself, what claims to be from inside, what nobody asked for (BCP 38 and beyond).

use anyhow::{Context, Result, ensure};
use vmnat_tests::lab::{
    EXTERNAL, GATEWAY, SERVER_ECHO, Setup,
    client::{Asker, Conversation},
    frame::{Ends, Packet},
    guest_address, octets,
};

use super::scene::{A_WHILE, OUTSIDE, S1, Scene, error, from_guest, from_remote, with_header};

/// A name and a frame that is not what it says.
type Malformed = (String, Vec<u8>);

/// A frame with one byte after another replaced; no checksum follows the change.
fn patched(frame: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

/// The same with the IPv4 header's checksum made right again, as far as the header's own length goes.
fn patched_header(frame: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = patched(frame, at, bytes);
    frame[24..26].fill(0);
    let length = (usize::from(frame[14] & 0xf) * 4).clamp(20, frame.len() - 14);
    let sum = vmnat_tests::lab::frame::checksum(&[&frame[14..14 + length]]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// Some fifty frames between these ends: lengths, versions and offsets that cannot be, packets cut anywhere, quotes cut anywhere and
/// nested, options that do not fit, source routes, and a packet to its own sender.
fn malformed(ends: Ends, ports: (u16, u16), quoted: &[u8]) -> Vec<Malformed> {
    let udp = Packet::udp(ends, ports.0, ports.1, b"malformed datagram").bytes();
    let mut tcp = Packet::tcp(ends, ports.0, ports.1, 1, 0x18);
    tcp.body.extend(b"malformed segment");
    let tcp = tcp.bytes();
    let echo = Packet::echo(ends, ports.0, 1, b"malformed query").bytes();
    let mut all = Vec::new();
    let mut add = |name: String, frame: Vec<u8>| all.push((name, frame));
    for (name, frame) in [("udp", &udp), ("tcp", &tcp), ("echo", &echo)] {
        for first in [0x40, 0x41, 0x44, 0x4f, 0x05, 0x35, 0x55, 0x65, 0xf5] {
            add(format!("{name}: first byte {first:#04x}"), patched_header(frame, 14, &[first]));
        }
        let longer = u16::try_from(frame.len() - 13).unwrap_or(0);
        for total in [0, 1, 19, 20, 24, 27, longer, u16::MAX] {
            add(format!("{name}: total length {total}"), patched_header(frame, 16, &total.to_be_bytes()));
        }
        for kept in [14, 15, 33, 34, 35, 37, 38, 41, 42, 46, 53] {
            add(format!("{name}: cut to {kept} bytes"), frame[..kept].to_vec());
            let cut = |header: &mut Vec<u8>| header.truncate(20);
            if kept >= 34 {
                add(
                    format!("{name}: cut to {kept} bytes, and says so"),
                    with_header(frame[..kept].to_vec(), cut),
                );
            }
        }
        for options in [
            &[7, 0, 4, 0][..],
            &[7, 255, 4, 0],
            &[68, 3, 5, 1],
            &[131, 7, 4, 1, 2, 3, 4, 0],
            &[137, 3, 4, 0],
            &[1, 1, 1, 7],
        ] {
            let with = |header: &mut Vec<u8>| {
                header[0] = 0x45 + u8::try_from(options.len() / 4).unwrap_or(0);
                header.extend(options);
            };
            add(format!("{name}: options {options:?}"), with_header(frame.clone(), with));
        }
        add(format!("{name}: from its own receiver"), patched_header(frame, 26, &ends.destination));
        // From outside that would be a packet for the host's own routing.
        if ends.destination != OUTSIDE {
            add(format!("{name}: to its own sender"), patched_header(frame, 30, &ends.source));
        }
    }
    for length in [0, 7, 9, u16::MAX] {
        add(format!("UDP length {length}"), patched(&udp, 38, &length.to_be_bytes()));
    }
    for offset in [0x00, 0x40, 0xf0] {
        add(format!("TCP offset {offset:#04x}"), patched(&tcp, 46, &[offset]));
    }
    for cut in [0, 1, 8, 19, 20, 21, 24, 27] {
        add(format!("a quote cut to {cut} bytes"), error(ends, 3, 1, quoted, cut).bytes());
    }
    for first in [0x00, 0x40, 0x44, 0x4f, 0x65] {
        let quoted = patched(quoted, 0, &[first]);
        add(
            format!("a quote that begins with {first:#04x}"),
            error(ends, 3, 1, &quoted, quoted.len()).bytes(),
        );
    }
    let nested = error(ends, 11, 0, quoted, quoted.len()).bytes();
    add("an error about an error".to_owned(), error(ends, 3, 1, &nested[14..], nested.len()).bytes());
    all
}

/// Every malformed frame, from guest 1 and from a remote at a live mapping, with forwarding open in the kernel: nothing leaves with
/// a private source, and conversations by TCP and UDP go on with their ports.
#[test]
fn malformed_frames_do_no_harm() -> Result<()> {
    let mut scene = Scene::with(Setup { ip_forward: true, ..Setup::default() }, &[])?;
    scene.spare_the_host()?;
    let external = scene.open(1, 5000, S1, 7)?;
    let mut conversation = Conversation::open(scene.lab.guest(1)?, SERVER_ECHO)?;
    let asker = Asker::new(scene.lab.guest(1)?, 31_900)?;
    let seen_as = asker.ask(SERVER_ECHO)?;

    let datagram = Packet::udp(from_guest(1, S1), 5000, 7, b"quoted");
    let outside = scene.leaves_as_frame(1, 17, &datagram.bytes())?[14..].to_vec();
    let inside =
        Packet::udp(Ends { source: S1, destination: datagram.source, ..from_remote(S1) }, 7, 5000, b"quoted")
            .bytes();
    let from_inside = malformed(from_guest(1, S1), (5000, 7), &inside[14..]);
    let from_outside = malformed(from_remote(S1), (7, external), &outside);
    ensure!(
        from_inside.len() >= 45 && from_outside.len() >= 45,
        "{} and {}",
        from_inside.len(),
        from_outside.len()
    );
    for (name, frame) in &from_inside {
        scene.guests[0].send(frame)?;
        let foreign = scene.router.drain();
        let foreign = foreign.iter().find(|got| got.len() >= 34 && got[26..29] == [192, 168, 122]);
        ensure!(foreign.is_none(), "{name} left: {foreign:02x?}");
    }
    for (name, frame) in &from_outside {
        scene.router.send(frame).context(name.clone())?;
    }
    std::thread::sleep(A_WHILE);
    scene.lab.leaks.assert_none()?;
    conversation.exchange(100_000)?;
    ensure!(asker.ask(SERVER_ECHO)? == seen_as, "a UDP mapping has moved");
    ensure!(scene.open(1, 5000, S1, 7)? == external, "the mapping under attack has moved");
    scene.arrives(1, &Packet::udp(from_remote(S1), 7, external, b"still here"))?;
    scene.lab.assert_sound_but_for_invalid_packets()
}

/// A live mapping's external port is sent to from outside, in the name of both guests, the gateway, the host, its loopback, nobody,
/// everybody, a group and a station of the far network: none gets in, and the mapping lives.
#[test]
fn forged_inside_sources_reach_nobody() -> Result<()> {
    let mut scene = Scene::with(Setup { ip_forward: true, ..Setup::default() }, &[])?;
    let external = scene.open(1, 5000, S1, 7)?;
    let sources = [
        guest_address(1),
        guest_address(2),
        GATEWAY.to_owned(),
        EXTERNAL.to_owned(),
        "127.0.0.1".to_owned(),
        "0.0.0.0".to_owned(),
        "255.255.255.255".to_owned(),
        "224.0.0.1".to_owned(),
        "10.9.8.7".to_owned(),
    ];
    for source in &sources {
        let ends = Ends { source: octets(source)?, ..from_remote(S1) };
        let mut direct = ends;
        direct.destination = from_guest(1, S1).source;
        scene.guests.iter().for_each(|guest| drop(guest.drain()));
        for ends in [ends, direct] {
            scene.router.send(&Packet::udp(ends, 7, external, b"forged inside").bytes())?;
            scene.router.send(&Packet::udp(ends, 7, 5000, b"forged inside").bytes())?;
        }
        for guest in &scene.guests {
            let came = guest.collect(A_WHILE / 4, |packet| {
                packet.body.ends_with(b"forged inside") && packet.icmp().is_none()
            });
            ensure!(came.is_empty(), "in the name of {source}: {came:?}");
        }
    }
    ensure!(scene.open(1, 5000, S1, 7)? == external, "the mapping has moved");
    scene.arrives(1, &Packet::udp(from_remote(S1), 7, external, b"the real one"))?;
    scene.lab.assert_sound_but_for_invalid_packets()
}

/// The first router sends to a guest's own address: on a live flow's inner tuple by UDP and TCP, a ping, an error about the flow, to
/// an address that no guest has. Nothing arrives.
#[test]
fn guests_cannot_be_addressed_from_outside() -> Result<()> {
    let mut scene = Scene::with(Setup { ip_forward: true, ..Setup::default() }, &[])?;
    scene.open(1, 5000, S1, 7)?;
    let ends = Ends { destination: from_guest(1, S1).source, ..from_remote(S1) };
    let quoted = Packet::udp(from_guest(1, S1), 5000, 7, b"opens").bytes();
    let mut nobody = ends;
    nobody.destination = [192, 168, 122, 200];
    let frames = [
        Packet::udp(ends, 7, 5000, b"x"),
        Packet::tcp(ends, 80, 7000, 1, 0x02),
        Packet::echo(ends, 1, 1, b"x"),
        error(ends, 3, 1, &quoted[14..], 28),
        Packet::udp(nobody, 7, 5000, b"x"),
    ];
    scene.none_arrives("what is addressed to a guest", &frames.map(|packet| packet.bytes()))?;
    ensure!(scene.lab.counter("private_destination")? >= 5, "private_destination has not counted them");
    ensure!(
        scene.leaves(1, &Packet::udp(from_guest(1, S1), 5000, 7, b"on"))?.source == OUTSIDE,
        "it is not translated"
    );
    scene.lab.assert_sound_but_for_invalid_packets()
}
