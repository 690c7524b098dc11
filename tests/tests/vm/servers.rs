//! A real web server and a real sshd in the guest, reached through port forwards from everywhere.
//!
//! Each test boots the guest under FORWARD and INPUT on drop, and sees that nobody gets through before the forwards
//! are there: 8080 to nginx, 5353 to nginx's UDP service, and 2222 to sshd. Then its caller downloads 4 MB from nginx, has
//! a datagram answered, logs in with ssh, and moves 4 MB through it each way, all with their SHA-256.

use std::{net::UdpSocket, time::Duration};

use anyhow::{Context, Result, ensure};
use vmnat_tests::{
    guest::{self, Login, VirtualMachine},
    lab::{EXTERNAL, Lab, SERVER, client, firewall::NFT_DROPS, namespace::Namespace, service, vmnat::Hook},
};

use crate::BOOT;

const WEB: u16 = 8080;
const SSH: u16 = 2222;
/// nginx answers datagrams with the caller's address.
const UDP: u16 = 5353;
/// Long enough for an answer within the lab, short enough to wait for none.
const CUT_OFF: Duration = Duration::from_secs(1);

#[test]
fn the_world_reaches_a_real_web_server_and_sshd_on_tcx() -> Result<()> {
    the_world_reaches_a_real_web_server_and_sshd(Hook::Tcx)
}

#[test]
fn the_world_reaches_a_real_web_server_and_sshd_on_clsact() -> Result<()> {
    the_world_reaches_a_real_web_server_and_sshd(Hook::Clsact)
}

#[test]
fn a_sibling_reaches_a_real_web_server_and_sshd_on_tcx() -> Result<()> {
    a_sibling_reaches_a_real_web_server_and_sshd(Hook::Tcx)
}

#[test]
fn a_sibling_reaches_a_real_web_server_and_sshd_on_clsact() -> Result<()> {
    a_sibling_reaches_a_real_web_server_and_sshd(Hook::Clsact)
}

#[test]
fn the_host_reaches_a_real_web_server_and_sshd_on_tcx() -> Result<()> {
    the_host_reaches_a_real_web_server_and_sshd(Hook::Tcx)
}

#[test]
fn the_host_reaches_a_real_web_server_and_sshd_on_clsact() -> Result<()> {
    the_host_reaches_a_real_web_server_and_sshd(Hook::Clsact)
}

/// The guest sees the caller's own address.
fn the_world_reaches_a_real_web_server_and_sshd(hook: Hook) -> Result<()> {
    let mut servers = Servers::boot(hook)?;
    let world = servers.lab.world.clone();
    must_be_closed(&world, EXTERNAL)?;
    servers.forward()?;
    let seen_as = servers.used_by(&world, EXTERNAL)?;
    ensure!(seen_as == SERVER, "the guest sees {seen_as}");
    servers.lab.assert_invariants()
}

/// The caller is another guest, which comes by the external address; the guest sees that address (RFC 4787 REQ-9).
/// Then the guest calls itself the same way.
fn a_sibling_reaches_a_real_web_server_and_sshd(hook: Hook) -> Result<()> {
    let mut servers = Servers::boot(hook)?;
    let (sibling, world) = (servers.lab.guest(1)?.clone(), servers.lab.world.clone());
    must_be_closed(&sibling, EXTERNAL)?;
    servers.forward()?;
    let seen_as = servers.used_by(&sibling, EXTERNAL)?;
    ensure!(seen_as == EXTERNAL, "the guest sees {seen_as}");

    let fetch = format!("wget -q -O - http://{EXTERNAL}:{WEB}/bytes");
    let own = servers.login.run(&world, EXTERNAL, SSH, &fetch, b"").context("the guest calls itself")?;
    must_be_the_file("the guest's own download", &own)?;
    servers.lab.assert_invariants()
}

/// The caller is the host, by the uplink's address and by its loopback.
fn the_host_reaches_a_real_web_server_and_sshd(hook: Hook) -> Result<()> {
    let mut servers = Servers::boot(hook)?;
    let host = servers.lab.host.clone();
    for address in [EXTERNAL, "127.0.0.1"] {
        must_be_closed(&host, address)?;
    }
    servers.forward()?;
    for address in [EXTERNAL, "127.0.0.1"] {
        servers.used_by(&host, address)?;
    }
    servers.lab.assert_invariants()
}

/// The guest with its servers, and the keys to it.
struct Servers {
    login: Login,
    machine: VirtualMachine,
    // The last to go: the others are in its namespaces.
    lab: Lab,
}

impl Servers {
    /// Boots the guest behind vmnat, without a forward.
    fn boot(hook: Hook) -> Result<Self> {
        let lab = Lab::new()?;
        lab.host.nft(NFT_DROPS)?;
        lab.up(hook)?;
        let login = Login::new(&lab)?;
        let mut machine = VirtualMachine::start_server(&lab, &login)?;
        let reports = machine.reports(BOOT)?;
        for name in ["nginx", "sshd"] {
            let passed = format!("vm:{name} ok");
            ensure!(reports.iter().any(|line| line.starts_with(&passed)), "no {passed:?} among {reports:?}");
        }
        Ok(Self { login, machine, lab })
    }

    fn forward(&self) -> Result<()> {
        for (port, of_guest) in [(WEB, 80), (SSH, 22)] {
            self.lab.vmnat_ok(&["dnat", "add", &format!("{port}:{}:{of_guest}/tcp", guest::ADDRESS)])?;
        }
        self.lab.vmnat_ok(&["dnat", "add", &format!("{UDP}:{}:7000/udp", guest::ADDRESS)]).map(drop)
    }

    /// Uses both servers by way of `address`, and returns the caller's address as sshd saw it.
    fn used_by(&self, from: &Namespace, address: &str) -> Result<String> {
        let used = must_serve_the_page_and_the_file(from, address).and_then(|()| {
            let by_udp = asked(from, address, client::PATIENCE)?;
            let by_ssh = self.ssh_by(from, address)?;
            ensure!(by_udp == by_ssh, "{by_udp} over UDP, and {by_ssh} over TCP");
            Ok(by_ssh)
        });
        used.with_context(|| format!("all the guest said:\n{}", self.machine.said()))
    }

    fn ssh_by(&self, from: &Namespace, address: &str) -> Result<String> {
        let run = |command, input: &[u8]| self.login.run(from, address, SSH, command, input);
        must_be_the_file("what ssh brought", &run("cat /www/bytes", b"")?)?;
        let sent = service::content(guest::SERVED);
        let arrived = String::from_utf8(run("sha256sum", &sent)?)?;
        let (got, wanted) = (arrived.split(' ').next().unwrap_or_default(), service::sha256(&sent));
        ensure!(got == wanted, "what ssh took arrived with hash {got} instead of {wanted}");

        let client = String::from_utf8(run("echo $SSH_CLIENT", b"")?)?;
        Ok(client.split(' ').next().unwrap_or_default().to_owned())
    }
}

fn must_be_closed(from: &Namespace, address: &str) -> Result<()> {
    for port in [WEB, SSH] {
        let there = format!("{address}:{port}");
        let tried = client::connect(from, None, &there, CUT_OFF);
        client::must_fail(&format!("{there} without a forward"), tried)?;
    }
    client::must_fail("a datagram without a forward", asked(from, address, CUT_OFF))
}

/// Asks nginx over UDP, and returns the caller's address as it saw it.
fn asked(from: &Namespace, address: &str, patience: Duration) -> Result<String> {
    let socket = from.run(|| UdpSocket::bind("0.0.0.0:0"))?;
    socket.connect((address, UDP))?;
    socket.set_read_timeout(Some(patience))?;
    socket.send(b"who am I")?;
    let mut answer = [0; 64];
    let length = socket.recv(&mut answer).context("an answer over UDP")?;
    Ok(String::from_utf8_lossy(answer.get(..length).unwrap_or_default()).into_owned())
}

/// By way of `address`, nginx serves.
fn must_serve_the_page_and_the_file(from: &Namespace, address: &str) -> Result<()> {
    let web = format!("{address}:{WEB}");
    let page = client::get(from, &web, "/index.html").with_context(|| format!("the page of {web}"))?;
    ensure!(page == b"served by the guest\n", "{}", String::from_utf8_lossy(&page));
    let file = client::get(from, &web, "/bytes").with_context(|| format!("the file of {web}"))?;
    must_be_the_file("the download", &file)
}

fn must_be_the_file(what: &str, bytes: &[u8]) -> Result<()> {
    let (got, wanted) = (service::sha256(bytes), service::sha256(&service::content(guest::SERVED)));
    ensure!(got == wanted, "{what}: {} bytes with hash {got} instead of {wanted}", bytes.len());
    Ok(())
}
