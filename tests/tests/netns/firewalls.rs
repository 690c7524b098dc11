//! The host's firewall and settings forbid forwarding, and guests are online all the same.

use std::time::Duration;

use anyhow::{Result, ensure};
use vmnat_tests::lab::{
    EXTERNAL, Lab, SERVER, SERVER_ECHO, SERVER_HTTP, Setup,
    client::{self, Asker},
    firewall::{self, NFT_DROPS, NFT_MASQUERADE},
    guest_address,
    vmnat::Hook,
    wait_until,
};

on_both_hooks!(
    both_firewalls_on_drop_do_not_see_translated_packets,
    br_netfilter_and_both_firewalls_do_not_see_translated_packets,
    guests_are_online_with_ip_forward_off_and_it_stays_off,
    guests_are_online_with_every_rp_filter,
    guests_are_online_with_br_netfilter_on,
    a_rule_of_the_bridge_for_one_port_is_obeyed,
);

fn traffic_of_all_kinds(lab: &Lab) -> Result<()> {
    for guest in &lab.guests {
        client::ping(guest, SERVER)?;
        client::converse(guest, SERVER_ECHO)?;
        client::ask(guest, SERVER_ECHO)?;
        client::download(guest, SERVER_HTTP, 1_000_000)?;
    }
    client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/").map(drop)
}

/// 1. nftables and iptables-legacy both drop FORWARD and INPUT, both count in every hook, and a masquerade rule with
///    `ip_forward` leaves the firewall as the only obstacle: guests are cut off, and the counters have seen it.
/// 2. After `up`, guests do everything, the world comes in by a port forward, and no counter moves.
fn unseen_by_both_firewalls(hook: Hook, br_netfilter: bool) -> Result<()> {
    let mut lab = Lab::with(Setup { ip_forward: true, br_netfilter, ..Setup::default() })?;
    firewall::count_everywhere(&lab.host)?;
    lab.host.nft(NFT_MASQUERADE)?;
    lab.host.nft(NFT_DROPS)?;
    firewall::legacy_drops(&lab.host)?;
    for guest in &lab.guests {
        let attempt = client::ping_as(guest, 1, SERVER, Duration::from_millis(300));
        client::must_fail("a ping before vmnat", attempt)?;
    }
    ensure!(firewall::counted(&lab.host)? > 0, "nftables counts nothing even without vmnat");
    ensure!(firewall::legacy_counted(&lab.host)? > 0, "iptables-legacy counts nothing even without vmnat");

    lab.up(hook)?;
    lab.vmnat_ok(&["dnat", "add", &format!("8080:{}:80/tcp", guest_address(1))])?;
    let before = (firewall::counted(&lab.host)?, firewall::legacy_counted(&lab.host)?);
    traffic_of_all_kinds(&lab)?;
    let after = (firewall::counted(&lab.host)?, firewall::legacy_counted(&lab.host)?);
    ensure!(
        before == after,
        "netfilter has seen translated packets: (nft, legacy) {before:?} became {after:?}"
    );
    lab.assert_invariants()
}

fn both_firewalls_on_drop_do_not_see_translated_packets(hook: Hook) -> Result<()> {
    unseen_by_both_firewalls(hook, false)
}

/// `br_netfilter` shows IP hooks the packets of the bridge's ports, before the bridge's own tc hook.
fn br_netfilter_and_both_firewalls_do_not_see_translated_packets(hook: Hook) -> Result<()> {
    unseen_by_both_firewalls(hook, true)
}

fn guests_are_online_with_ip_forward_off_and_it_stays_off(hook: Hook) -> Result<()> {
    let mut lab = Lab::with(Setup { ip_forward: false, ..Setup::default() })?;
    lab.up(hook)?;
    client::converse(lab.guest(1)?, SERVER_ECHO)?;
    client::ask(lab.guest(2)?, SERVER_ECHO)?;
    let forward = lab.host.sysctl("net/ipv4/ip_forward")?;
    ensure!(forward == "0", "ip_forward has become {forward}");
    lab.assert_invariants()
}

fn guests_are_online_with_every_rp_filter(hook: Hook) -> Result<()> {
    for rp_filter in [0, 1, 2] {
        let mut lab = Lab::with(Setup { rp_filter, ..Setup::default() })?;
        lab.up(hook)?;
        client::ping(lab.guest(1)?, SERVER)?;
        client::converse(lab.guest(1)?, SERVER_ECHO)?;
        client::ask(lab.guest(2)?, SERVER_ECHO)?;
        lab.assert_invariants()?;
    }
    Ok(())
}

/// 1. online with `br_netfilter` on; 2. and when it is turned off and on again under vmnat.
fn guests_are_online_with_br_netfilter_on(hook: Hook) -> Result<()> {
    let mut lab = Lab::with(Setup { br_netfilter: true, ..Setup::default() })?;
    lab.up(hook)?;
    for on in [true, false, true] {
        lab.set_br_netfilter(on)?;
        client::converse(lab.guest(1)?, SERVER_ECHO)?;
        client::ask(lab.guest(2)?, SERVER_ECHO)?;
    }
    lab.assert_invariants()
}

/// What an operator (or ebtables, or libvirt's filters) says of one port at the bridge stands ahead of vmnat: 1. guest 2's
///    port may send no UDP; 2. after `up`, its TCP is translated and its UDP is not; guest 1 has both; 3. the rule goes,
///    and guest 2 has both.
fn a_rule_of_the_bridge_for_one_port_is_obeyed(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.host.nft(
        "table bridge operator {
           chain pre {
             type filter hook prerouting priority -300;
             iifname vnet2 ip protocol udp drop
           }
         }
        ",
    )?;
    lab.up(hook)?;
    let udp_of = |number: usize| -> Result<()> {
        let asker = Asker::new(lab.guest(number)?, 0)?;
        asker.ask_within(SERVER_ECHO, 100, Duration::from_millis(300)).map(drop)
    };
    udp_of(1)?;
    client::converse(lab.guest(1)?, SERVER_ECHO)?;
    client::converse(lab.guest(2)?, SERVER_ECHO)?;
    client::must_fail("UDP that a rule of the bridge drops", udp_of(2))?;
    lab.host.nft("delete table bridge operator\n")?;
    wait_until("guest 2 has UDP", Duration::from_secs(5), || Ok(udp_of(2).is_ok()))?;
    client::converse(lab.guest(2)?, SERVER_ECHO)?;
    lab.assert_invariants()
}
