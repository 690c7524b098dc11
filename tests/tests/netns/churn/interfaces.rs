//! Interfaces that come and go under traffic: whom it concerns is heard again, and all others notice nothing.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use vmnat_tests::lab::{
    BRIDGE_MAC, EXTERNAL, GATEWAY, Lab, ROUTER, ROUTER_MAC, SERVER, SERVER_ECHO, STRANGER, UPLINK_MAC,
    client::{self, Conversation},
    namespace::Namespace,
    octets,
    second_uplink::{SECOND_ROUTER, SECOND_UPLINK},
    set_offloads,
    traffic::Traffic,
    vmnat::Hook,
    wait_until,
    watch::LeakWatch,
    written,
};

use super::{PATIENCE, assert_spared, heals};

on_both_hooks!(
    an_address_that_goes_ends_its_own_sessions_alone,
    an_uplink_that_is_made_again_keeps_its_sessions,
    an_uplink_goes_down_and_up_under_traffic,
    a_bridge_that_is_made_again_keeps_its_sessions,
    twenty_guests_start_and_stop_beside_traffic,
);

/// 1. a second uplink has the way to the stranger; 2. the first one's address changes under traffic of both; 3. the guest hears of the
///    end of its conversation at once, and its next one is seen as the new address; the other uplink's goes on.
fn an_address_that_goes_ends_its_own_sessions_alone(hook: Hook) -> Result<()> {
    const ANOTHER: &str = "203.0.113.77";
    let mut lab = Lab::new()?;
    let second = lab.lay_second_uplink()?;
    lab.host.ip(&format!("route add {STRANGER}/32 via {SECOND_ROUTER}\n"))?;
    lab.up_with(hook, &["--uplink", SECOND_UPLINK])?;
    let mut other = Conversation::open(lab.guest(2)?, &format!("{STRANGER}:7000"))?;
    let mut ended = Conversation::open(lab.guest(1)?, SERVER_ECHO)?;
    other.exchange(10_000)?;
    ended.exchange(10_000)?;
    lab.leaks.assert_none()?;
    let since = Instant::now();
    lab.host.ip(&format!(
        "address delete {EXTERNAL}/24 dev enp3s0\n\
         address add {ANOTHER}/24 dev enp3s0\n\
         route replace default via {ROUTER}\n"
    ))?;
    // In the moment until the agent has heard, the old address may still leave, as the host's own answers would.
    wait_until("the sessions of the old address to end", PATIENCE, || {
        let old: Vec<_> = lab.rows(&["flows"])?;
        Ok(!old.iter().any(|flow| flow["external"]["address"] == EXTERNAL))
    })?;
    let flushed = since.elapsed();
    client::must_fail("a conversation of the old address", ended.exchange(1000))?;
    let told = since.elapsed();
    other.exchange(100_000).context("a conversation by the other uplink")?;
    lab.leaks = LeakWatch::new(&lab.router, "wan0", octets(ANOTHER)?)?;
    let seen = client::converse(lab.guest(1)?, SERVER_ECHO)?;
    ensure!(seen.ip().to_string() == ANOTHER, "seen as {seen}");
    println!(
        "{hook:?}: an address went: its sessions ended after {flushed:?}, the guest knew after {told:?}"
    );
    ensure!(told < flushed + Duration::from_secs(4), "the guest was told after {told:?}");
    heals(&lab)?;
    second.assert_none()?;
    lab.assert_invariants()
}

/// As a driver that is loaded again does it: the interface gets another number.
fn make_uplink_again(lab: &mut Lab, pause: Duration) -> Result<()> {
    lab.leaks.assert_none()?;
    lab.host.ip("link delete enp3s0\n")?;
    thread::sleep(pause);
    let (uplink, wan) = (written(UPLINK_MAC), written(ROUTER_MAC));
    lab.router.ip(&format!(
        "link add wan0 address {wan} type veth peer name enp3s0 address {uplink} netns {}\n\
         address add {ROUTER}/24 dev wan0\n\
         link set wan0 up\n",
        lab.host.path()
    ))?;
    // An address comes a moment after its interface, by DHCP or by a manager of networks. Where it is there before the hooks are, the host
    // resets what comes in.
    wait_until("the hooks of the new interface", PATIENCE, || Ok(lab.vmnat(&["status"])?.status.success()))?;
    set_offloads(&lab.router, "wan0", "off")?;
    set_offloads(&lab.host, "enp3s0", "off")?;
    lab.leaks = LeakWatch::new(&lab.router, "wan0", octets(EXTERNAL)?)?;
    lab.host.ip(&format!(
        "address add {EXTERNAL}/24 dev enp3s0\n\
         link set enp3s0 up\n\
         route add default via {ROUTER}\n"
    ))
}

/// 1. traffic of all kinds; 2. the uplink is deleted and made again under its name and address, at once and after a second; 3. every
///    stream goes on, by the port that it had.
fn an_uplink_that_is_made_again_keeps_its_sessions(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let agent = lab.agent()?;
    let traffic = Traffic::start(&lab)?;
    let mut healed = Vec::new();
    for pause in [0, 1000] {
        make_uplink_again(&mut lab, Duration::from_millis(pause))?;
        healed.push(heals(&lab)?);
        traffic.moves(Duration::from_secs(10)).ok();
    }
    let report = traffic.finish()?;
    println!("{hook:?}: uplink made again: whole after {healed:?}: {report}");
    assert_spared(&report, Duration::from_secs(10))?;
    ensure!(lab.agent()? == agent, "another agent runs");
    lab.assert_sound_but_for_invalid_packets()
}

fn an_uplink_goes_down_and_up_under_traffic(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let traffic = Traffic::start(&lab)?;
    for pause in [0, 300] {
        lab.host.ip("link set enp3s0 down\n")?;
        thread::sleep(Duration::from_millis(pause));
        lab.host.ip(&format!("link set enp3s0 up\nroute replace default via {ROUTER}\n"))?;
        traffic.moves(Duration::from_secs(30))?;
    }
    let report = traffic.finish()?;
    println!("{hook:?}: uplink down and up: {report}");
    assert_spared(&report, Duration::from_secs(10))?;
    heals(&lab)?;
    lab.assert_sound_but_for_invalid_packets()
}

/// As `virsh net-destroy` and `net-start`: 1. traffic; 2. the guests' bridge goes and comes back; 3. every stream goes on.
fn a_bridge_that_is_made_again_keeps_its_sessions(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let traffic = Traffic::start(&lab)?;
    for pause in [0, 700] {
        lab.host.ip("link delete virbr0\n")?;
        thread::sleep(Duration::from_millis(pause));
        let mac = written(BRIDGE_MAC);
        lab.host.ip(&format!(
            "link add virbr0 address {mac} type bridge stp_state 0 forward_delay 0\n\
             address add {GATEWAY}/24 dev virbr0\n\
             link set virbr0 up\n\
             link set vnet1 master virbr0\n\
             link set vnet2 master virbr0\n"
        ))?;
        traffic.moves(Duration::from_secs(30))?;
        heals(&lab)?;
    }
    let report = traffic.finish()?;
    println!("{hook:?}: bridge made again: {report}");
    assert_spared(&report, Duration::from_secs(10))?;
    lab.assert_sound_but_for_invalid_packets()
}

/// 1. traffic of two guests; 2. twenty others start, each says something, and stop, names and ports of interfaces being used again; 3.
///    nobody has noticed, and nothing of them is left.
fn twenty_guests_start_and_stop_beside_traffic(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let traffic = Traffic::start(&lab)?;
    for round in 0..2 {
        for number in 0..10 {
            let guest = Namespace::new("passing")?;
            lab.host.ip(&format!(
                "link add pass{number} type veth peer name eth0 netns {}\n\
                 link set pass{number} master virbr0 up\n",
                guest.path()
            ))?;
            guest.ip(&format!(
                "link set lo up\n\
                 address add 192.168.122.{}/24 dev eth0\n\
                 link set eth0 up\n\
                 route add default via {GATEWAY}\n",
                100 + number
            ))?;
            client::ping(&guest, SERVER).with_context(|| format!("guest {number} of round {round}"))?;
            client::converse(&guest, SERVER_ECHO)?;
            // Half of them go as a crash does, with the namespace.
            if number % 2 == 0 {
                lab.host.ip(&format!("link delete pass{number}\n"))?;
            }
        }
        for number in (1..10).step_by(2) {
            lab.host.ip(&format!("link delete pass{number}\n")).ok();
        }
    }
    let report = traffic.finish()?;
    println!("{hook:?}: twenty guests came and went: {report}");
    assert_spared(&report, Duration::from_millis(200))?;
    ensure!(report.fresh.failed.is_empty(), "new connections failed: {:?}", report.fresh.failed);
    heals(&lab)?;
    let status = lab.vmnat_ok(&["status", "--json"])?;
    ensure!(!status.contains("pass0") && !status.contains("pass9"), "something is left of them: {status}");
    lab.assert_invariants()
}
