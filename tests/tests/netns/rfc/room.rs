//! What needs a whole stack: to be cut, or answered, under the external address (RFC 4787 REQ-13, RFC 1812, RFC 2979).

use anyhow::{Result, ensure};
use vmnat_tests::lab::{
    Setup,
    frame::{Ipv4, Packet},
    service::content,
};

use super::{
    fragments::next_datagram,
    scene::{OUTSIDE, S1, SOON, Scene, from_guest, from_remote},
};

/// The ICMP error that the router gets from the external address, and the packet that it quotes as it was sent.
fn told(scene: &Scene, kind: u8, code: u8, sent: &Packet) -> Result<Ipv4> {
    let error =
        scene.router.expect("error at the router", SOON, |packet| packet.icmp() == Some((kind, code)))?;
    ensure!((error.source, error.destination) == (OUTSIDE, S1), "{error:?}");
    ensure!(error.header_is_sound && error.body_is_sound, "its checksums are wrong: {error:?}");
    let (quote, frame) = (&error.body[8..], sent.bytes());
    ensure!(
        quote[12..20] == frame[26..34],
        "the quote shows {:?}, sent was {:?}",
        &quote[12..20],
        &frame[26..34]
    );
    ensure!(quote[20..28] == frame[34..42], "the quoted ports are not those that were sent");
    Ok(error)
}

/// 1. 1,450 bytes that may be cut leave an uplink of 1,400 in two parts, as one datagram; 2. what may not be cut does not leave.
#[test]
fn what_outgrows_the_uplink_is_cut_and_translated_once() -> Result<()> {
    let mut scene = Scene::with(Setup { uplink_mtu: 1400, ..Setup::default() }, &[])?;
    let payload = content(1450);
    for identification in 0..3 {
        drop(scene.router.drain());
        let whole = Packet::udp(from_guest(1, S1), 5000, 7, &payload);
        scene.guests[0].send(&Packet { fragment: 0, ..whole.clone() }.bytes())?;
        let (left, parts) = next_datagram(&scene.router, OUTSIDE, S1)?;
        ensure!(
            parts == 2 && left.body.ends_with(&payload),
            "datagram {identification} left in {parts} parts"
        );
        ensure!(left.ttl == 63, "TTL {}", left.ttl);
    }
    let frame = Packet::udp(from_guest(1, S1), 5000, 7, &payload).bytes();
    scene.none_leaves(1, "what may not be cut", &[frame])?;
    // The guest's kernel is told of the size, and knows nothing of what the test sent past it.
    scene.lab.assert_sound_but_for_invalid_packets()
}

/// The last hop in: time exceeded, from the external address and about the external endpoint.
#[test]
fn the_last_hop_in_is_told_without_a_guests_address() -> Result<()> {
    let mut scene = Scene::new()?;
    let port = scene.open(1, 5000, S1, 7)?;
    let spent = Packet { ttl: 1, ..Packet::udp(from_remote(S1), 7, port, b"no further") };
    drop(scene.router.drain());
    scene.none_arrives("a packet without a hop left", &[spent.bytes()])?;
    scene.router.send(&spent.bytes())?;
    told(&scene, 11, 0, &spent)?;
    scene.lab.assert_invariants()
}

/// A guest's network smaller than the uplink: 1. what may not be cut is answered with its size; 2. what may arrives in parts.
#[test]
fn what_outgrows_the_guests_network_is_answered_or_cut() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.lab.host.ip("link set virbr0 mtu 1300\n")?;
    let port = scene.open(1, 5000, S1, 7)?;
    let payload = content(1400);
    let large = Packet::udp(from_remote(S1), 7, port, &payload);
    let is_small = |scene: &Scene| -> Result<bool> {
        drop(scene.router.drain());
        scene.router.send(&large.bytes())?;
        let error = scene.router.expect("error at the router", SOON, |packet| packet.icmp() == Some((3, 4)));
        Ok(error.is_ok_and(|error| error.body[6..8] == 1300_u16.to_be_bytes()))
    };
    // The agent has heard of the new size by then.
    vmnat_tests::lab::wait_until("the sender is told of 1,300 bytes", SOON * 3, || is_small(&scene))?;
    drop(scene.router.drain());
    scene.router.send(&large.bytes())?;
    told(&scene, 3, 4, &large)?;
    drop(scene.guests[0].drain());
    scene.router.send(&Packet { fragment: 0, ..large }.bytes())?;
    let (came, parts) = next_datagram(&scene.guests[0], S1, from_guest(1, S1).source)?;
    ensure!(parts == 2 && came.body.ends_with(&payload), "it came in {parts} parts");
    scene.lab.assert_invariants()
}
