//! Uplinks that are not a plain Ethernet device: a bridge, a macvlan, a vxlan, a tun, and a Wi-Fi-like access point. All kinds of
//! traffic by each, with a firewall that drops what is forwarded.

use std::{net::UdpSocket, time::Duration};

use anyhow::{Context as _, Result, ensure};
use vmnat_tests::lab::{
    EXTERNAL, Lab, ROUTER, SERVER, SERVER_ECHO, SERVER_HTTP, Setup, UPLINK_MAC,
    client::{self, Asker, Conversation},
    firewall::NFT_DROPS,
    frame::{Ipv4, Packet, Tap},
    guest_address, octets,
    uplink::Kind,
    vmnat::Hook,
    wait_until, watch,
};

on_both_hooks!(
    a_bridge_with_a_physical_port,
    a_macvlan,
    a_vxlan,
    a_tun,
    a_tun_with_offloads,
    an_access_point_sees_but_one_station,
    a_plain_uplink,
    nothing_leaves_a_bridge_as_it_is,
    nothing_leaves_a_tun_as_it_is,
    what_is_the_hosts_comes_in_by_a_tun_as_it_came,
);

const SOON: Duration = Duration::from_secs(2);

fn a_bridge_with_a_physical_port(hook: Hook) -> Result<()> {
    all_kinds_of_traffic(Kind::Bridge, hook, Setup { br_netfilter: true, ..Setup::default() })
}

fn a_macvlan(hook: Hook) -> Result<()> {
    all_kinds_of_traffic(Kind::Macvlan, hook, Setup::default())
}

fn a_vxlan(hook: Hook) -> Result<()> {
    all_kinds_of_traffic(Kind::Vxlan, hook, Setup::default())
}

fn a_tun(hook: Hook) -> Result<()> {
    all_kinds_of_traffic(Kind::Tun { offloads: false }, hook, Setup::default())
}

/// Segments of up to 64 kB that wait to be cut, and partial checksums, both ways.
fn a_tun_with_offloads(hook: Hook) -> Result<()> {
    all_kinds_of_traffic(Kind::Tun { offloads: true }, hook, Setup { offloads: true, ..Setup::default() })
}

/// Whatever leaves bears the uplink's own MAC: translated packets, what the quiet room has cut, ICMP errors.
fn an_access_point_sees_but_one_station(hook: Hook) -> Result<()> {
    let mut lab = Lab::with(Setup { uplink_mtu: 1400, ..Setup::default() })?;
    lab.change_uplink(Kind::AccessPoint)?;
    start(&lab, Kind::AccessPoint.device(), hook)?;
    let own = octets(EXTERNAL)?;
    let air = Tap::open(&lab.router, "wan0")?;
    by_all_means(&lab)?;
    let frames = air.drain();
    let sent =
        frames.iter().filter(|frame| frame.get(26..30) == Some(&own) && frame.get(12..14) == Some(&[8, 0]));
    let strangers = sent.clone().filter(|frame| frame.get(6..12) != Some(&UPLINK_MAC)).count();
    ensure!(sent.count() > 50 && strangers == 0, "{strangers} frames bear another station's MAC");
    let dropped = watch::counter(&lab.router, "netdev", "ap", "strangers")?;
    ensure!(dropped == 0, "the access point has dropped {dropped} frames");
    lab.assert_sound_but_for_invalid_packets()
}

/// The same by the lab's own uplink: what the others are compared with.
fn a_plain_uplink(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    start(&lab, "enp3s0", hook)?;
    by_all_means(&lab)?;
    lab.assert_sound_but_for_invalid_packets()
}

fn nothing_leaves_a_bridge_as_it_is(hook: Hook) -> Result<()> {
    nothing_leaves_as_it_is(Kind::Bridge, hook)
}

fn nothing_leaves_a_tun_as_it_is(hook: Hook) -> Result<()> {
    nothing_leaves_as_it_is(Kind::Tun { offloads: false }, hook)
}

/// 1. a packet with a guest's source is put on the uplink beside all programs, and does not leave; 2. one with the external
///    address does.
fn nothing_leaves_as_it_is(kind: Kind, hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    let _tunnel = lab.change_uplink(kind)?;
    start(&lab, kind.device(), hook)?;
    let seen = Tap::open(&lab.router, if matches!(kind, Kind::Tun { .. }) { "tun0" } else { "wan0" })?;
    let uplink = Tap::open(&lab.host, kind.device())?;
    for source in [guest_address(1), EXTERNAL.to_owned()] {
        let ends = lab.inbound_ends(&source, SERVER)?;
        let mut frame = Packet::udp(ends, 1234, 9, b"beside all programs").bytes();
        if matches!(kind, Kind::Tun { .. }) {
            frame = frame.split_off(14);
        }
        // The kernel tells the sender when a program has dropped what it sent.
        let sent = uplink.send(&frame);
        ensure!(sent.is_ok() == (source == EXTERNAL), "a packet from {source}: {sent:?}");
    }
    wait_until("what is the host's own has left", SOON, || {
        Ok(seen.drain().iter().any(|frame| frame.ends_with(b"beside all programs")))
    })?;
    ensure!(lab.counter("leaked_source")? == 1, "leaked_source is {}", lab.counter("leaked_source")?);
    lab.assert_sound_but_for_invalid_packets()
}

/// A packet of the host's meets other programs at the hook, and packet sockets, without a header that it never had.
fn what_is_the_hosts_comes_in_by_a_tun_as_it_came(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    let _tunnel = lab.change_uplink(Kind::Tun { offloads: false })?;
    start(&lab, "tun0", hook)?;
    client::ping(&lab.host, SERVER)?;
    let before = lab.counter("no_flow")?;
    lab.host.exec(&["nft", "add", "table", "ip", "sizes"])?;
    lab.host.nft(
        "table ip sizes {
           counter bare { }
           chain in { type filter hook prerouting priority -400; iifname tun0 meta length 84 icmp type echo-reply counter name bare; }
         }",
    )?;
    client::ping(&lab.host, SERVER)?;
    ensure!(watch::counter(&lab.host, "ip", "sizes", "bare")? == 1, "the reply has another length");
    client::ask(&lab.host, SERVER_ECHO)?;
    let counted = lab.counter("no_flow")?.saturating_sub(before);
    ensure!(counted == 2, "two replies were counted {counted} times");
    lab.assert_invariants()
}

fn all_kinds_of_traffic(kind: Kind, hook: Hook, setup: Setup) -> Result<()> {
    let mut lab = Lab::with(setup)?;
    let _tunnel = lab.change_uplink(kind)?;
    start(&lab, kind.device(), hook)?;
    by_all_means(&lab)?;
    lab.assert_sound_but_for_invalid_packets()
}

fn start(lab: &Lab, uplink: &str, hook: Hook) -> Result<()> {
    lab.host.nft(NFT_DROPS)?;
    // A tunnel's own packets are the host's.
    lab.host.exec(&["nft", "add", "rule", "inet", "filter", "input", "udp", "dport", "4789", "accept"])?;
    lab.vmnat_ok(&["up", "--bridge", "virbr0", "--uplink", uplink, "--hook", hook.name()]).map(drop)
}

/// Everything that a guest, the host and the world may want of an uplink.
pub(super) fn by_all_means(lab: &Lab) -> Result<()> {
    bulk(lab).context("from a guest to the world")?;
    fragments(lab).context("datagrams in fragments")?;
    errors(lab).context("ICMP errors")?;
    forwards(lab).context("port forwards")?;
    the_hosts_own(lab).context("the host's own")
}

fn bulk(lab: &Lab) -> Result<()> {
    let guest = lab.guest(1)?;
    client::ping(guest, SERVER)?;
    let mut conversation = Conversation::open(guest, SERVER_ECHO)?;
    ensure!(conversation.seen_as.ip().to_string() == EXTERNAL, "seen as {}", conversation.seen_as);
    conversation.exchange(3_000_000)?;
    conversation.close()?;
    client::download(guest, SERVER_HTTP, 3_000_000)?;
    let asker = Asker::new(guest, 0)?;
    for size in [0, 1, 63, 512, 1001, 1300] {
        let seen_as = asker.ask_within(SERVER_ECHO, size, client::PATIENCE)?;
        ensure!(seen_as.ip().to_string() == EXTERNAL, "seen as {seen_as} over UDP");
    }
    Ok(())
}

/// 1. what the guest's own stack has cut, to the bridge's size: where the uplink's is smaller the quiet room cuts again; 2. a
///    datagram whose last part comes first.
fn fragments(lab: &Lab) -> Result<()> {
    let asker = Asker::new(lab.guest(1)?, 0)?;
    for size in [4000, 20_000] {
        asker.ask_within(SERVER_ECHO, size, client::PATIENCE)?;
    }
    let guest = Tap::open(lab.guest(1)?, "eth0")?;
    let whole = Packet::udp(lab.outbound_ends(1, SERVER)?, 31_000, 7000, &[0x5a; 2000]);
    let body = whole.bytes().split_off(34);
    for (range, more) in [(1280..2008, 0), (640..1280, 0x2000), (0..640, 0x2000)] {
        let offset = u16::try_from(range.start / 8)?;
        let part = body.get(range).context("a part")?.to_vec();
        guest.send(
            &Packet { fragment: more | offset, body: part, checksum_at: None, ..whole.clone() }.bytes(),
        )?;
    }
    let is_answer = |packet: &Ipv4| packet.source == whole.destination && packet.fragment & 0x1fff != 0;
    guest.expect("an answer in fragments", SOON, is_answer).map(drop)
}

/// 1. no server there; 2. the router's time exceeded; 3. too large for the uplink, and not to be cut: where it is the uplink that
///    is small, the host says how small.
fn errors(lab: &Lab) -> Result<()> {
    let refused = lab.guest(1)?.run(|| -> Result<bool> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(format!("{SERVER}:9"))?;
        socket.set_read_timeout(Some(SOON))?;
        socket.send(b"is anybody there?")?;
        let answer = socket.recv(&mut [0; 64]);
        Ok(answer.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused))
    })?;
    ensure!(refused, "the guest is not told that nobody listens");
    let guest = Tap::open(lab.guest(1)?, "eth0")?;
    let mut probe = Packet::udp(lab.outbound_ends(1, SERVER)?, 33_000, 33_435, b"traceroute");
    probe.ttl = 2;
    guest.send(&probe.bytes())?;
    let answer = guest.expect("time exceeded", SOON, |packet| packet.icmp() == Some((11, 0)))?;
    ensure!(answer.source == octets(ROUTER)?, "answered by {:?}", answer.source);
    let quoted = answer.body.get(20..24).context("no quote")?;
    ensure!(quoted == octets(&guest_address(1))?, "the quote's source is not the guest: {quoted:?}");
    let mut large = Packet::udp(lab.outbound_ends(1, SERVER)?, 33_000, 7000, &[0x33; 1472]);
    large.fragment = 0x4000;
    guest.send(&large.bytes())?;
    let is_told =
        |packet: &Ipv4| packet.icmp() == Some((3, 4)) || packet.source == octets(SERVER).unwrap_or_default();
    let answer = guest.expect("an answer, or an error that names a size", SOON, is_told)?;
    if answer.icmp() == Some((3, 4)) {
        let size = answer.body.get(6..8).context("no size")?;
        let size = u16::from_be_bytes(size.try_into()?);
        ensure!([1400, 1420, 1450].contains(&size), "it says {size}");
    }
    Ok(())
}

/// TCP and UDP, small and large, from the world and from a sibling.
fn forwards(lab: &Lab) -> Result<()> {
    let guest = guest_address(1);
    lab.vmnat_ok(&["dnat", "add", &format!("8080:{guest}:80/tcp"), &format!("9000:{guest}:7000/tcp+udp")])?;
    client::download(&lab.world, &format!("{EXTERNAL}:8080"), 2_000_000)
        .context("a download by the world")?;
    let mut conversation = Conversation::open(&lab.world, &format!("{EXTERNAL}:9000"))?;
    conversation.exchange(2_000_000)?;
    conversation.close()?;
    let asker = Asker::new(&lab.world, 0)?;
    for size in [100, 4000] {
        asker
            .ask_within(&format!("{EXTERNAL}:9000"), size, client::PATIENCE)
            .context("the world over UDP")?;
    }
    let sibling = client::converse(lab.guest(2)?, &format!("{EXTERNAL}:9000")).context("a sibling")?;
    ensure!(sibling.ip().to_string() == EXTERNAL, "the sibling is seen as {sibling}");
    client::get(&lab.host, &format!("{EXTERNAL}:8080"), "/").context("the host's own socket").map(drop)
}

/// Its own TCP, UDP with fragments and ping, and its own server, which the world calls.
fn the_hosts_own(lab: &Lab) -> Result<()> {
    lab.assert_host_reaches_the_world()?;
    Asker::new(&lab.host, 0)?.ask_within(SERVER_ECHO, 4000, client::PATIENCE)?;
    lab.host.exec(&["nft", "add", "rule", "inet", "filter", "input", "tcp", "dport", "7000", "accept"])?;
    lab.host.exec(&[
        "nft",
        "add",
        "rule",
        "inet",
        "filter",
        "input",
        "icmp",
        "type",
        "echo-request",
        "accept",
    ])?;
    client::converse(&lab.world, &format!("{EXTERNAL}:7000")).context("the host's server")?;
    wait_until("the world's ping is answered", SOON, || {
        Ok(client::ping_as(&lab.world, 5, EXTERNAL, Duration::from_millis(300)).is_ok())
    })
}
