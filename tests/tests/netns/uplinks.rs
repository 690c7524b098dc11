//! Uplinks that change, flap and come later; below, those of other kinds, several at once, and VPNs.

mod absent;
mod bridge;
mod kinds;
mod several;
mod vpn;
mod wireguard;

use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use vmnat_tests::lab::{
    EXTERNAL, Lab, ROUTER, SERVER, SERVER_ECHO, STRANGER,
    client::{self, Asker, Conversation},
    guest_address, octets,
    second_uplink::{SECOND_EXTERNAL, SECOND_ROUTER, SECOND_UPLINK},
    vmnat::Hook,
    wait_until,
    watch::LeakWatch,
};

on_both_hooks!(
    the_uplinks_address_may_change,
    the_uplink_may_go_down_and_up,
    a_further_uplink_serves_its_own_destinations,
);

/// As a new DHCP lease does: 1. the uplink loses its address and gets another; 2. guests are seen as that one, and a
///    port forward follows it.
fn the_uplinks_address_may_change(hook: Hook) -> Result<()> {
    const ANOTHER: &str = "203.0.113.77";
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    lab.vmnat_ok(&["dnat", "add", &format!("8080:{}:80/tcp", guest_address(1))])?;
    client::ask(lab.guest(1)?, SERVER_ECHO)?;
    lab.leaks.assert_none()?;
    lab.host.ip(&format!(
        "address delete {EXTERNAL}/24 dev enp3s0\n\
         address add {ANOTHER}/24 dev enp3s0\n\
         route replace default via {ROUTER}\n"
    ))?;
    let seen_as = |lab: &Lab| -> Result<SocketAddr> {
        Asker::new(lab.guest(1)?, 0)?.ask_within(SERVER_ECHO, 20, Duration::from_millis(300))
    };
    wait_until("guest 1 is seen as the new address", Duration::from_secs(10), || {
        Ok(seen_as(&lab).is_ok_and(|seen_as| seen_as.ip().to_string() == ANOTHER))
    })?;
    lab.leaks = LeakWatch::new(&lab.router, "wan0", octets(ANOTHER)?)?;
    client::converse(lab.guest(2)?, SERVER_ECHO)?;
    client::get(&lab.world, &format!("{ANOTHER}:8080"), "/")?;
    lab.assert_invariants()
}

/// 1. a conversation; 2. the uplink goes down, and up again; 3. the conversation goes on, and new ones open.
fn the_uplink_may_go_down_and_up(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let mut conversation = Conversation::open(lab.guest(1)?, SERVER_ECHO)?;
    let agent = lab.agent()?;
    conversation.exchange(10_000)?;
    lab.host.ip(&format!(
        "link set enp3s0 down\n\
         link set enp3s0 up\n\
         route replace default via {ROUTER}\n"
    ))?;
    wait_until("guest 1 is online again", Duration::from_secs(10), || {
        Ok(client::ping_as(lab.guest(1)?, 9, SERVER, Duration::from_millis(300)).is_ok())
    })?;
    conversation.exchange(10_000)?;
    client::converse(lab.guest(2)?, SERVER_ECHO)?;
    ensure!(lab.agent()? == agent, "another agent runs");
    lab.assert_invariants()
}

/// A second uplink leads to .99 alone: 1. before vmnat knows it, that route is not vmnat's and guests do not get there;
/// 2. after `uplink add` they do, as its address; 3. a conversation over the first uplink is not touched.
fn a_further_uplink_serves_its_own_destinations(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    let second = lab.lay_second_uplink()?;
    lab.host.ip(&format!("route add {STRANGER}/32 via {SECOND_ROUTER}\n"))?;
    lab.up(hook)?;
    let mut conversation = Conversation::open(lab.guest(1)?, SERVER_ECHO)?;
    let attempt = client::ping_as(lab.guest(1)?, 1, STRANGER, Duration::from_millis(300));
    client::must_fail("a ping by an uplink that is not managed", attempt)?;
    lab.vmnat_ok(&["uplink", "add", SECOND_UPLINK])?;
    let seen_as = client::ask(lab.guest(1)?, &format!("{STRANGER}:7000"))?;
    ensure!(seen_as.ip().to_string() == SECOND_EXTERNAL, "seen as {seen_as} by the second uplink");
    let seen_as = client::ask(lab.guest(1)?, SERVER_ECHO)?;
    ensure!(seen_as.ip().to_string() == EXTERNAL, "seen as {seen_as} by the first uplink");
    conversation.exchange(100_000)?;
    lab.vmnat_ok(&["uplink", "rm", SECOND_UPLINK])?;
    let attempt = client::ping_as(lab.guest(1)?, 2, STRANGER, Duration::from_millis(300));
    client::must_fail("a ping by an uplink that was removed", attempt)?;
    conversation.exchange(100_000)?;
    second.assert_none()?;
    lab.assert_invariants()
}
