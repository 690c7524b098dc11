//! What `dnat add` refuses: cause and remedy, in words.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixListener,
    thread,
};

use anyhow::{Result, ensure};
use vmnat_tests::lab::{
    EXTERNAL, Lab,
    client::{self, Conversation},
    guest_address,
    service::Service,
    vmnat::Hook,
};

on_both_hooks!(
    each_refusal_says_what_and_why_and_what_to_do,
    a_server_of_the_host_is_named_and_its_port_can_be_stolen,
    only_servers_at_the_forwards_addresses_are_in_the_way,
    what_docker_publishes_is_named,
);

/// An answer of `GET /containers/json`, as Docker 27 gives it with its user-land proxy off.
const CONTAINERS: &str = concat!(
    r#"[{"Id":"8dfafdbc3a40","Names":["/shop"],"Image":"nginx","State":"running","Ports":["#,
    r#"{"IP":"0.0.0.0","PrivatePort":80,"PublicPort":8080,"Type":"tcp"},"#,
    r#"{"IP":"::","PrivatePort":80,"PublicPort":8080,"Type":"tcp"},{"PrivatePort":443,"Type":"tcp"}]}]"#
);

fn each_refusal_says_what_and_why_and_what_to_do(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    for (forward, code, words) in [
        ("0:192.168.122.10:80", 2, "port 0 lies outside 1-65535; write [HOSTIP:]PORT"),
        ("80:192.168.122.10:70000", 2, "port 70000 lies outside 1-65535"),
        ("90-80:192.168.122.10:90-80", 2, "the range 90-80 ends before it begins"),
        (
            "80-89:192.168.122.10:80-88",
            2,
            "80-89 is 10 ports and 80-88 is 9 ports, and both sides need the same number",
        ),
        ("80:192.168.122.10:80/icmp", 2, "\"icmp\" is none of tcp, udp, sctp and tcp+udp"),
        (
            "80:192.168.122.10:81/sctp",
            2,
            "SCTP keeps its port number, because its checksum covers it: write 80 on both",
        ),
        ("80:10.9.9.9:80", 1, "no network of this instance holds 10.9.9.9; `vmnat network list` shows them"),
        (
            "80:192.168.122.1:80",
            1,
            "it is the host's own address, the gateway of 192.168.122.0/24; write a guest's",
        ),
        ("80:192.168.122.255:80", 1, "it is the broadcast address of 192.168.122.0/24"),
        ("80:web:80", 1, "no lease of \"web\" is known: no lease has a name: write an address"),
        (
            "192.168.122.77:80:192.168.122.10:80",
            1,
            "it belongs to the guests of 192.168.122.0/24; write an address of",
        ),
    ] {
        lab.refused_with(code, &["dnat", "add", forward])?;
        let error = lab.vmnat_refused(&["dnat", "add", forward])?;
        ensure!(error.contains(words), "{forward}: {error}");
    }
    let forward = format!("80:{}:80", guest_address(1));
    lab.refused_with(4, &["dnat", "add", &forward, "--uplink", "eth9"])?;
    let error = lab.vmnat_refused(&["dnat", "add", &forward, "--uplink", "eth9"])?;
    ensure!(error.contains("\"eth9\" is no uplink of this instance; its only uplink is enp3s0"), "{error}");
    ensure!(lab.rows(&["dnat", "list"])?.is_empty(), "something was added");
    lab.assert_invariants()
}

/// 1. the host's echo holds 7000: the process is named; 2. `--steal` gives the port to the guest; 3. it is removed, and the host
///    has its port back.
fn a_server_of_the_host_is_named_and_its_port_can_be_stolen(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let forward = format!("7000:{}:80", guest_address(1));
    lab.refused_with(10, &["dnat", "add", &forward])?;
    let error = lab.vmnat_refused(&["dnat", "add", &forward])?;
    let process = format!("process {} of the host, which listens: end it,", std::process::id());
    for words in ["port 7000/tcp is already taken by", &process, "to the guest with --steal"] {
        ensure!(error.contains(words), "no {words:?} in {error}");
    }
    lab.vmnat_ok(&["dnat", "add", &forward, "--steal"])?;
    client::get(&lab.world, &format!("{EXTERNAL}:7000"), "/")?;
    lab.vmnat_ok(&["dnat", "rm", &forward])?;
    client::converse(&lab.world, &format!("{EXTERNAL}:7000"))?;
    lab.assert_invariants()
}

/// In the way: a server on 127.0.0.1, unless the forward is bound to the uplink. Not in the way: a connected socket with that
/// port, and the host's UDP server at the bridge's address.
fn only_servers_at_the_forwards_addresses_are_in_the_way(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let _local = Service::http(&lab.host, "127.0.0.1:8080")?;
    let forward = format!("8080:{}:80", guest_address(1));
    let error = lab.vmnat_refused(&["dnat", "add", &forward])?;
    ensure!(error.contains("listens at 127.0.0.1: end it, bind the forward with --uplink,"), "{error}");
    lab.vmnat_ok(&["dnat", "add", &forward, "--uplink", "enp3s0"])?;
    client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/")?;
    let mut connected = Conversation::open_from(&lab.host, 9000, vmnat_tests::lab::SERVER_ECHO)?;
    lab.vmnat_ok(&["dnat", "add", &format!("9000:{}:7000", guest_address(1))])?;
    connected.exchange(100_000)?;
    client::converse(&lab.world, &format!("{EXTERNAL}:9000"))?;
    connected.exchange(100_000)?;
    lab.vmnat_ok(&["dnat", "add", &format!("7000:{}:7000/udp", guest_address(1))])?;
    lab.assert_invariants()
}

/// A Docker that publishes 8080 by netfilter alone, without a socket; one that says nothing is no hindrance.
fn what_docker_publishes_is_named(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let docker = UnixListener::bind("/run/docker.sock")?;
    thread::spawn(move || {
        for mut caller in docker.incoming().flatten() {
            let mut request = [0; 512];
            let length = caller.read(&mut request).unwrap_or(0);
            assert!(
                request.get(..length).unwrap_or_default().starts_with(b"GET /containers/json HTTP/1.0\r\n"),
                "another request"
            );
            let head = "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n";
            caller.write_all(format!("{head}{CONTAINERS}\n").as_bytes()).ok();
        }
    });
    let forward = format!("8080:{}:80", guest_address(1));
    lab.refused_with(10, &["dnat", "add", &forward])?;
    let error = lab.vmnat_refused(&["dnat", "add", &forward])?;
    let words = "port 8080/tcp is already taken by Docker, which publishes it for the container shop: run `docker stop shop`";
    ensure!(error.contains(words), "{error}");
    lab.vmnat_ok(&["dnat", "add", &format!("8080:{}:7000/udp", guest_address(1))])?;
    lab.vmnat_ok(&["dnat", "add", &forward, "--steal"])?;
    client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/")?;
    std::fs::remove_file("/run/docker.sock")?;
    let _silent = UnixListener::bind("/run/docker.sock")?;
    lab.vmnat_ok(&["dnat", "add", &format!("8081:{}:80", guest_address(1))])?;
    lab.assert_invariants()
}
