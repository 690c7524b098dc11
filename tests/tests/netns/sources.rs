//! One port forward, called from everywhere: the world, a sibling, the guest itself, another network, the host.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use vmnat_tests::lab::{
    EXTERNAL, GATEWAY, Lab, SERVER, SERVER_ECHO, Setup,
    client::{self, Asker, Conversation},
    firewall::{self, NFT_DROPS},
    guest_address,
    namespace::Namespace,
    service::Service,
    vmnat::Hook,
};

on_both_hooks!(
    everyone_reaches_the_guest,
    everyone_reaches_the_guest_past_nftables,
    everyone_reaches_the_guest_past_iptables,
    everyone_reaches_the_guest_past_br_netfilter,
    the_host_sees_the_endpoint_that_it_called,
    containers_keep_their_own_loopback,
    a_forward_for_the_host_alone_is_closed_to_all_others,
    a_silent_guest_gets_the_first_packet,
    a_hairpin_goes_on_without_the_agent_and_ends_with_its_forward,
    what_is_killed_ends_for_everyone,
);

/// The guest of a second network.
const OTHER: &str = "192.168.150.10";

/// How long an answer that must not come is waited for.
const MOMENT: Duration = Duration::from_millis(500);

/// A firewall that stands before vmnat comes.
type Firewall = fn(&Lab) -> Result<()>;

/// A second bridge and its guest.
fn add_network(lab: &Lab) -> Result<Namespace> {
    let guest = Namespace::new("other")?;
    lab.host.ip(&format!(
        "link add virbr1 type bridge stp_state 0 forward_delay 0\n\
         address add 192.168.150.1/24 dev virbr1\n\
         link set virbr1 up\n\
         link add other1 type veth peer name eth0 netns {}\n\
         link set other1 master virbr1 up\n",
        guest.path()
    ))?;
    guest.ip(&format!(
        "link set lo up\n\
         address add {OTHER}/24 dev eth0\n\
         link set eth0 up\n\
         route add default via 192.168.150.1\n"
    ))?;
    Ok(guest)
}

/// 1. a firewall; 2. vmnat with two networks, and forwards for TCP and UDP; 3. from each source: TCP in bulk, UDP, and the
///    address under which the guest sees the caller.
fn from_everywhere(hook: Hook, setup: Setup, firewall: Firewall) -> Result<()> {
    let mut lab = Lab::with(setup)?;
    let other = add_network(&lab)?;
    firewall(&lab)?;
    lab.up_with(hook, &["--bridge", "virbr1"])?;
    for protocol in ["tcp", "udp"] {
        lab.vmnat_ok(&["dnat", "add", &format!("9000:{}:7000/{protocol}", guest_address(1))])?;
    }
    let (external, loopback) = (format!("{EXTERNAL}:9000"), "127.0.0.1:9000".to_owned());
    let callers = [
        ("the world", &lab.world, &external, SERVER),
        ("a sibling", lab.guest(2)?, &external, EXTERNAL),
        ("the guest itself", lab.guest(1)?, &external, EXTERNAL),
        ("another network", &other, &external, EXTERNAL),
        ("the host by its external address", &lab.host, &external, GATEWAY),
        ("the host by its loopback", &lab.host, &loopback, GATEWAY),
    ];
    for (who, caller, there, seen_as) in callers {
        let by_tcp = client::converse(caller, there).with_context(|| format!("TCP from {who}"))?;
        let by_udp = client::ask(caller, there).with_context(|| format!("UDP from {who}"))?;
        for seen in [by_tcp, by_udp] {
            ensure!(seen.ip().to_string() == seen_as, "{who} is seen as {seen} instead of {seen_as}");
        }
    }
    let rows = lab.rows(&["dnat", "list"])?;
    ensure!(rows.iter().all(|row| row["connections"] == 6), "connections of six callers: {rows:?}");
    client::converse(lab.guest(1)?, SERVER_ECHO)?;
    lab.assert_invariants()
}

fn everyone_reaches_the_guest(hook: Hook) -> Result<()> {
    from_everywhere(hook, Setup::default(), |_| Ok(()))
}

fn everyone_reaches_the_guest_past_nftables(hook: Hook) -> Result<()> {
    from_everywhere(hook, Setup::default(), |lab| lab.host.nft(NFT_DROPS))
}

fn everyone_reaches_the_guest_past_iptables(hook: Hook) -> Result<()> {
    from_everywhere(hook, Setup { ip_forward: true, ..Setup::default() }, |lab| {
        firewall::legacy_drops(&lab.host)
    })
}

fn everyone_reaches_the_guest_past_br_netfilter(hook: Hook) -> Result<()> {
    let setup = Setup { br_netfilter: true, rp_filter: 1, ..Setup::default() };
    from_everywhere(hook, setup, |lab| {
        lab.host.nft(NFT_DROPS)?;
        firewall::legacy_drops(&lab.host)
    })
}

/// The host's sockets, TCP and UDP, connected or not, are told the endpoint that they called; with a datagram from somebody
/// else in between they are told that one's.
fn the_host_sees_the_endpoint_that_it_called(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    for protocol in ["tcp", "udp"] {
        lab.vmnat_ok(&["dnat", "add", &format!("9000:{}:7000/{protocol}", guest_address(1))])?;
    }
    for called in ["127.0.0.1:9000", &format!("{EXTERNAL}:9000")] {
        let called: SocketAddr = called.parse()?;
        let (tcp, udp) = lab.host.run(|| -> Result<_> {
            let tcp = TcpStream::connect(called)?;
            let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            udp.connect(called)?;
            Ok((tcp.peer_addr()?, udp.peer_addr()?))
        })?;
        ensure!((tcp, udp) == (called, called), "called {called}, and the peers are {tcp} and {udp}");
        let asker = Asker::new(&lab.host, 0)?;
        // An answer is taken from the endpoint that was asked alone.
        asker.ask(&called.to_string())?;
        asker.ask(SERVER_ECHO)?;
        asker.ask(&called.to_string())?;
    }
    // The unspecified address is the loopback too.
    client::converse(&lab.host, "0.0.0.0:9000")?;
    lab.assert_invariants()
}

/// Another namespace of the machine, as a container has one, uses port 9000 of its own loopback.
fn containers_keep_their_own_loopback(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    for protocol in ["tcp", "udp"] {
        lab.vmnat_ok(&["dnat", "add", &format!("9000:{}:7000/{protocol}", guest_address(1))])?;
    }
    let container = Namespace::new("container")?;
    container.ip("link set lo up\n")?;
    let refused = container.run(|| TcpStream::connect("127.0.0.1:9000"));
    client::must_fail("a container's loopback without a listener", refused.map_err(Into::into))?;
    let peer = container.run(|| -> Result<_> {
        let listener = TcpListener::bind("127.0.0.1:9000")?;
        let _stream = TcpStream::connect("127.0.0.1:9000")?;
        Ok(listener.accept()?.1)
    })?;
    ensure!(peer.ip() == Ipv4Addr::LOCALHOST, "the container's listener sees {peer}");
    let _echo = Service::udp_echo(&container, "127.0.0.1:9000")?;
    let seen_as = client::ask(&container, "127.0.0.1:9000")?;
    ensure!(seen_as.ip() == Ipv4Addr::LOCALHOST, "the container's echo sees {seen_as}");
    lab.assert_invariants()
}

/// `127.0.0.1:9000:…` serves the host. Frames for 127.0.0.1 on the uplink, and guests, do not get in by it.
fn a_forward_for_the_host_alone_is_closed_to_all_others(hook: Hook) -> Result<()> {
    use vmnat_tests::lab::frame::{Packet, Tap};
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    lab.vmnat_ok(&["dnat", "add", &format!("127.0.0.1:9000:{}:7000/udp", guest_address(1))])?;
    client::ask(&lab.host, "127.0.0.1:9000")?;
    let attempt = Asker::new(&lab.world, 0)?.ask_within(&format!("{EXTERNAL}:9000"), 10, MOMENT);
    client::must_fail("the world on a forward of the loopback", attempt)?;
    let attempt = Asker::new(lab.guest(2)?, 0)?.ask_within(&format!("{EXTERNAL}:9000"), 10, MOMENT);
    client::must_fail("a sibling on a forward of the loopback", attempt)?;
    let before = lab.flow_count()?;
    let router = Tap::open(&lab.router, "wan0")?;
    router.send(&Packet::udp(lab.inbound_ends(SERVER, "127.0.0.1")?, 5, 9000, b"x").bytes())?;
    let guest = Tap::open(lab.guest(2)?, "eth0")?;
    guest.send(&Packet::udp(lab.outbound_ends(2, "127.0.0.1")?, 5, 9000, b"x").bytes())?;
    ensure!(lab.flow_count()? == before, "a frame for 127.0.0.1 has opened a flow");
    lab.assert_invariants()
}

/// The guest has never sent a frame, nobody knows its MAC: the one datagram of each caller arrives.
fn a_silent_guest_gets_the_first_packet(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    lab.vmnat_ok(&["dnat", "add", &format!("9000:{}:7000/udp", guest_address(1))])?;
    for (who, caller) in [("world", &lab.world), ("sibling", lab.guest(2)?), ("host", &lab.host)] {
        lab.host.ip("neigh flush dev virbr0\n")?;
        let leases = lab.rows(&["leases"])?;
        ensure!(
            who != "world" || leases.iter().all(|row| row["address"] != guest_address(1)),
            "the guest is known already: {leases:?}"
        );
        client::ask(caller, &format!("{EXTERNAL}:9000"))
            .with_context(|| format!("the first datagram of the {who}"))?;
    }
    lab.assert_invariants()
}

/// 1. a sibling converses through the forward; 2. the agent dies, and it goes on, and a further one comes about; 3. the forward
///    is removed: no further one, and the live one goes on.
fn a_hairpin_goes_on_without_the_agent_and_ends_with_its_forward(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let (forward, there) = (format!("9000:{}:7000/tcp", guest_address(1)), format!("{EXTERNAL}:9000"));
    lab.vmnat_ok(&["dnat", "add", &forward])?;
    let mut conversation = Conversation::open(lab.guest(2)?, &there)?;
    lab.kill_agent()?;
    conversation.exchange(1_000_000)?;
    client::converse(lab.guest(2)?, &there)?;
    lab.vmnat_ok(&["dnat", "rm", &forward])?;
    client::must_fail("a removed forward", client::converse(lab.guest(2)?, &there))?;
    client::must_fail("a removed forward", client::converse(&lab.host, &there))?;
    conversation.exchange(100_000)?;
    lab.assert_invariants()
}

/// The world, a sibling and the host converse through a forward, the host also with the guest itself: `rm --kill` ends the first
/// three and leaves the last alone.
fn what_is_killed_ends_for_everyone(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let (forward, there) = (format!("9000:{}:7000/tcp", guest_address(1)), format!("{EXTERNAL}:9000"));
    lab.vmnat_ok(&["dnat", "add", &forward])?;
    let mut ends = vec![
        Conversation::open(&lab.world, &there)?,
        Conversation::open(lab.guest(2)?, &there)?,
        Conversation::open(&lab.host, &there)?,
        Conversation::open(&lab.host, "127.0.0.1:9000")?,
    ];
    let mut direct = Conversation::open(&lab.host, &format!("{}:7000", guest_address(1)))?;
    for conversation in ends.iter_mut().chain([&mut direct]) {
        conversation.exchange(10_000)?;
    }
    lab.vmnat_ok(&["dnat", "rm", &forward, "--kill"])?;
    for (who, conversation) in
        ["the world", "a sibling", "the host", "the host's loopback"].iter().zip(&mut ends)
    {
        client::must_fail(who, conversation.exchange(10_000))?;
    }
    direct.exchange(10_000)?;
    lab.assert_sound_but_for_invalid_packets()
}
