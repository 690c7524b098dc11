//! From `up` to `down`, and what goes wrong in between.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use vmnat_tests::lab::{
    EXTERNAL, GATEWAY, GATEWAY_ECHO, Lab, SERVER, SERVER_ECHO, Setup,
    client::{self, Asker, Conversation},
    firewall::NFT_DROPS,
    frame::{Packet, Tap},
    guest_address,
    namespace::Namespace,
    snapshot::Snapshot,
    vmnat::Hook,
    wait_until,
};

on_both_hooks!(
    up_twice_changes_nothing_and_says_so,
    down_leaves_the_host_as_it_was_found,
    down_restores_after_the_agent_was_killed,
    down_spares_what_an_operator_attached,
    guests_stay_online_when_the_agent_is_killed_under_traffic,
    up_again_after_a_kill_keeps_conversations,
    a_port_added_after_up_is_served,
    silent_flows_expire_and_free_their_port,
    a_further_bridge_does_not_touch_live_flows,
    a_recreated_bridge_is_attached_again,
    nothing_leaks_without_an_agent,
    nothing_leaks_while_up_and_down_run,
    listings_are_versioned_json,
);

/// 1. up; 2. a conversation opens; 3. up again succeeds with the same agent and the conversation goes on.
fn up_twice_changes_nothing_and_says_so(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let agent = lab.agent()?;
    let mut conversation = Conversation::open(lab.guest(1)?, SERVER_ECHO)?;
    conversation.exchange(10_000)?;
    let before = Snapshot::take(&lab.host)?;
    let printed = lab.up(hook)?;
    ensure!(!printed.trim().is_empty(), "the second `up` says nothing");
    Snapshot::take(&lab.host)?.assert_same_as(&before)?;
    ensure!(lab.agent()? == agent, "another agent runs");
    conversation.exchange(10_000)?;
    client::converse(lab.guest(2)?, SERVER_ECHO)?;
    lab.assert_invariants()
}

/// Sysctls, qdiscs, filters, links, addresses, routes, rules, nftables and bpffs, before `up` and after `down`.
fn down_leaves_the_host_as_it_was_found(hook: Hook) -> Result<()> {
    let mut lab = Lab::with(Setup { rp_filter: 1, br_netfilter: true, ..Setup::default() })?;
    lab.host.nft(NFT_DROPS)?;
    let before = Snapshot::take(&lab.host)?;
    lab.up(hook)?;
    lab.vmnat_ok(&["dnat", "add", &format!("8080:{}:80/tcp", guest_address(1))])?;
    client::converse(lab.guest(1)?, SERVER_ECHO)?;
    let agent = lab.agent()?;
    let printed = lab.vmnat_ok(&["down"])?;
    ensure!(!printed.trim().is_empty(), "`down` says nothing");
    lab.wait_for_the_end_of(agent)?;
    Snapshot::take(&lab.host)?.assert_same_as(&before)?;
    let attempt = client::ping_as(lab.guest(1)?, 1, SERVER, Duration::from_millis(300));
    client::must_fail("a ping after `down`", attempt)?;
    lab.assert_invariants()
}

fn down_restores_after_the_agent_was_killed(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    let before = Snapshot::take(&lab.host)?;
    lab.up(hook)?;
    lab.kill_agent()?;
    lab.vmnat_ok(&["down"])?;
    Snapshot::take(&lab.host)?.assert_same_as(&before)?;
    lab.assert_invariants()
}

/// 1. an operator has a clsact qdisc and a filter of their own on the uplink and on a port; 2. up and down leave both.
fn down_spares_what_an_operator_attached(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    for interface in ["enp3s0", "vnet1"] {
        lab.host.exec(&["tc", "qdisc", "add", "dev", interface, "clsact"])?;
        // Classic BPF that matches nothing: what stands behind it goes on.
        let filter = ["ingress", "prio", "77", "bpf", "bytecode", "1,6 0 0 0", "classid", "0:1"];
        lab.host.exec(&[&["tc", "filter", "add", "dev", interface], &filter[..]].concat())?;
    }
    let before = Snapshot::take(&lab.host)?;
    lab.up(hook)?;
    client::converse(lab.guest(1)?, SERVER_ECHO)?;
    lab.vmnat_ok(&["down"])?;
    Snapshot::take(&lab.host)?.assert_same_as(&before)?;
    lab.assert_invariants()
}

/// 1. guest 1 exchanges bytes without pause; 2. the agent is killed; 3. the conversation goes on, and both guests open
///    new ones by TCP, UDP and ping.
fn guests_stay_online_when_the_agent_is_killed_under_traffic(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let done = AtomicBool::new(false);
    let mut conversation = Conversation::open(lab.guest(1)?, SERVER_ECHO)?;
    thread::scope(|scope| -> Result<()> {
        let traffic = scope.spawn(|| -> Result<()> {
            while !done.load(Ordering::Relaxed) {
                conversation.exchange(100_000)?;
            }
            conversation.close()
        });
        let murder = || -> Result<()> {
            thread::sleep(Duration::from_millis(200));
            lab.kill_agent()?;
            for _ in 0..10 {
                for guest in &lab.guests {
                    client::converse(guest, SERVER_ECHO)?;
                    client::ask(guest, SERVER_ECHO)?;
                    client::ping(guest, SERVER)?;
                }
            }
            Ok(())
        };
        let outcome = murder();
        done.store(true, Ordering::Relaxed);
        traffic
            .join()
            .map_err(|_| anyhow::anyhow!("the traffic panicked"))?
            .context("the live conversation")?;
        outcome
    })?;
    lab.assert_invariants()
}

/// 1. a conversation; 2. the agent is killed; 3. `up` starts another; 4. the conversation and its external port live on.
fn up_again_after_a_kill_keeps_conversations(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let asker = Asker::new(lab.guest(2)?, 20_001)?;
    let seen_as = asker.ask(SERVER_ECHO)?;
    let mut conversation = Conversation::open(lab.guest(1)?, SERVER_ECHO)?;
    let first = lab.agent()?;
    lab.kill_agent()?;
    conversation.exchange(10_000)?;
    lab.up(hook)?;
    ensure!(lab.agent()? != first, "the killed agent's process id is still recorded");
    conversation.exchange(10_000)?;
    ensure!(asker.ask(SERVER_ECHO)? == seen_as, "the external port has moved");
    lab.assert_invariants()
}

/// 1. up; 2. guest 3 is plugged in; 3. it reaches the world at once, and the agent attaches its port.
fn a_port_added_after_up_is_served(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.host.nft(NFT_DROPS)?;
    lab.up(hook)?;
    let number = lab.add_guest()?;
    client::converse(lab.guest(number)?, SERVER_ECHO)?;
    let port = format!("vnet{number}");
    wait_until("the new port is attached", Duration::from_secs(5), || {
        Ok(lab.vmnat_ok(&["status", "--json"])?.contains(&port))
    })?;
    client::ask(lab.guest(number)?, SERVER_ECHO)?;
    lab.assert_invariants()
}

/// With timeouts of two seconds: 1. guest 1 asks from port 20,000 and has external port E; 2. all falls silent, the
///    flows go; 3. after the rest of a freed port, guest 2 may have E.
fn silent_flows_expire_and_free_their_port(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    let names = ["udp_unreplied", "udp_replied", "icmp", "mapping_rest"];
    let values = names.map(|name| format!("{name}=2"));
    let mut arguments = vec!["--reap-interval", "1"];
    for value in &values {
        arguments.extend(["--timeout", value.as_str()]);
    }
    lab.up_with(hook, &arguments)?;
    let first = Asker::new(lab.guest(1)?, 20_000)?.ask(SERVER_ECHO)?;
    client::ping(lab.guest(1)?, SERVER)?;
    ensure!(lab.flow_count()? > 0, "no flow is listed");
    let second = Asker::new(lab.guest(2)?, 20_000)?;
    let elsewhere = second.ask(SERVER_ECHO)?;
    ensure!(elsewhere != first, "guest 2 got the port of guest 1: {first}");
    drop(second);
    wait_until("silent flows are gone", Duration::from_secs(12), || Ok(lab.flow_count()? == 0))?;
    wait_until("guest 2 may have the freed port", Duration::from_secs(12), || {
        thread::sleep(Duration::from_millis(3500));
        Ok(Asker::new(lab.guest(2)?, 20_000)?.ask(SERVER_ECHO)? == first)
    })?;
    lab.assert_invariants()
}

fn second_bridge(lab: &Lab) -> Result<Namespace> {
    let guest = Namespace::new("other-guest")?;
    lab.host.ip(&format!(
        "link add virbr1 type bridge stp_state 0 forward_delay 0\n\
         address add 192.168.150.1/24 dev virbr1\n\
         link set virbr1 up\n\
         link add other1 type veth peer name eth0 netns {}\n\
         link set other1 master virbr1 up\n",
        guest.path()
    ))?;
    guest.ip("link set lo up\n\
         address add 192.168.150.10/24 dev eth0\n\
         link set eth0 up\n\
         route add default via 192.168.150.1\n")?;
    Ok(guest)
}

/// 1. a conversation over virbr0; 2. `up --bridge virbr1`; 3. the conversation goes on, a guest of virbr1 is online,
///    and the two networks are closed to each other.
fn a_further_bridge_does_not_touch_live_flows(hook: Hook) -> Result<()> {
    let mut lab = Lab::with(Setup { ip_forward: true, ..Setup::default() })?;
    lab.up(hook)?;
    let mut conversation = Conversation::open(lab.guest(1)?, SERVER_ECHO)?;
    let asker = Asker::new(lab.guest(2)?, 20_002)?;
    let seen_as = asker.ask(SERVER_ECHO)?;
    let other = second_bridge(&lab)?;
    lab.vmnat_ok(&["up", "--bridge", "virbr1", "--hook", hook.name()])?;
    conversation.exchange(100_000)?;
    ensure!(asker.ask(SERVER_ECHO)? == seen_as, "guest 2 has moved");
    let from_other = client::converse(&other, SERVER_ECHO)?;
    ensure!(from_other.ip().to_string() == EXTERNAL, "the further guest is seen as {from_other}");
    let across = client::ping_as(&other, 5, &guest_address(1), Duration::from_millis(300));
    client::must_fail("a ping from one managed network to another", across)?;
    lab.assert_invariants()
}

/// As `virsh net-destroy` and `net-start` do: 1. the bridge goes; 2. it comes back, with its ports; 3. the same agent
///    puts the guests online again.
fn a_recreated_bridge_is_attached_again(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.host.nft(NFT_DROPS)?;
    lab.up(hook)?;
    client::converse(lab.guest(1)?, SERVER_ECHO)?;
    let agent = lab.agent()?;
    lab.host.ip("link delete virbr0\n")?;
    thread::sleep(Duration::from_millis(300));
    lab.host.ip(&format!(
        "link add virbr0 type bridge stp_state 0 forward_delay 0\n\
         address add {GATEWAY}/24 dev virbr0\n\
         link set virbr0 up\n\
         link set vnet1 master virbr0\n\
         link set vnet2 master virbr0\n"
    ))?;
    // Guests know the old bridge's MAC; a guest finds out by itself, here at once.
    for guest in &lab.guests {
        guest.exec(&["ip", "neigh", "flush", "all"])?;
    }
    wait_until("guest 1 is online again", Duration::from_secs(10), || {
        Ok(client::ping_as(lab.guest(1)?, 9, SERVER, Duration::from_millis(300)).is_ok())
    })?;
    client::converse(lab.guest(1)?, SERVER_ECHO)?;
    client::converse(lab.guest(2)?, SERVER_ECHO)?;
    ensure!(lab.agent()? == agent, "another agent runs");
    lab.assert_invariants()
}

/// Fail closed: with the agent dead and forwarding open in the kernel, 200 odd packets of a guest (protocols, flags and
///    fragments that vmnat does not translate) leave nothing behind the uplink with the guest's source.
fn nothing_leaks_without_an_agent(hook: Hook) -> Result<()> {
    let mut lab = Lab::with(Setup { ip_forward: true, ..Setup::default() })?;
    lab.up(hook)?;
    lab.kill_agent()?;
    let wire = Tap::open(lab.guest(1)?, "eth0")?;
    let ends = lab.outbound_ends(1, SERVER)?;
    for protocol in [2, 4, 33, 41, 47, 50, 51, 132, 136, 253, 0] {
        // DCCP and UDP-Lite have a checksum that the world adds up.
        let checksum_at = [33, 136].contains(&protocol).then_some(6);
        wire.send(&Packet::new(ends, protocol, vec![0; 64], checksum_at).bytes())?;
    }
    for flags in 0..=0x3f {
        wire.send(&Packet::tcp(ends, 30_000 + u16::from(flags), 7000, 1, flags).bytes())?;
    }
    for kind in 0..=40 {
        wire.send(&Packet::new(ends, 1, vec![kind, 0, 0, 0, 0, 1, 0, 1, 1, 2, 3, 4], Some(2)).bytes())?;
    }
    for fragment in [0x2000, 0x2001, 0x0001, 0x1fff, 0x8000] {
        wire.send(&Packet { fragment, ..Packet::udp(ends, 30_000, 7000, &[7; 64]) }.bytes())?;
    }
    thread::sleep(Duration::from_millis(300));
    lab.leaks.assert_none()?;
    client::converse(lab.guest(1)?, SERVER_ECHO)?;
    lab.assert_sound_but_for_invalid_packets()
}

/// Where the kernel did not forward before, it must not for a moment: a guest sends a datagram each millisecond while
/// vmnat goes up and down five times.
fn nothing_leaks_while_up_and_down_run(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    client::ask(lab.guest(1)?, GATEWAY_ECHO)?;
    lab.beside_a_busy_guest(|| {
        (0..5).try_for_each(|_| {
            lab.up(hook)?;
            lab.vmnat_ok(&["down"]).map(drop)
        })
    })?;
    lab.up(hook)?;
    client::converse(lab.guest(1)?, SERVER_ECHO)?;
    lab.assert_sound_but_for_invalid_packets()
}

fn listings_are_versioned_json(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    client::converse(lab.guest(1)?, SERVER_ECHO)?;
    for listing in [
        &["status"][..],
        &["flows"],
        &["counters"],
        &["leases"],
        &["dnat", "list"],
        &["network", "list"],
        &["uplink", "list"],
    ] {
        lab.rows(listing).with_context(|| listing.join(" "))?;
        lab.vmnat_ok(listing)?;
    }
    ensure!(lab.counter("translated_outbound")? > 0, "translated_outbound has not moved");
    ensure!(lab.counter("translated_inbound")? > 0, "translated_inbound has not moved");
    let flows = lab.rows(&["flows"])?;
    ensure!(format!("{flows:?}").contains(&guest_address(1)), "guest 1's flow is not listed: {flows:?}");
    lab.assert_invariants()
}
