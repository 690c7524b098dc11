//! What virtio hands over: checksums that are still to be completed, and packets of 60 kB that are yet to be cut.
//!
//! Offloads are off behind the hooks, at the uplink and at the guest's port, so the kernel completes and cuts after the
//! translation, and what arrives are whole packets that can be checked. On both hooks: tcx and clsact see a packet at places of
//! their own in the kernel's receive path.

use std::time::Duration;

use anyhow::{Result, ensure};
use vmnat_tests::lab::{
    frame::{Ends, Ipv4, Packet},
    octets,
    offload::OffloadTap,
    service::content,
    set_offloads,
    vmnat::Hook,
    {GATEWAY, Setup},
};

use super::scene::{A_WHILE, OUTSIDE, S1, SOON, Scene, from_guest, from_remote};

on_both_hooks!(
    partial_checksums_are_completed,
    large_segments_are_cut_behind_the_translation,
    large_segments_above_the_uplinks_mtu_are_answered,
);

fn datagram(ends: Ends, ports: (u16, u16), payload: &[u8]) -> Packet {
    Packet::udp(ends, ports.0, ports.1, payload)
}

fn segment(ends: Ends, ports: (u16, u16), payload: &[u8]) -> Packet {
    let mut packet = Packet::tcp(ends, ports.0, ports.1, 1000, 0x18);
    packet.body.extend(payload);
    packet
}

type Make = fn(Ends, (u16, u16), &[u8]) -> Packet;

/// UDP and TCP of odd and even lengths, both ways; guest 2 has the ports first, so ports change too.
fn partial_checksums_are_completed(hook: Hook) -> Result<()> {
    let mut scene = Scene::on(hook, Setup::default(), &[])?;
    set_offloads(&scene.lab.host, "vnet1", "off")?;
    let guest = OffloadTap::open(scene.lab.guest(1)?, "eth0")?;
    let router = OffloadTap::open(&scene.lab.router, "wan0")?;
    for make in [datagram, segment] as [Make; 2] {
        scene.leaves(2, &make(from_guest(2, S1), (5000, 7), b"first"))?;
        for length in [0, 1, 2, 17, 64, 1001, 1400] {
            let payload = content(length);
            let out = make(from_guest(1, S1), (5000, 7), &payload);
            drop(scene.router.drain());
            guest.send(&out, 0)?;
            let left = scene
                .router
                .expect("packet", SOON, |packet| packet.destination == S1 && packet.source == OUTSIDE)?;
            ensure!(left.header_is_sound && left.body_is_sound, "{length} bytes left damaged: {left:?}");
            ensure!(left.body.ends_with(&payload) && left.body.len() == out.body.len(), "{left:?}");
            let external = left.ports().map_or(0, |ports| ports.0);
            ensure!(external != 5000, "the port was not changed: half of the test is void");
            drop(scene.guests[0].drain());
            router.send(&make(from_remote(S1), (7, external), &payload), 0)?;
            let came = scene.guests[0].expect("packet", SOON, |packet| packet.source == S1)?;
            ensure!(came.header_is_sound && came.body_is_sound, "{length} bytes arrived damaged: {came:?}");
            ensure!(came.ports() == Some((7, 5000)) && came.body.ends_with(&payload), "{came:?}");
        }
    }
    scene.lab.assert_invariants()
}

/// What arrived of a large packet must be its payload in order, each part whole.
fn assembled(parts: &[Ipv4], headers: usize, payload: &[u8]) -> Result<()> {
    ensure!(parts.iter().all(|part| part.header_is_sound && part.body_is_sound), "a part is damaged");
    let whole = parts.iter().flat_map(|part| &part.body[headers..]).copied().collect::<Vec<u8>>();
    ensure!(whole == payload, "{} bytes in {} parts are not what was sent", whole.len(), parts.len());
    Ok(())
}

/// 60 kB by TCP (TSO) and UDP (USO), both ways.
fn large_segments_are_cut_behind_the_translation(hook: Hook) -> Result<()> {
    let mut scene = Scene::on(hook, Setup::default(), &[])?;
    set_offloads(&scene.lab.host, "vnet1", "off")?;
    // The router's own segments must reach the uplink uncut.
    set_offloads(&scene.lab.router, "wan0", "on")?;
    let guest = OffloadTap::open(scene.lab.guest(1)?, "eth0")?;
    let router = OffloadTap::open(&scene.lab.router, "wan0")?;
    let payload = content(60_000);
    for (make, headers, size) in [(segment as Make, 20, 1448), (datagram, 8, 1400)] {
        scene.leaves(2, &make(from_guest(2, S1), (5000, 7), b"first"))?;
        let first = scene.leaves(1, &make(from_guest(1, S1), (5000, 7), b"opens"))?;
        let external = first.ports().map_or(0, |ports| ports.0);
        let count = payload.len().div_ceil(usize::from(size));
        let enough = |packets: &mut dyn Iterator<Item = Ipv4>| packets.take(count).collect::<Vec<_>>();

        drop(scene.router.drain());
        guest.send(&make(from_guest(1, S1), (5000, 7), &payload), size)?;
        let mut left =
            std::iter::from_fn(|| scene.router.expect("part", SOON, |part| part.source == OUTSIDE).ok());
        let left = enough(&mut left);
        ensure!(left.len() == count, "{} parts of {count} left", left.len());
        assembled(&left, headers, &payload)?;

        drop(scene.guests[0].drain());
        router.send(&make(from_remote(S1), (7, external), &payload), size)?;
        let mut came =
            std::iter::from_fn(|| scene.guests[0].expect("part", SOON, |part| part.source == S1).ok());
        let came = enough(&mut came);
        ensure!(came.len() == count, "{} parts of {count} arrived", came.len());
        assembled(&came, headers, &payload)?;
    }
    scene.lab.assert_invariants()
}

/// Segments that fit the guest's network and not the uplink: the guest is told the uplink's MTU, and nothing leaves. With segments
/// that fit, all does.
fn large_segments_above_the_uplinks_mtu_are_answered(hook: Hook) -> Result<()> {
    let mut scene = Scene::on(hook, Setup { uplink_mtu: 1400, ..Setup::default() }, &[])?;
    let guest = OffloadTap::open(scene.lab.guest(1)?, "eth0")?;
    let payload = content(20_000);
    let large = segment(from_guest(1, S1), (5000, 80), &payload);
    scene.leaves(1, &segment(from_guest(1, S1), (5000, 80), b"opens"))?;
    scene.guests.iter().chain([&scene.router]).for_each(|tap| drop(tap.drain()));
    guest.send(&large, 1460)?;
    let answer =
        scene.guests[0].expect("fragmentation needed", SOON, |packet| packet.icmp() == Some((3, 4)))?;
    ensure!(answer.source == octets(GATEWAY)?, "answered by {:?}", answer.source);
    ensure!(answer.body[6..8] == 1400_u16.to_be_bytes(), "it says {:?}", &answer.body[..8]);
    ensure!(answer.body[20..24] == from_guest(1, S1).source, "it quotes {:02x?}", &answer.body[8..]);
    let left = scene.router.collect(A_WHILE, |packet| packet.source == OUTSIDE && packet.destination == S1);
    ensure!(left.is_empty(), "{} left all the same", left.len());
    guest.send(&large, 1360)?;
    let count = payload.len().div_ceil(1360);
    let left = scene
        .router
        .collect(Duration::from_millis(500), |packet| packet.source == OUTSIDE && packet.destination == S1);
    ensure!(left.len() == count, "{} parts of {count} left", left.len());
    assembled(&left, 20, &payload)?;
    // The guest's own connection tracking does not know what its raw socket has sent.
    scene.lab.assert_sound_but_for_invalid_packets()
}
