//! Who may call a guest by the external endpoint of its mapping, and who has the port when the host wants it.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use vmnat_tests::lab::{
    EXTERNAL, Lab, SERVER, SERVER_ECHO, STRANGER,
    client::{self, Asker},
    namespace::Namespace,
    vmnat::Hook,
    wait_until,
};

on_both_hooks!(
    strangers_reach_the_guest_while_its_network_is_open,
    an_open_network_is_open_from_its_first_moment,
    a_port_that_the_host_binds_later_is_the_hosts,
    a_socket_of_the_host_wins_in_an_open_network_too,
);

/// How long a datagram that must not come is waited for.
const MOMENT: Duration = Duration::from_millis(400);

const OPEN: &str = "anyone who knows a mapped port reaches the guest";

fn socket(namespace: &Namespace, at: &str) -> Result<UdpSocket> {
    namespace.run(|| UdpSocket::bind(at)).with_context(|| format!("UDP {at} in {}", namespace.name()))
}

/// Asks the server, and returns the external endpoint that it sees.
fn external(socket: &UdpSocket) -> Result<SocketAddr> {
    socket.set_read_timeout(Some(Duration::from_secs(3)))?;
    socket.send_to(b"?", SERVER_ECHO)?;
    let mut answer = [0; 64];
    let (length, _) = socket.recv_from(&mut answer).context("no answer of the server")?;
    let answer = std::str::from_utf8(answer.get(..length).unwrap_or_default())?;
    Ok(answer.split(' ').next().unwrap_or_default().parse()?)
}

/// Sends a datagram from one socket to where another should get it; the sender that it sees, if it does.
fn arrives(from: &UdpSocket, to: SocketAddr, at: &UdpSocket) -> Result<Option<SocketAddr>> {
    at.set_read_timeout(Some(MOMENT))?;
    from.send_to(b"knock", to)?;
    let mut bytes = [0; 64];
    Ok(at.recv_from(&mut bytes).ok().map(|(_, sender)| sender))
}

/// 1. guest 1 has a mapping; 2. neither a stranger nor another port of its server reaches it by that; 3. its network is opened:
///    the stranger does, is answered from the mapping, and `status` says so; 4. it is closed again: the next stranger does not,
///    the first one's conversation goes on.
fn strangers_reach_the_guest_while_its_network_is_open(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let guest = socket(lab.guest(1)?, "0.0.0.0:20000")?;
    let (stranger, other) =
        (socket(&lab.world, &format!("{STRANGER}:5000"))?, socket(&lab.world, &format!("{SERVER}:5001"))?);
    let mapped = external(&guest)?;
    ensure!(arrives(&stranger, mapped, &guest)?.is_none(), "a stranger reaches a closed network");
    ensure!(arrives(&other, mapped, &guest)?.is_none(), "another port of the server reaches it");
    ensure!(lab.listing(&["network", "list"])?.at(0)["filtering"] == "address-and-port-dependent");
    ensure!(!lab.vmnat_ok(&["status"])?.contains(OPEN));

    lab.vmnat_ok(&["network", "add", "virbr0", "--filtering", "endpoint-independent"])?;
    let seen = arrives(&stranger, mapped, &guest)?.context("the stranger does not reach an open network")?;
    ensure!(seen == stranger.local_addr()?, "the guest sees {seen}");
    let answered = arrives(&guest, seen, &stranger)?;
    ensure!(answered == Some(mapped), "the stranger is answered by {answered:?} instead of {mapped}");
    ensure!(lab.vmnat_ok(&["status"])?.contains(OPEN), "`status` does not say that the network is open");
    ensure!(lab.listing(&["network", "list"])?.at(0)["filtering"] == "endpoint-independent");

    lab.up_with(hook, &["--filtering", "address-and-port-dependent"])?;
    ensure!(arrives(&other, mapped, &guest)?.is_none(), "a new caller reaches the network that was closed");
    ensure!(arrives(&stranger, mapped, &guest)?.is_some(), "a live conversation has ended");
    ensure!(external(&guest)? == mapped, "the mapping has moved");
    lab.assert_invariants()
}

/// `up --filtering` opens at once, and a second `up` without it leaves it open.
fn an_open_network_is_open_from_its_first_moment(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up_with(hook, &["--filtering", "endpoint-independent"])?;
    lab.up(hook)?;
    let guest = socket(lab.guest(1)?, "0.0.0.0:20000")?;
    let mapped = external(&guest)?;
    for (number, port) in (1..).zip(5000..5003) {
        let stranger = socket(&lab.world, &format!("{STRANGER}:{port}"))?;
        ensure!(arrives(&stranger, mapped, &guest)?.is_some(), "stranger {number} is not heard");
    }
    let answered = Asker::new(&lab.world, 0)?.ask_within(&format!("{EXTERNAL}:20001"), 10, MOMENT);
    client::must_fail("a port that nobody has mapped", answered)?;
    lab.assert_invariants()
}

fn a_port_that_the_host_binds_later_is_the_hosts(hook: Hook) -> Result<()> {
    host_takes(hook, "address-and-port-dependent")
}

fn a_socket_of_the_host_wins_in_an_open_network_too(hook: Hook) -> Result<()> {
    host_takes(hook, "endpoint-independent")
}

/// 1. guest 1 has a port, by a conversation with the server; 2. a socket of the host binds it: a stranger's datagram is the
///    socket's at once, and so is the answer to what the socket sends; 3. a tick later the guest has another port, the
///    server's datagrams to the old one are the socket's, and `status` says what happened; 4. guest 2 gets the port no more.
fn host_takes(hook: Hook, filtering: &str) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up_with(hook, &["--filtering", filtering, "--reap-interval", "2s"])?;
    let guest = socket(lab.guest(1)?, "0.0.0.0:20000")?;
    let sibling = socket(lab.guest(2)?, "0.0.0.0:20000")?;
    let mapped = external(&guest)?;
    ensure!(mapped.port() == 20_000, "the port was free, and the guest has {mapped}");
    let stranger = socket(&lab.world, &format!("{STRANGER}:5000"))?;

    let host = socket(&lab.host, "0.0.0.0:20000")?;
    ensure!(arrives(&stranger, mapped, &host)?.is_some(), "the host's socket does not hear a stranger");
    ensure!(arrives(&host, stranger.local_addr()?, &stranger)? == Some(mapped));
    ensure!(arrives(&stranger, mapped, &host)?.is_some(), "the host's socket does not hear an answer");

    wait_until("the guest's mapping to move", Duration::from_secs(30), || {
        Ok(external(&guest).is_ok_and(|external| external.port() != 20_000))
    })?;
    let moved = external(&guest)?;
    let server = socket(&lab.world, &format!("{SERVER}:5002"))?;
    ensure!(arrives(&server, mapped, &host)?.is_some(), "the host's socket does not hear the server");
    ensure!(external(&host)? == mapped, "the server answers somebody else");
    ensure!(external(&sibling)? != mapped, "a sibling has got the host's port");
    ensure!(external(&guest)? == moved, "the guest's mapping moves on and on");
    let status = lab.vmnat_ok(&["status"])?;
    ensure!(status.contains("a socket of the host has taken an external port of guest"), "{status}");
    drop(host);
    lab.assert_invariants()
}
