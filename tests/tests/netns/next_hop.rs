//! The router behind the uplink, whose MAC the programs remember: it may change while no agent runs.

use std::time::{Duration, Instant};

use anyhow::Result;
use vmnat_tests::lab::{
    EXTERNAL, Lab, SERVER_ECHO, Setup, UPLINK_MAC,
    client::{Asker, Conversation},
    vmnat::Hook,
    wait_until, written,
};

const OTHER_ROUTER_MAC: [u8; 6] = [0x52, 0x54, 0, 0xee, 0, 9];

/// How long a neighbour may take to be found anew, on a machine that has other work.
const PATIENCE: Duration = Duration::from_secs(30);

/// A lab in which a guest has just talked to the world, and whose agent is dead. The host doubts its neighbours soon.
fn without_agent() -> Result<(Lab, Asker, Conversation)> {
    let lab = Lab::with(Setup { guests: 1, ..Setup::default() })?;
    for (setting, value) in [
        ("base_reachable_time_ms", "500"),
        ("delay_first_probe_time", "1"),
        ("retrans_time_ms", "100"),
        ("ucast_solicit", "2"),
    ] {
        lab.host.set_sysctl(&format!("net/ipv4/neigh/enp3s0/{setting}"), value)?;
    }
    lab.host.ip("neighbour flush dev enp3s0\n")?;
    lab.up(Hook::Tcx)?;
    let asker = Asker::new(lab.guest(1)?, 0)?;
    let mut conversation = Conversation::open(lab.guest(1)?, SERVER_ECHO)?;
    lab.kill_agent()?;
    // Longer than the programs wait for a router that was not resolved at the first packet.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        asker.ask(SERVER_ECHO)?;
        conversation.exchange(10_000)?;
    }
    Ok((lab, asker, conversation))
}

fn talks_again(asker: &Asker) -> Result<()> {
    wait_until("the guest reaches the world again", PATIENCE, || {
        Ok(asker.ask_within(SERVER_ECHO, 200, Duration::from_millis(100)).is_ok())
    })
}

/// As a VRRP router does that takes over. 1. a guest talks to the world, and the agent is killed; 2. the router gets another MAC and says
///    so; 3. the guest's conversations go on, and none of its packets goes to the old one any more.
#[test]
fn a_router_that_announces_another_mac_is_followed_without_an_agent() -> Result<()> {
    let (mut lab, asker, mut conversation) = without_agent()?;
    lab.router.set_sysctl("net/ipv4/conf/wan0/arp_notify", "1")?;
    lab.router.ip(&format!("link set wan0 address {}\n", written(OTHER_ROUTER_MAC)))?;
    talks_again(&asker)?;
    conversation.exchange(100_000)?;
    conversation.close()?;
    lab.assert_invariants()
}

/// 1. a guest talks to the world, and the agent is killed; 2. the router gets another MAC and keeps it to itself: it neither announces
///    it nor asks for the host's; 3. the kernel has kept its entry under probe, finds it wrong, asks anew, and the guest's
///    conversations go on.
#[test]
fn a_router_that_has_another_mac_in_silence_is_found_without_an_agent() -> Result<()> {
    let (mut lab, asker, mut conversation) = without_agent()?;
    lab.router.set_sysctl("net/ipv4/conf/wan0/arp_notify", "0")?;
    lab.router.ip(&format!(
        "link set wan0 address {}\n\
         neighbour replace {EXTERNAL} lladdr {} dev wan0 nud permanent\n",
        written(OTHER_ROUTER_MAC),
        written(UPLINK_MAC),
    ))?;
    talks_again(&asker)?;
    conversation.exchange(100_000)?;
    conversation.close()?;
    lab.assert_invariants()
}
