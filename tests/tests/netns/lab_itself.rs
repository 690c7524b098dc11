//! The lab without vmnat: its own links work, and its watchers catch what they are there to catch.

use std::time::Duration;

use anyhow::{Result, ensure};
use vmnat_tests::lab::{
    EXTERNAL, GATEWAY, GATEWAY_ECHO, Lab, SERVER, SERVER_ECHO, Setup, client,
    firewall::{self, NFT_DROPS, NFT_MASQUERADE},
    frame::{Packet, Tap},
    wait_until, watch,
};

#[test]
fn guests_are_cut_off_without_a_nat() -> Result<()> {
    let mut lab = Lab::with(Setup { ip_forward: true, ..Setup::default() })?;
    let guest = lab.guest(1)?;
    client::must_fail("a ping", client::ping_as(guest, 1, SERVER, Duration::from_millis(300)))?;
    client::converse(guest, GATEWAY_ECHO)?;
    ensure!(lab.leaks.assert_none().is_err(), "the watch at the router missed the guest's own source");
    lab.leaks.forget()?;
    lab.assert_invariants()
}

#[test]
fn masquerade_of_netfilter_puts_guests_online_and_is_counted() -> Result<()> {
    let mut lab = Lab::with(Setup { ip_forward: true, ..Setup::default() })?;
    lab.host.nft(NFT_MASQUERADE)?;
    firewall::count_everywhere(&lab.host)?;
    let seen_as = client::converse(lab.guest(1)?, SERVER_ECHO)?;
    ensure!(seen_as.ip().to_string() == EXTERNAL, "seen as {seen_as}");
    ensure!(firewall::counted(&lab.host)? > 10, "the audit counts nothing");
    lab.assert_invariants()
}

#[test]
fn dropping_firewalls_cut_masquerade_off_and_count_it() -> Result<()> {
    let mut lab = Lab::with(Setup { ip_forward: true, ..Setup::default() })?;
    lab.host.nft(NFT_MASQUERADE)?;
    lab.host.nft(NFT_DROPS)?;
    firewall::legacy_drops(&lab.host)?;
    let attempt = client::ping_as(lab.guest(1)?, 1, SERVER, Duration::from_millis(300));
    client::must_fail("a ping through a dropping firewall", attempt)?;
    ensure!(firewall::legacy_counted(&lab.host)? > 0, "iptables-legacy counts nothing");
    lab.assert_invariants()
}

#[test]
fn a_damaged_checksum_is_noticed() -> Result<()> {
    let lab = Lab::new()?;
    let guest = Tap::open(lab.guest(1)?, "eth0")?;
    let mut packet = Packet::udp(lab.outbound_ends(1, GATEWAY)?, 9, 7000, b"damaged");
    packet.checksum_at = None;
    packet.body.splice(6..8, [0xde, 0xad]);
    guest.send(&packet.bytes())?;
    let noticed = || Ok(!watch::damaged_packets(&lab.host).is_empty());
    wait_until("the host counts a damaged datagram", Duration::from_secs(2), noticed)
}
