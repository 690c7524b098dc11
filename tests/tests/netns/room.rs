//! The quiet room: there from `up` to `down`, whatever happens in between, and what it does with a packet.
//!
//! Frames are put in and seen at the host's ends, ahead of the programs there. They are of no conversation, so a guest's
//! connection tracking may call them invalid.

use std::{fs, io::Read as _, path::Path, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CloneFlags, setns};
use vmnat_common::room;
use vmnat_tests::lab::{
    Lab, SERVER, SERVER_ECHO, Setup, client,
    firewall::NFT_DROPS,
    frame::{Ends, Ipv4, Mac, Packet, Tap},
    guest_address, octets,
    snapshot::Snapshot,
    vmnat::Hook,
    wait_until,
};

on_both_hooks!(
    the_room_is_there_from_up_to_down,
    the_room_outlives_the_agent,
    a_room_that_lost_an_interface_is_made_again,
    a_room_whose_mount_is_gone_is_made_again,
    a_command_in_another_mount_namespace_leaves_the_room_alone,
    a_room_that_cannot_be_is_a_warning_and_nothing_else,
    sizes_follow_the_interfaces,
    fragments_come_out_in_order,
    what_is_too_large_is_cut_or_refused,
    what_ends_in_the_room_is_told_to_its_sender,
    what_comes_by_the_third_door_is_prohibited,
    the_host_sees_nothing_of_the_room,
);

const SOON: Duration = Duration::from_secs(2);
const MOMENT: Duration = Duration::from_millis(300);
const PLACE: &str = "/run/vmnat/default/room";
const HOST_ENDS: [&str; 3] = ["vmnat-in", "vmnat-out", "vmnat-no"];

/// The namespaces that are mounted at the room's place.
fn mounts() -> Result<usize> {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo")?;
    Ok(mounts.lines().filter(|line| line.contains(&format!(" {PLACE} ")) && line.contains(" nsfs ")).count())
}

fn host_ends(lab: &Lab) -> Vec<u32> {
    HOST_ENDS.iter().filter_map(|name| lab.host.interface(name).ok()).collect()
}

/// Reads a file of `/proc` in the room.
fn inside(path: &str) -> Result<String> {
    thread::scope(|scope| {
        let read = || -> Result<String> {
            setns(fs::File::open(PLACE)?, CloneFlags::CLONE_NEWNET).context("enter the room")?;
            let mut text = String::new();
            fs::File::open(path)?.read_to_string(&mut text)?;
            Ok(text)
        };
        scope.spawn(read).join().map_err(|_| anyhow::anyhow!("thread"))?
    })
}

fn is_whole(lab: &Lab) -> Result<bool> {
    let status = lab.vmnat(&["status"])?;
    let is_told = String::from_utf8_lossy(&status.stdout).contains("room_outward");
    Ok(host_ends(lab).len() == 3 && mounts()? == 1 && is_told && status.status.success())
}

fn wait_for_a_room(lab: &Lab, patience: Duration) -> Result<()> {
    wait_until("the room is whole", patience, || is_whole(lab))
}

/// 1. no room; 2. `up`: three interfaces, one mount, two hooks; 3. a second `up` touches nothing of it; 4. `down`: the host is
///    as it was found, mounts and all.
fn the_room_is_there_from_up_to_down(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    let before = Snapshot::take(&lab.host)?;
    let printed = lab.up(hook)?;
    ensure!(printed.contains("made the quiet room"), "`up` says nothing of it: {printed}");
    ensure!(is_whole(&lab)?, "ends {:?}, mounts {}", host_ends(&lab), mounts()?);
    let status = format!("{:?}", lab.rows(&["status"])?);
    ensure!(status.contains("room_inward") && status.contains("room_outward"), "no hooks in {status}");
    let ends = host_ends(&lab);
    let printed = lab.up(hook)?;
    ensure!(!printed.contains("room") && host_ends(&lab) == ends, "it was touched: {printed}");
    lab.vmnat_ok(&["down"])?;
    ensure!(mounts()? == 0 && !Path::new(PLACE).exists(), "something is left at {PLACE}");
    Snapshot::take(&lab.host)?.assert_same_as(&before)?;
    lab.assert_sound_but_for_invalid_packets()
}

/// With the agent killed: 1. the room serves; 2. `down` removes it all the same.
fn the_room_outlives_the_agent(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    let before = Snapshot::take(&lab.host)?;
    lab.up(hook)?;
    lab.kill_agent()?;
    passes(&lab, 1)?;
    lab.vmnat_ok(&["down"])?;
    Snapshot::take(&lab.host)?.assert_same_as(&before)?;
    lab.assert_sound_but_for_invalid_packets()
}

/// 1. somebody deletes each of the interfaces in turn, and the agent makes the room again; 2. without an agent `status` says
///    what is missing, and `up` makes it.
fn a_room_that_lost_an_interface_is_made_again(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    for (round, name) in (1..).zip(HOST_ENDS) {
        let ends = host_ends(&lab);
        lab.host.ip(&format!("link delete {name}\n"))?;
        // The agent's relay waits inside, and looks for the room every five seconds.
        wait_until("the agent has made it again", Duration::from_secs(10), || {
            Ok(is_whole(&lab)? && host_ends(&lab) != ends)
        })?;
        passes(&lab, round)?;
    }
    wait_until("all is well", Duration::from_secs(20), || Ok(lab.vmnat(&["status"])?.status.success()))?;
    lab.kill_agent()?;
    lab.host.ip("link delete vmnat-out\n")?;
    let status = String::from_utf8(lab.vmnat(&["status"])?.stdout)?;
    ensure!(status.contains("room_outward (missing)"), "status sees nothing: {status}");
    lab.up(hook)?;
    wait_for_a_room(&lab, SOON)?;
    passes(&lab, 4)?;
    lab.assert_sound_but_for_invalid_packets()
}

/// 1. somebody unmounts the room, which ends it; 2. the agent makes another; 3. the same for what a crash may leave: a file
///    that is no mount, without an agent.
fn a_room_whose_mount_is_gone_is_made_again(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    let before = Snapshot::take(&lab.host)?;
    lab.up(hook)?;
    let ends = host_ends(&lab);
    lab.host.exec(&["umount", PLACE])?;
    // The relay's sockets keep a lost room until the agent looks at it, every five seconds.
    wait_until("the agent has made it again", Duration::from_secs(15), || {
        Ok(is_whole(&lab)? && host_ends(&lab) != ends)
    })?;
    passes(&lab, 1)?;
    lab.kill_agent()?;
    lab.host.exec(&["umount", PLACE])?;
    wait_until("its interfaces are gone", SOON, || Ok(host_ends(&lab).is_empty()))?;
    ensure!(Path::new(PLACE).exists(), "the test is void: no file is left");
    lab.up(hook)?;
    wait_for_a_room(&lab, SOON)?;
    passes(&lab, 2)?;
    lab.vmnat_ok(&["down"])?;
    Snapshot::take(&lab.host)?.assert_same_as(&before)?;
    lab.assert_sound_but_for_invalid_packets()
}

/// A service manager may give the agent a mount namespace of its own. Commands in another one, where the room is not mounted:
/// 1. `dnat add` leaves the room as it is; 2. `down` removes it, mount and all.
fn a_command_in_another_mount_namespace_leaves_the_room_alone(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let ends = host_ends(&lab);
    let program = vmnat_tests::lab::vmnat::program()?;
    let elsewhere = |command: &str| {
        let script = format!("umount {PLACE} && {} {command}", program.display());
        lab.host.exec(&["unshare", "--mount", "--propagation", "private", "sh", "-c", &script])
    };
    elsewhere(&format!("dnat add 8080:{}:80", guest_address(1)))?;
    thread::sleep(MOMENT);
    ensure!(host_ends(&lab) == ends && is_whole(&lab)?, "the room was touched");
    passes(&lab, 1)?;
    elsewhere("down")?;
    ensure!(mounts()? == 0 && !Path::new(PLACE).exists(), "something is left at {PLACE}");
    wait_until("its interfaces are gone", SOON, || Ok(host_ends(&lab).is_empty()))?;
    lab.assert_sound_but_for_invalid_packets()
}

/// 1. an interface of the operator's has a name of the room's: `up` warns and guests are online; 2. the interface goes, and the
///    agent makes the room; 3. what an operator called so is left by `down`.
fn a_room_that_cannot_be_is_a_warning_and_nothing_else(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.host.ip("link add vmnat-out type bridge\n")?;
    let before = Snapshot::take(&lab.host)?;
    let printed = lab.up(hook)?;
    ensure!(printed.contains("warning: no quiet room: "), "no warning: {printed}");
    client::converse(lab.guest(1)?, SERVER_ECHO)?;
    ensure!(host_ends(&lab).len() == 1 && mounts()? == 0, "half a room is left");
    lab.vmnat_ok(&["status"])?;
    lab.vmnat_ok(&["down"])?;
    Snapshot::take(&lab.host)?.assert_same_as(&before)?;
    lab.up(hook)?;
    lab.host.ip("link delete vmnat-out\n")?;
    wait_for_a_room(&lab, Duration::from_secs(5))?;
    passes(&lab, 1)?;
    lab.assert_sound_but_for_invalid_packets()
}

/// The ends of a frame that a program sends into the room.
fn ends(door: vmnat_common::Mac, from: &str, to: &str) -> Result<Ends> {
    let from_mac = [0x52, 0x54, 0, 0, 0, 0x77];
    Ok(Ends { from_mac, to_mac: door.bytes(), source: octets(from)?, destination: octets(to)? })
}

fn datagram(door: vmnat_common::Mac, from: &str, to: &str, size: usize, fragment: u16) -> Result<Packet> {
    let payload: Vec<u8> =
        (0..size.saturating_sub(28)).map(|at| u8::try_from(at % 251).unwrap_or(0)).collect();
    Ok(Packet { fragment, ..Packet::udp(ends(door, from, to)?, 33_000, 7000, &payload) })
}

fn outbound(size: usize, fragment: u16) -> Result<Packet> {
    datagram(room::INNER_MAC, &guest_address(1), SERVER, size, fragment)
}

fn inbound(size: usize, fragment: u16) -> Result<Packet> {
    datagram(room::OUTER_MAC, SERVER, &guest_address(1), size, fragment)
}

/// What comes out of a door of the room.
fn out_of(tap: &Tap, door: Mac) -> Vec<Ipv4> {
    tap.collect(MOMENT, |packet| packet.from_mac == door)
}

fn sizes(packets: &[Ipv4]) -> Vec<usize> {
    packets.iter().map(|packet| packet.body.len().saturating_add(20)).collect()
}

fn taps(lab: &Lab) -> Result<[Tap; 3]> {
    let [inner, outer, refusing] = HOST_ENDS.map(|name| Tap::open(&lab.host, name));
    Ok([inner?, outer?, refusing?])
}

/// A datagram of that TTL's number goes through, both ways, one hop further.
fn passes(lab: &Lab, round: u8) -> Result<()> {
    let [inner, outer, _] = taps(lab)?;
    let ttl = round.saturating_add(40);
    let left = round.saturating_add(39);
    inner.send(&Packet { ttl, ..outbound(100, 0)? }.bytes())?;
    outer.expect("datagram of a guest", SOON, |packet| packet.ttl == left)?;
    outer.send(&Packet { ttl, ..inbound(100, 0)? }.bytes())?;
    let packet = inner.expect("datagram of the world", SOON, |packet| packet.ttl == left)?;
    ensure!(packet.header_is_sound && packet.body_is_sound, "damaged: {packet:?}");
    Ok(())
}

/// 1. the uplink has 1400: so has the way out, and the way in has the bridge's 1500; 2. the uplink becomes 1300: so does the way
///    out, by the same room.
fn sizes_follow_the_interfaces(hook: Hook) -> Result<()> {
    let mut lab = Lab::with(Setup { uplink_mtu: 1400, ..Setup::default() })?;
    lab.up(hook)?;
    let ends = host_ends(&lab);
    let [inner, outer, _] = taps(&lab)?;
    inner.send(&outbound(1400, 0)?.bytes())?;
    ensure!(sizes(&out_of(&outer, room::OUTER_MAC.bytes())) == [1400], "1400 bytes do not fit");
    outer.send(&inbound(1500, 0)?.bytes())?;
    ensure!(sizes(&out_of(&inner, room::INNER_MAC.bytes())) == [1500], "1500 bytes do not fit the other way");
    lab.host.ip("link set enp3s0 mtu 1300\n")?;
    wait_until("the room follows", Duration::from_secs(5), || {
        inner.send(&outbound(1400, 0)?.bytes())?;
        Ok(sizes(&out_of(&outer, room::OUTER_MAC.bytes())) == [1300, 120])
    })?;
    ensure!(host_ends(&lab) == ends, "the room was made again");
    lab.assert_sound_but_for_invalid_packets()
}

/// Three fragments enter the last one first, from either side, with and without DF: they leave in order, each of its size.
fn fragments_come_out_in_order(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let [inner, outer, _] = taps(&lab)?;
    for (into, from, door, whole) in [
        (&inner, &outer, room::OUTER_MAC, outbound(2028, 0)?),
        (&inner, &outer, room::OUTER_MAC, outbound(2028, 0x4000)?),
        (&outer, &inner, room::INNER_MAC, inbound(2028, 0)?),
    ] {
        let body = whole.bytes().split_off(34);
        for (range, more) in [(1600..2008, 0), (800..1600, 0x2000), (0..800, 0x2000)] {
            let offset = u16::try_from(range.start / 8)?;
            let part = body.get(range).context("a part")?.to_vec();
            let fragment = whole.fragment | more | offset;
            into.send(&Packet { fragment, body: part, checksum_at: None, ..whole.clone() }.bytes())?;
        }
        let out = out_of(from, door.bytes());
        let offsets: Vec<u16> = out.iter().map(|packet| packet.fragment & 0x3fff).collect();
        ensure!(offsets == [0x2000, 0x2064, 0x00c8], "offsets {offsets:x?}");
        let joined: Vec<u8> = out.iter().flat_map(|packet| packet.body.clone()).collect();
        ensure!(joined == body, "the datagram has changed");
    }
    lab.assert_sound_but_for_invalid_packets()
}

/// With MTU 1400 outside: 1. without DF, 2000 bytes leave as two fragments; 2. with DF, 1500 bytes are answered by ICMP 3/4 that
///    names 1400 and quotes the packet, out of the door that it came by.
fn what_is_too_large_is_cut_or_refused(hook: Hook) -> Result<()> {
    let mut lab = Lab::with(Setup { uplink_mtu: 1400, ..Setup::default() })?;
    lab.up(hook)?;
    let [inner, outer, _] = taps(&lab)?;
    let large = outbound(2000, 0)?;
    inner.send(&large.bytes())?;
    let out = out_of(&outer, room::OUTER_MAC.bytes());
    ensure!(sizes(&out) == [1396, 624], "sizes {:?}", sizes(&out));
    let joined: Vec<u8> = out.iter().flat_map(|packet| packet.body.clone()).collect();
    ensure!(Some(&joined[..]) == large.bytes().get(34..), "the datagram has changed");
    let fixed = outbound(1500, 0x4000)?;
    inner.send(&fixed.bytes())?;
    let error = inner.expect("fragmentation needed", SOON, |packet| packet.icmp() == Some((3, 4)))?;
    ensure!(error.body.get(6..8) == Some(&1400_u16.to_be_bytes()), "it says another MTU: {error:?}");
    tells_the_sender(&error, &fixed)?;
    ensure!(out_of(&outer, room::OUTER_MAC.bytes()).is_empty(), "it left all the same");
    lab.assert_sound_but_for_invalid_packets()
}

fn tells_the_sender(error: &Ipv4, about: &Packet) -> Result<()> {
    ensure!(error.source == room::ADDRESS.octets(), "it comes from {:?}", error.source);
    ensure!(error.destination == about.source, "it goes to {:?}", error.destination);
    ensure!(error.header_is_sound && error.body_is_sound, "damaged: {error:?}");
    let quoted = error.body.get(8..).context("no quote")?;
    ensure!(quoted.get(12..16) == Some(&about.source) && quoted.get(16..20) == Some(&about.destination));
    ensure!(quoted.get(20..28) == about.bytes().get(34..42), "it quotes other ports: {quoted:?}");
    Ok(())
}

/// TTL 1 from a guest and from the world: ICMP 11/0 to the sender, out of the door that the packet came by.
fn what_ends_in_the_room_is_told_to_its_sender(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let [inner, outer, _] = taps(&lab)?;
    for (door, packet) in [(&inner, outbound(100, 0x4000)?), (&outer, inbound(100, 0x4000)?)] {
        let packet = Packet { ttl: 1, ..packet };
        door.send(&packet.bytes())?;
        let error = door.expect("time exceeded", SOON, |packet| packet.icmp() == Some((11, 0)))?;
        tells_the_sender(&error, &packet)?;
    }
    lab.assert_sound_but_for_invalid_packets()
}

/// A guest's packet by the third door: ICMP 3/13 to the guest, out of the inner one; and no packet anywhere else.
fn what_comes_by_the_third_door_is_prohibited(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let [inner, outer, refusing] = taps(&lab)?;
    let packet = datagram(room::REFUSING_MAC, &guest_address(1), SERVER, 1500, 0x4000)?;
    refusing.send(&packet.bytes())?;
    let error = inner.expect("administratively prohibited", SOON, |packet| packet.icmp() == Some((3, 13)))?;
    tells_the_sender(&error, &packet)?;
    ensure!(out_of(&outer, room::OUTER_MAC.bytes()).is_empty(), "it left");
    lab.assert_sound_but_for_invalid_packets()
}

/// With IPv6 on, and a firewall that drops what is forwarded: 1. not a frame comes out of the room by itself; 2. no address, no IPv6 and no
///    ARP on the host's ends, and no port of a bridge; 3. what goes through meets no rule and leaves no connection behind.
fn the_host_sees_nothing_of_the_room(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.host.nft(NFT_DROPS)?;
    // Without IPv6 in the kernel there is nothing to turn on.
    for scope in ["all", "default"] {
        lab.host.set_sysctl(&format!("net/ipv6/conf/{scope}/disable_ipv6"), "0").ok();
    }
    lab.up(hook)?;
    let quiet = taps(&lab)?;
    client::converse(lab.guest(1)?, SERVER_ECHO)?;
    thread::sleep(Duration::from_secs(2));
    for (tap, name) in quiet.iter().zip(HOST_ENDS) {
        ensure!(tap.drain().is_empty(), "{name} speaks by itself");
        let shown = lab.host.exec(&["ip", "-oneline", "address", "show", "dev", name])?;
        ensure!(shown.trim().is_empty(), "{name} has an address: {shown}");
        let shown = lab.host.exec(&["ip", "-oneline", "link", "show", "dev", name])?;
        ensure!(shown.contains("NOARP") && !shown.contains("master"), "{shown}");
    }
    ensure!(inside("/proc/net/dev")?.lines().count() == 2 + 4, "the room has other interfaces than its own");
    passes(&lab, 1)?;
    let tracked = inside("/proc/net/stat/nf_conntrack").unwrap_or_default();
    let entries = tracked.lines().nth(1).and_then(|line| line.split_whitespace().next());
    ensure!(entries.is_none_or(|entries| entries.trim_start_matches('0').is_empty()), "tracked: {tracked}");
    lab.assert_sound_but_for_invalid_packets()
}
