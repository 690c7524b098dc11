//! What an operator may ask for: filtering by nothing but the mapping (RFC 4787 REQ-8, RFC 5382 REQ-3), and quotas (RFC 6888 REQ-4,
//! RFC 5508 REQ-8). Where filtering is open, guests call each other's mappings without a word before (RFC 4787 REQ-9, RFC 5382 REQ-8).

use anyhow::{Result, ensure};
use vmnat_tests::lab::{GATEWAY, Lab, Setup, frame::Packet, guest_address, octets, stun::Stun, vmnat::Hook};

use super::scene::{OUTSIDE, S1, S2, SOON, Scene, from_guest, from_remote, source_port};

const OPEN_TO_ALL: [&str; 2] = ["--filtering", "endpoint-independent"];
const SYN: u8 = 0x02;

/// coturn's and Vovida's clients find the same mapping, and filtering by nothing but it.
#[test]
fn discovery_finds_endpoint_independent_filtering_where_it_is_asked_for() -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up_with(Hook::of_the_kernel(), &OPEN_TO_ALL)?;
    let stun = Stun::serve(&lab)?;
    let guest = lab.guest(2)?;
    let found = stun.discovery(guest, &["-m", "-f", "-L", &guest_address(2), "-l", "5000"])?;
    ensure!(found.contains("NAT with Endpoint Independent Mapping!"), "{found}");
    ensure!(found.contains("NAT with Endpoint Independent Filtering!"), "{found}");
    let said = stun.classification(guest)?;
    ensure!(said.contains("Independent Mapping, Independent Filter"), "{said}");
    lab.assert_invariants()
}

/// coturn's client reaches itself by its own external endpoint, with the strict filter too.
#[test]
fn discovery_finds_hairpinning() -> Result<()> {
    for arguments in [&OPEN_TO_ALL[..], &[]] {
        let mut lab = Lab::new()?;
        lab.up_with(Hook::of_the_kernel(), arguments)?;
        let stun = Stun::serve(&lab)?;
        let found = stun.discovery(lab.guest(2)?, &["-m", "-H", "-L", &guest_address(2), "-l", "5000"])?;
        ensure!(found.contains("hairpin") && !found.contains("not support"), "{arguments:?}: {found}");
        let said = stun.classification(lab.guest(2)?)?;
        ensure!(said.contains("will hairpin"), "{arguments:?}: {said}");
        lab.assert_invariants()?;
    }
    Ok(())
}

/// S1:8, S2:7 and S2:8 all get in at a mapping that was opened towards S1:7, and their answers leave from it.
#[test]
fn filtering_may_be_endpoint_independent() -> Result<()> {
    let mut scene = Scene::with(Setup::default(), &OPEN_TO_ALL)?;
    let external = scene.open(1, 5000, S1, 7)?;
    for (remote, port) in [(S1, 8), (S2, 7), (S2, 8)] {
        let got = scene.arrives(1, &Packet::udp(from_remote(remote), port, external, b"in"))?;
        ensure!(got.ports() == Some((port, 5000)), "{got:?}");
        ensure!(scene.open(1, 5000, remote, port)? == external, "the answer leaves from another port");
    }
    scene.none_arrives("no mapping", &[Packet::udp(from_remote(S1), 7, external ^ 2, b"in").bytes()])?;
    let syn = Packet::tcp(from_guest(2, S1), 6000, 80, 1, SYN);
    let external = source_port(&scene.leaves(2, &syn)?)?;
    let got = scene.arrives(2, &Packet::tcp(from_remote(S2), 81, external, 1, SYN))?;
    ensure!(got.ports() == Some((81, 6000)), "{got:?}");
    scene.lab.assert_sound_but_for_invalid_packets()
}

/// Guest 1 calls the external endpoint of guest 2, by TCP and by UDP: it arrives from guest 1's external endpoint; and the error
/// that guest 2's kernel sends about the datagram arrives at guest 1, from the external address, about guest 1's own packet
/// (RFC 5508 REQ-7).
#[test]
fn a_call_between_mappings_and_an_error_about_it_turn_round() -> Result<()> {
    let mut scene = Scene::with(Setup::default(), &OPEN_TO_ALL)?;
    let syn = Packet::tcp(from_guest(2, S1), 6000, 80, 1, SYN);
    let by_tcp = source_port(&scene.leaves(2, &syn)?)?;
    let by_udp = scene.open(2, 6000, S1, 7)?;
    for call in [
        Packet::tcp(from_guest(1, OUTSIDE), 5000, by_tcp, 1, SYN),
        Packet::udp(from_guest(1, OUTSIDE), 5000, by_udp, b"hairpin"),
    ] {
        scene.guests.iter().for_each(|guest| drop(guest.drain()));
        scene.guests[0].send(&call.bytes())?;
        let called = scene.guests[1].expect("call at guest 2", SOON, |packet| packet.source == OUTSIDE)?;
        ensure!(called.ports() == Some((5000, 6000)), "{called:?}");
    }
    let error = scene.guests[0].expect("error at guest 1", SOON, |packet| packet.icmp() == Some((3, 3)))?;
    ensure!(error.source == OUTSIDE && error.body_is_sound, "{error:?}");
    let (quote, own) = (&error.body[8..], octets(&guest_address(1))?);
    ensure!(quote[12..16] == own && quote[16..20] == OUTSIDE, "the quote shows {:?}", &quote[12..20]);
    ensure!(quote[20..24] == [5000_u16.to_be_bytes(), by_udp.to_be_bytes()].concat(), "the quoted ports");
    scene.lab.assert_sound_but_for_invalid_packets()
}

/// 1. a guest has all the flows that it may have; 2. the next is refused, and its gateway says so about the guest's own packet (3/13);
/// 3. those that it has go on.
#[test]
fn a_refused_flow_is_told_to_the_guest() -> Result<()> {
    let mut scene = Scene::with(Setup::default(), &["--guest-flows", "3"])?;
    for port in 5000..5003 {
        scene.open(1, port, S1, 7)?;
    }
    drop(scene.guests[0].drain());
    let refused = Packet::udp(from_guest(1, S1), 5003, 7, b"one too many").bytes();
    scene.guests[0].send(&refused)?;
    let error =
        scene.guests[0].expect("error at the guest", SOON, |packet| packet.icmp() == Some((3, 13)))?;
    ensure!(error.source == octets(GATEWAY)? && error.body_is_sound && error.header_is_sound, "{error:?}");
    ensure!(error.body[8 + 12..8 + 28] == refused[26..42], "the quote is not the guest's own packet");
    scene.open(1, 5000, S1, 7)?;
    scene.open(2, 5003, S1, 7)?;
    scene.lab.assert_sound_but_for_invalid_packets()
}
