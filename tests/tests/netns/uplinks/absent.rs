//! Uplinks that have no address yet, or are not there yet, when `up` is told of them.

use std::{
    net::UdpSocket,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use vmnat_tests::lab::{
    EXTERNAL, Lab, ROUTER, SERVER, SERVER_ECHO, Setup, client, guest_address, vmnat::Hook, wait_until,
};

on_both_hooks!(
    an_uplink_serves_from_the_moment_it_has_an_address,
    a_route_without_an_address_is_a_refusal,
    an_uplink_that_is_not_there_yet_serves_when_it_comes,
    a_default_route_that_is_not_there_yet_is_followed_when_it_comes,
);

const PATIENCE: Duration = Duration::from_secs(5);

fn is_online(lab: &Lab) -> Result<bool> {
    Ok(client::ping_as(lab.guest(1)?, 9, SERVER, Duration::from_millis(300)).is_ok())
}

/// 1. `up` refuses and says what to do; 2. with `--wait 0` it starts and warns, and so does `status`; 3. nothing of a guest leaves;
///    4. the address comes, and guests are online, port forwards too, without anybody's doing.
fn an_uplink_serves_from_the_moment_it_has_an_address(hook: Hook) -> Result<()> {
    let mut lab = Lab::with(Setup { ip_forward: true, ..Setup::default() })?;
    lab.host.ip(&format!("address delete {EXTERNAL}/24 dev enp3s0\n"))?;
    let usual = ["up", "--bridge", "virbr0", "--uplink", "enp3s0", "--hook", hook.name()];
    lab.refused_with(5, &usual)?;
    ensure!(lab.vmnat_refused(&usual)?.contains("`--wait 0`"), "it does not say what to do");
    let printed = lab.up_with(hook, &["--wait", "0"])?;
    ensure!(printed.contains("uplink enp3s0 has no IPv4 address"), "`up` does not warn: {printed}");
    let status = lab.vmnat_ok(&["status"])?;
    ensure!(status.contains("enp3s0 has no IPv4 address"), "`status` does not say it: {status}");
    lab.vmnat_ok(&["dnat", "add", &format!("8080:{}:80/tcp", guest_address(1))])?;
    ensure!(!is_online(&lab)?, "online without an address");
    lab.leaks.assert_none()?;
    lab.host.ip(&format!("address add {EXTERNAL}/24 dev enp3s0\nroute replace default via {ROUTER}\n"))?;
    wait_until("guest 1 is online", PATIENCE, || is_online(&lab))?;
    client::converse(lab.guest(2)?, SERVER_ECHO)?;
    client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/")?;
    let status = lab.vmnat_ok(&["status"])?;
    ensure!(!status.contains("no IPv4 address"), "`status` still warns: {status}");
    lab.assert_invariants()
}

/// The link is up and has a default route, as a modem's may before its address: a guest is told that it may not, at once, and
/// nothing leaves.
fn a_route_without_an_address_is_a_refusal(hook: Hook) -> Result<()> {
    let mut lab = Lab::with(Setup { ip_forward: true, ..Setup::default() })?;
    lab.host.ip(&format!("address delete {EXTERNAL}/24 dev enp3s0\nroute add default dev enp3s0\n"))?;
    lab.up_with(hook, &["--wait", "0"])?;
    let told = lab.guest(1)?.run(|| -> Result<Duration> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(SERVER_ECHO)?;
        socket.set_read_timeout(Some(Duration::from_secs(3)))?;
        let since = Instant::now();
        socket.send(b"may I?")?;
        let answer = socket.recv(&mut [0; 64]);
        let is_refusal = answer.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EHOSTUNREACH));
        ensure!(is_refusal, "the guest hears {answer:?}");
        Ok(since.elapsed())
    })?;
    ensure!(told < Duration::from_secs(1), "told after {told:?}");
    ensure!(lab.counter("no_uplink_address")? > 0, "no_uplink_address has not moved");
    lab.leaks.assert_none()?;
    lab.host.ip(&format!("address add {EXTERNAL}/24 dev enp3s0\nroute replace default via {ROUTER}\n"))?;
    wait_until("guest 1 is online", PATIENCE, || is_online(&lab))?;
    lab.assert_invariants()
}

/// As a modem that is plugged in later: 1. a name that nobody has is refused, since it may be a slip; 2. with `--wait 0` it is
///    taken as it is; 3. the interface comes, with its address.
fn an_uplink_that_is_not_there_yet_serves_when_it_comes(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.host.ip(&format!("address delete {EXTERNAL}/24 dev enp3s0\n"))?;
    let usual = ["up", "--bridge", "virbr0", "--uplink", "usb0", "--hook", hook.name()];
    lab.refused_with(4, &usual)?;
    let printed = lab.vmnat_ok(&[&usual[..], &["--wait", "0"]].concat())?;
    ensure!(printed.contains("uplink usb0 does not exist"), "`up` does not warn: {printed}");
    ensure!(!is_online(&lab)?, "online without an uplink");
    lab.host.ip(&format!(
        "link set enp3s0 down\nlink set enp3s0 name usb0\nlink set usb0 up\n\
         address add {EXTERNAL}/24 dev usb0\nroute add default via {ROUTER}\n"
    ))?;
    wait_until("guest 1 is online", PATIENCE, || is_online(&lab))?;
    client::converse(lab.guest(2)?, SERVER_ECHO)?;
    lab.assert_invariants()
}

/// Without `--uplink`: 1. no default route is a refusal; 2. with `--wait 0` it is not, and what comes is followed.
fn a_default_route_that_is_not_there_yet_is_followed_when_it_comes(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.host.ip("route delete default\n")?;
    let usual = ["up", "--bridge", "virbr0", "--hook", hook.name()];
    lab.refused_with(4, &usual)?;
    let printed = lab.vmnat_ok(&[&usual[..], &["--wait", "0"]].concat())?;
    ensure!(printed.contains("there is no default route"), "`up` does not warn: {printed}");
    lab.host.ip(&format!("route add default via {ROUTER}\n"))?;
    wait_until("guest 1 is online", PATIENCE, || is_online(&lab))?;
    client::converse(lab.guest(2)?, SERVER_ECHO)?;
    lab.assert_invariants()
}
