//! The world reaches a guest through a port forward.

mod files;
mod keeping;
mod leases;
mod options;
mod refusals;
mod traffic;

use anyhow::{Result, ensure};
use vmnat_tests::lab::{
    EXTERNAL, Lab, SERVER, SERVER_ECHO,
    client::{self, Asker, Conversation},
    firewall::NFT_DROPS,
    guest_address,
    vmnat::Hook,
};

on_both_hooks!(
    world_reaches_the_guest_and_keeps_its_address,
    datagrams_reach_the_guest_and_answers_come_from_the_forward,
    a_removed_forward_leads_nowhere,
    a_taken_port_is_refused,
    forwards_are_listed,
    the_agent_may_be_dead,
);

fn http_forward() -> String {
    format!("8080:{}:80/tcp", guest_address(1))
}

fn echo_forward() -> String {
    format!("9000:{}:7000/tcp", guest_address(1))
}

/// 1. forward 8080 to guest 1's HTTP and 9000 to its echo; 2. the world calls both, under dropping policies; the
///    guest sees the caller itself; 3. the guest goes on reaching the world.
fn world_reaches_the_guest_and_keeps_its_address(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.host.nft(NFT_DROPS)?;
    lab.up(hook)?;
    lab.vmnat_ok(&["dnat", "add", &http_forward()])?;
    lab.vmnat_ok(&["dnat", "add", &echo_forward()])?;
    client::download(&lab.world, &format!("{EXTERNAL}:8080"), 2_000_000)?;
    let mut conversation = Conversation::open(&lab.world, &format!("{EXTERNAL}:9000"))?;
    ensure!(conversation.seen_as == conversation.local()?, "the guest sees {}", conversation.seen_as);
    ensure!(conversation.seen_as.ip().to_string() == SERVER, "the guest sees {}", conversation.seen_as);
    conversation.exchange(1_000_000)?;
    conversation.close()?;
    client::converse(lab.guest(1)?, SERVER_ECHO)?;
    lab.assert_invariants()
}

/// The asker in the world accepts an answer from the forward's own address and port alone.
fn datagrams_reach_the_guest_and_answers_come_from_the_forward(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    lab.vmnat_ok(&["dnat", "add", &format!("5353:{}:7000/udp", guest_address(2))])?;
    let asker = Asker::new(&lab.world, 0)?;
    for _ in 0..3 {
        let seen_as = asker.ask(&format!("{EXTERNAL}:5353"))?;
        ensure!(seen_as.ip().to_string() == SERVER, "the guest sees {seen_as}");
    }
    lab.assert_invariants()
}

/// 1. reachable; 2. `dnat rm`; 3. a connection attempt fails.
fn a_removed_forward_leads_nowhere(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    lab.vmnat_ok(&["dnat", "add", &http_forward()])?;
    let there = format!("{EXTERNAL}:8080");
    client::get(&lab.world, &there, "/")?;
    lab.vmnat_ok(&["dnat", "rm", &http_forward()])?;
    client::must_fail("a removed port forward", client::get(&lab.world, &there, "/"))?;
    ensure!(lab.rows(&["dnat", "list"])?.is_empty(), "it is still listed");
    lab.assert_invariants()
}

/// Refused: the port of another forward, for another guest and for the same; and the port that a host's server
/// listens on. What is there goes on.
fn a_taken_port_is_refused(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    lab.vmnat_ok(&["dnat", "add", &http_forward()])?;
    lab.vmnat_refused(&["dnat", "add", &format!("8080:{}:80/tcp", guest_address(2))])?;
    lab.vmnat_refused(&["dnat", "add", &format!("7000:{}:80/tcp", guest_address(2))])?;
    // The other protocol is another port.
    lab.vmnat_ok(&["dnat", "add", &format!("8080:{}:7000/udp", guest_address(2))])?;
    client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/")?;
    client::converse(&lab.world, &format!("{EXTERNAL}:7000"))?;
    client::ask(&lab.world, &format!("{EXTERNAL}:8080"))?;
    lab.assert_invariants()
}

fn forwards_are_listed(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    lab.vmnat_ok(&["dnat", "add", &http_forward()])?;
    lab.vmnat_ok(&["dnat", "add", &format!("5353:{}:7000/udp", guest_address(2))])?;
    let rows = lab.rows(&["dnat", "list"])?;
    ensure!(rows.len() == 2, "{rows:?}");
    let printed = lab.vmnat_ok(&["dnat", "list"])?;
    for word in ["8080", "5353", &guest_address(1), &guest_address(2), "tcp", "udp"] {
        ensure!(printed.contains(word), "no {word} in {printed}");
    }
    lab.assert_invariants()
}

/// 1. a forward; 2. the agent is killed; 3. new connections through the forward still arrive.
fn the_agent_may_be_dead(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    lab.vmnat_ok(&["dnat", "add", &http_forward()])?;
    lab.kill_agent()?;
    client::download(&lab.world, &format!("{EXTERNAL}:8080"), 100_000)?;
    lab.assert_invariants()
}
