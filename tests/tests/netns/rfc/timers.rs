//! How long a mapping lives, and what prolongs it (RFC 4787 REQ-5 and REQ-6, RFC 5382 REQ-5, RFC 5508 REQ-2, RFC 7857).
//!
//! The defaults are held against the RFCs in `vmnat_common::timeout`; here each rule is watched with seconds for minutes.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use vmnat_tests::lab::{
    Setup,
    frame::{Ends, Packet},
};

use super::{
    scene::{PATH, S1, S2, Scene, error, from_guest, from_remote, reply, sound},
    tcp::{ACK, Line, RST, SYN},
};

/// Three seconds for everything short, a second between looks.
const SHORT: &[&str] = &[
    "--reap-interval",
    "1",
    "--timeout",
    "udp_unreplied=3",
    "--timeout",
    "icmp=3",
    "--timeout",
    "tcp_half_open=3",
    "--timeout",
    "tcp_reset=3",
];
const STEP: Duration = Duration::from_millis(500);

/// Mappings from one packet each at second 0; then, every half second: the first is left alone, the second's guest sends, to the
/// third a stranger sends, about the fourth the path reports errors, and so does its guest. One more, and a query's, are left alone too.
///
/// At 2.5 of 3 s one of a single packet still lets its remote in. At 7 s the one whose guest has sent does, and no other.
#[test]
fn only_the_guest_refreshes_and_nothing_ends_early() -> Result<()> {
    let mut scene = Scene::with(Setup::default(), SHORT)?;
    let begun = Instant::now();
    let early = scene.open(1, 4999, S1, 7)?;
    let ports = [5001, 5002, 5003, 5004];
    let mut opened = Vec::new();
    for port in ports {
        let packet = Packet::udp(from_guest(1, S1), port, 7, b"opens");
        let left = scene.leaves_as_frame(1, 17, &packet.bytes())?;
        opened.push((sound(&left)?.ports().context("ports")?.0, left));
    }
    let ping = scene.leaves(1, &Packet::echo(from_guest(1, S1), 77, 1, b""))?;
    ensure!(ping.body[4..6] == 77_u16.to_be_bytes(), "the identifier was changed for nobody's sake");

    while begun.elapsed() < Duration::from_millis(2400) {
        disturb(&scene, &opened)?;
    }
    let into = |external, payload: &[u8]| Packet::udp(from_remote(S1), 7, external, payload);
    scene.arrives(1, &into(early, b"2.5 s")).context("a mapping of one packet after 2.5 of 3 s")?;
    while begun.elapsed() < Duration::from_secs(7) {
        disturb(&scene, &opened)?;
    }
    scene.arrives(1, &into(opened[1].0, b"7 s")).context("a mapping that its guest refreshed")?;
    let silent = [0, 2, 3].map(|place: usize| into(opened[place].0, b"7 s").bytes());
    scene.none_arrives("7 s after the guest's only datagram", &silent)?;
    for (counter, least) in [("error_inbound", 4), ("error_outbound", 4)] {
        let counted = scene.lab.counter(counter)?;
        ensure!(counted >= least, "{counter} has counted {counted}: the errors were not about the mapping");
    }
    scene.none_arrives("7 s after the guest's only query", &[reply(S1, 77, 1, b"").bytes()])?;
    scene.lab.assert_invariants()
}

/// What happens every half second to the second, third and fourth of the mappings.
fn disturb(scene: &Scene, opened: &[(u16, Vec<u8>)]) -> Result<()> {
    scene.guests[0].send(&Packet::udp(from_guest(1, S1), 5002, 7, b"refreshes").bytes())?;
    for (remote, port) in [(S2, 7), (S1, 8)] {
        scene.router.send(&Packet::udp(from_remote(remote), port, opened[2].0, b"is filtered").bytes())?;
    }
    scene.router.send(&error(from_remote(PATH), 3, 1, &opened[3].1[14..], 28).bytes())?;
    let ends = Ends { destination: from_guest(1, S1).source, ..from_remote(S1) };
    let unwanted = Packet::udp(ends, 7, 5004, b"unwanted").bytes();
    scene.guests[0].send(&error(from_guest(1, S1), 3, 3, &unwanted[14..], 28).bytes())?;
    thread::sleep(STEP);
    Ok(())
}

/// A query lives for its timeout after one packet, whatever errors come about it: at 2.5 of 3 seconds the reply arrives.
#[test]
fn a_query_lives_for_its_timeout_whatever_errors_say() -> Result<()> {
    let mut scene = Scene::with(Setup::default(), SHORT)?;
    let ping = Packet::echo(from_guest(1, S1), 77, 1, b"ping").bytes();
    let left = scene.leaves_as_frame(1, 1, &ping)?;
    for (kind, code) in [(3, 1), (11, 0), (3, 13)] {
        scene.arrives(1, &error(from_remote(PATH), kind, code, &left[14..], 28))?;
    }
    thread::sleep(Duration::from_millis(2500));
    scene.arrives(1, &reply(S1, 77, 1, b"ping")).context("the reply after 2.5 s and three errors")?;
    scene.lab.assert_invariants()
}

/// TCP: half-open and reset conversations have timers of their own, three seconds here, and established ones theirs, days.
/// 1. one of each; 2. at 2 s a late segment passes the one that was reset, both ways; 3. then silence: it and the half-open one
///    are gone, and the established one lives.
#[test]
fn stages_of_tcp_have_timers_of_their_own() -> Result<()> {
    let mut scene = Scene::with(Setup::default(), SHORT)?;
    let mut half_open = Line::new(&scene, 1, 6001, S1, 80);
    half_open.out(SYN, &[])?;
    Line::established(&scene, 1, 6002, S1, 80)?;
    let mut reset = Line::established(&scene, 1, 6003, S1, 80)?;
    reset.inward(RST | ACK, &[])?;
    thread::sleep(Duration::from_secs(2));
    reset.inward(RST, &[]).context("a late segment after the reset")?;
    let stages = || -> Result<Vec<String>> {
        let rows = scene.lab.rows(&["flows", "--protocol", "tcp"])?;
        Ok(rows.iter().map(|row| row["stage"].as_str().unwrap_or("?").to_owned()).collect())
    };
    ensure!(stages()?.len() == 3, "three conversations: {:?}", stages()?);
    thread::sleep(Duration::from_secs(6));
    ensure!(stages()? == ["established"], "after 6 s of silence: {:?}", stages()?);
    scene.lab.assert_invariants()
}
