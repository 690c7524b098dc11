//! What never was vmnat's to translate: guests among themselves, guests and their host, the host itself.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use vmnat_tests::lab::{
    EXTERNAL, GATEWAY, GATEWAY_ECHO, Lab, SERVER, SERVER_ECHO, Setup, client, firewall::NFT_FORWARD_DROP,
    guest_address, vmnat::Hook,
};

on_both_hooks!(
    guests_reach_each_other,
    guests_reach_each_other_when_br_netfilter_and_the_firewall_forbid_it,
    guest_reaches_the_services_of_its_host,
    host_reaches_its_guests,
    host_reaches_the_world_beside_busy_guests,
    host_pings_with_the_identifier_of_a_guest,
);

fn talk_to_each_other(lab: &Lab) -> Result<()> {
    let there = format!("{}:7000", guest_address(2));
    let (one, own) = (lab.guest(1)?, guest_address(1));
    let seen_as = client::converse(one, &there)?;
    ensure!(seen_as.ip().to_string() == own, "guest 2 sees {seen_as} over TCP");
    let seen_as = client::ask(one, &there)?;
    ensure!(seen_as.ip().to_string() == own, "guest 2 sees {seen_as} over UDP");
    client::ping(one, &guest_address(2)).map(drop)
}

/// Guest 1 talks to guest 2, with its own address, before `up` and after.
fn guests_reach_each_other(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    talk_to_each_other(&lab)?;
    lab.up(hook)?;
    talk_to_each_other(&lab)?;
    lab.assert_invariants()
}

/// With `br_netfilter`, bridged packets meet FORWARD: 1. a dropping policy cuts the guests off from each other;
/// 2. vmnat brings them together.
fn guests_reach_each_other_when_br_netfilter_and_the_firewall_forbid_it(hook: Hook) -> Result<()> {
    let mut lab = Lab::with(Setup { br_netfilter: true, ..Setup::default() })?;
    lab.host.nft(NFT_FORWARD_DROP)?;
    let attempt = client::ping_as(lab.guest(1)?, 1, &guest_address(2), Duration::from_millis(300));
    client::must_fail("a ping among guests before vmnat", attempt)?;
    lab.up(hook)?;
    talk_to_each_other(&lab)?;
    lab.assert_invariants()
}

/// TCP, UDP and ping to the gateway's address, and TCP to the host's external one, with the guest's own address.
fn guest_reaches_the_services_of_its_host(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let guest = lab.guest(1)?;
    for seen_as in [
        client::converse(guest, GATEWAY_ECHO)?,
        client::ask(guest, GATEWAY_ECHO)?,
        client::converse(guest, &format!("{EXTERNAL}:7000"))?,
    ] {
        ensure!(seen_as.ip().to_string() == guest_address(1), "the host sees {seen_as}");
    }
    client::ping(guest, GATEWAY)?;
    lab.assert_invariants()
}

/// The host talks to both guests as their gateway.
fn host_reaches_its_guests(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    for number in [1, 2] {
        let there = format!("{}:7000", guest_address(number));
        client::converse(&lab.host, &there)?;
        client::ask(&lab.host, &there)?;
        client::ping(&lab.host, &guest_address(number))?;
    }
    lab.assert_invariants()
}

/// While two guests open connection after connection, the host opens fifty of its own to the same server.
fn host_reaches_the_world_beside_busy_guests(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let done = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let busy = |number| {
            let (lab, done) = (&lab, &done);
            scope.spawn(move || -> Result<bool> {
                let mut was_busy = false;
                while !done.load(Ordering::Relaxed) {
                    client::converse(lab.guest(number)?, SERVER_ECHO)?;
                    client::ask(lab.guest(number)?, SERVER_ECHO)?;
                    was_busy = true;
                }
                Ok(was_busy)
            })
        };
        let guests = [busy(1), busy(2)];
        let own = (0..50).try_for_each(|_| lab.assert_host_reaches_the_world());
        done.store(true, Ordering::Relaxed);
        for guest in guests {
            let was_busy = guest.join().map_err(|_| anyhow::anyhow!("a guest's thread panicked"))??;
            ensure!(was_busy, "the guest was not busy at all");
        }
        own
    })?;
    lab.assert_invariants()
}

/// 1. guest 1 pings the world with identifier 99; 2. so does the host, to the same server; 3. and guest 1 again.
fn host_pings_with_the_identifier_of_a_guest(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    client::ping_as(lab.guest(1)?, 99, SERVER, client::PATIENCE)?;
    client::ping_as(&lab.host, 99, SERVER, client::PATIENCE)?;
    client::ping_as(lab.guest(1)?, 99, SERVER, client::PATIENCE)?;
    lab.assert_invariants()
}
