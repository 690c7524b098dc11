//! Several uplinks at once: each flow goes by the host's route at its opening, and what the world opens is answered by the
//! uplink that it came in by.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use vmnat_tests::lab::{
    EXTERNAL, Lab, ROUTER, SERVER, SERVER_ECHO, STRANGER, Setup,
    client::{self, Asker, Conversation},
    firewall::NFT_DROPS,
    guest_address, octets,
    second_uplink::{SECOND_EXTERNAL, SECOND_ROUTER},
    vmnat::Hook,
    wait_until,
    watch::LeakWatch,
};
use vmnat_user::{paths::Instance, tables::Tables};

on_both_hooks!(
    policy_rules_choose_the_uplink_by_source_and_by_destination,
    the_route_of_the_lower_metric_wins_and_the_other_takes_over,
    a_route_that_goes_with_its_link_moves_its_flows,
    a_route_of_several_ways_keeps_each_flow_on_its_own,
    a_port_forward_is_answered_by_the_uplink_that_it_was_called_by,
    a_forward_is_not_answered_where_the_route_is_forbidden,
    guests_are_seen_as_the_address_that_was_chosen,
);

const PATIENCE: Duration = Duration::from_secs(10);
/// In which the agent hears of a change.
const MOMENT: Duration = Duration::from_millis(300);

/// Both uplinks are vmnat's; the default route leaves by the first.
struct Two {
    lab: Lab,
    second: LeakWatch,
}

impl Two {
    fn new(hook: Hook, setup: Setup) -> Result<Self> {
        let lab = Lab::with(setup)?;
        let second = lab.lay_second_uplink()?;
        lab.host.set_sysctl("net/ipv4/conf/enp4s0/rp_filter", &setup.rp_filter.to_string())?;
        lab.host.nft(NFT_DROPS)?;
        lab.up_with(hook, &["--uplink", "enp4s0"])?;
        Ok(Self { lab, second })
    }

    /// The address as which a guest is seen by a server.
    fn seen(&self, guest: usize, server: &str) -> Result<String> {
        let seen_as = client::converse(self.lab.guest(guest)?, &format!("{server}:7000"))?;
        let over_udp = client::ask(self.lab.guest(guest)?, &format!("{server}:7000"))?;
        ensure!(over_udp.ip() == seen_as.ip(), "{seen_as} over TCP, {over_udp} over UDP");
        Ok(seen_as.ip().to_string())
    }

    fn expect(&self, guest: usize, server: &str, address: &str) -> Result<()> {
        let seen = self.seen(guest, server)?;
        ensure!(seen == address, "guest {guest} is seen as {seen} by {server}, not as {address}");
        Ok(())
    }

    /// Changes the host's routes, and waits until flows have been told to look at theirs again.
    fn reroute(&self, batch: &str) -> Result<()> {
        let generation = || -> Result<u32> { Ok(Tables::open(&Instance::default())?.settings()?.generation) };
        // So that nothing but this is a reason: what the agent has heard of neighbours before, it has acted on.
        thread::sleep(Duration::from_millis(2500));
        let before = generation()?;
        self.lab.host.ip(batch)?;
        wait_until("flows look at their way again", PATIENCE, || Ok(generation()? != before))
    }

    /// On either wire no address but its own was a source.
    fn assert_invariants(&mut self) -> Result<()> {
        self.second.assert_none().context("on the second uplink")?;
        self.lab.assert_sound_but_for_invalid_packets()
    }
}

/// 1. guest 2's network by the second uplink, guest 1's by the first; 2. one destination by the second for all; 3. a rule goes, and
///    the next flow is where it leads at once; the conversation of before ends, since its address is no longer the way; 4. one
///    protocol's port by the second.
fn policy_rules_choose_the_uplink_by_source_and_by_destination(hook: Hook) -> Result<()> {
    let mut two = Two::new(hook, Setup::default())?;
    let guest = guest_address(2);
    let (by_source, by_destination) =
        (format!("rule add from {guest} table 100\n"), format!("rule add to {STRANGER} table 100\n"));
    two.lab.host.ip(&format!("route add default via {SECOND_ROUTER} dev enp4s0 table 100\n{by_source}"))?;
    wait_until(
        "guest 2 goes by the second uplink",
        PATIENCE,
        || Ok(two.seen(2, SERVER)? == SECOND_EXTERNAL),
    )?;
    two.expect(1, SERVER, EXTERNAL)?;
    let mut conversation = Conversation::open(two.lab.guest(2)?, SERVER_ECHO)?;
    let mut other = Conversation::open(two.lab.guest(1)?, SERVER_ECHO)?;
    two.lab.host.ip(&by_destination)?;
    wait_until("the stranger is reached by the second uplink", PATIENCE, || {
        Ok(two.seen(1, STRANGER)? == SECOND_EXTERNAL)
    })?;
    two.expect(1, SERVER, EXTERNAL)?;
    conversation.exchange(100_000).context("a conversation that no rule has moved")?;
    two.reroute(&format!("rule delete from {guest} table 100\n"))?;
    wait_until("guest 2 goes by the first uplink", Duration::from_secs(2), || {
        Ok(two.seen(2, SERVER)? == EXTERNAL)
    })?;
    client::must_fail("a conversation whose way has gone", conversation.exchange(1000))?;
    other.exchange(100_000).context("a conversation beside it")?;
    two.lab.host.ip("rule add ipproto udp dport 7000 table 100\n")?;
    let (tcp, udp) =
        (client::converse(two.lab.guest(1)?, SERVER_ECHO)?, client::ask(two.lab.guest(1)?, SERVER_ECHO)?);
    ensure!(
        tcp.ip().to_string() == EXTERNAL && udp.ip().to_string() == SECOND_EXTERNAL,
        "seen as {tcp} over TCP and as {udp} over UDP"
    );
    two.assert_invariants()
}

/// 1. two default routes; 2. the first uplink goes down, and new flows leave by the second; 3. what was open ends, with a reset
///    and not with silence; 4. it comes back, and flows are its again.
fn the_route_of_the_lower_metric_wins_and_the_other_takes_over(hook: Hook) -> Result<()> {
    let mut two = Two::new(hook, Setup::default())?;
    two.lab.host.ip(&format!(
        "route delete default\n\
         route add default via {ROUTER} dev enp3s0 metric 100\n\
         route add default via {SECOND_ROUTER} dev enp4s0 metric 200\n"
    ))?;
    wait_until("guest 1 is online", PATIENCE, || Ok(two.seen(1, SERVER).is_ok_and(|seen| seen == EXTERNAL)))?;
    let mut conversation = Conversation::open(two.lab.guest(1)?, SERVER_ECHO)?;
    conversation.exchange(10_000)?;
    two.lab.host.ip("link set enp3s0 down\n")?;
    wait_until("the second uplink takes over", Duration::from_secs(3), || {
        Ok(Asker::new(two.lab.guest(2)?, 0)?.ask_within(SERVER_ECHO, 20, Duration::from_millis(300)).is_ok())
    })?;
    two.expect(2, SERVER, SECOND_EXTERNAL)?;
    thread::sleep(MOMENT);
    let since = Instant::now();
    client::must_fail("a conversation of the uplink that went down", conversation.exchange(1000))?;
    ensure!(since.elapsed() < Duration::from_secs(1), "it ended in silence, after {:?}", since.elapsed());
    two.lab
        .host
        .ip(&format!("link set enp3s0 up\nroute replace default via {ROUTER} dev enp3s0 metric 100\n"))?;
    wait_until("flows are the first uplink's again", PATIENCE, || {
        Ok(two.seen(1, SERVER).is_ok_and(|seen| seen == EXTERNAL))
    })?;
    two.assert_invariants()
}

/// The kernel announces no route that goes with its link: a conversation by the second uplink ends at once all the same, and its remote
/// is reached by the first.
fn a_route_that_goes_with_its_link_moves_its_flows(hook: Hook) -> Result<()> {
    let mut two = Two::new(hook, Setup::default())?;
    two.lab.host.ip(&format!("route add {STRANGER}/32 via {SECOND_ROUTER} dev enp4s0\n"))?;
    two.expect(1, STRANGER, SECOND_EXTERNAL)?;
    let mut conversation = Conversation::open(two.lab.guest(1)?, &format!("{STRANGER}:7000"))?;
    conversation.exchange(1000)?;
    two.reroute("link set enp4s0 down\n")?;
    let since = Instant::now();
    client::must_fail("a conversation of the uplink that went down", conversation.exchange(1000))?;
    ensure!(since.elapsed() < Duration::from_secs(1), "it ended in silence, after {:?}", since.elapsed());
    two.expect(1, STRANGER, EXTERNAL)?;
    two.assert_invariants()
}

/// Equal cost: 1. connections leave by both uplinks; 2. each stays where it is, also when its way is looked up again.
fn a_route_of_several_ways_keeps_each_flow_on_its_own(hook: Hook) -> Result<()> {
    let mut two = Two::new(hook, Setup::default())?;
    two.lab.host.set_sysctl("net/ipv4/fib_multipath_hash_policy", "1")?;
    two.lab.host.ip(&format!(
        "route replace default nexthop via {ROUTER} dev enp3s0 nexthop via {SECOND_ROUTER} dev enp4s0\n"
    ))?;
    thread::sleep(MOMENT);
    let mut conversations = Vec::new();
    for _ in 0..24 {
        conversations.push(Conversation::open(two.lab.guest(1)?, SERVER_ECHO)?);
    }
    let by = |address: &str| {
        let seen: Vec<SocketAddr> = conversations.iter().map(|conversation| conversation.seen_as).collect();
        seen.iter().filter(|seen| seen.ip().to_string() == address).count()
    };
    let (first, second) = (by(EXTERNAL), by(SECOND_EXTERNAL));
    ensure!(
        [first, second].iter().sum::<usize>() == 24 && first > 2 && second > 2,
        "{first} by the first, {second} by the second"
    );
    for conversation in &mut conversations {
        conversation.exchange(10_000)?;
    }
    two.lab.host.ip("route add 198.18.0.0/15 dev enp3s0\n")?;
    thread::sleep(Duration::from_secs(6));
    for conversation in &mut conversations {
        conversation.exchange(10_000).context("after another look at the way")?;
    }
    two.assert_invariants()
}

/// With a strict `rp_filter` on the host, and the default route by the first uplink: 1. the world calls a forward by either address,
///    over TCP and UDP, and each answer leaves by the uplink that the call came in by; 2. so it stays, also when the way is looked up
///    again; 3. not a packet is dropped for its route.
fn a_port_forward_is_answered_by_the_uplink_that_it_was_called_by(hook: Hook) -> Result<()> {
    let mut two = Two::new(hook, Setup { rp_filter: 1, ..Setup::default() })?;
    // A router with a route of its own to the second uplink, as two providers are.
    two.lab.host.ip(&format!("route add default via {SECOND_ROUTER} dev enp4s0 metric 500\n"))?;
    let guest = guest_address(1);
    two.lab.vmnat_ok(&[
        "dnat",
        "add",
        &format!("8080:{guest}:80/tcp"),
        &format!("9000:{guest}:7000/tcp+udp"),
    ])?;
    let mut conversations = Vec::new();
    for external in [EXTERNAL, SECOND_EXTERNAL] {
        client::download(&two.lab.world, &format!("{external}:8080"), 1_000_000).context(external)?;
        client::ask(&two.lab.world, &format!("{external}:9000")).context(external)?;
        let mut conversation = Conversation::open(&two.lab.world, &format!("{external}:9000"))?;
        conversation.exchange(100_000)?;
        conversations.push(conversation);
    }
    let asker = Asker::new(&two.lab.world, 0)?;
    for round in 0..2 {
        thread::sleep(Duration::from_secs(5));
        two.lab.host.ip(&format!("route add 198.18.{round}.0/24 dev enp3s0\n"))?;
        for conversation in &mut conversations {
            conversation.exchange(100_000).context("after another look at the way")?;
        }
        asker.ask(&format!("{SECOND_EXTERNAL}:9000"))?;
    }
    let dropped = two.lab.counter("moved_route").unwrap_or(0);
    ensure!(dropped == 0, "{dropped} packets were dropped as moved_route");
    two.assert_invariants()
}

/// The answer is not sent by another uplink against the host's will: where its route is unreachable, as behind a kill switch, a call is
/// not answered at all.
fn a_forward_is_not_answered_where_the_route_is_forbidden(hook: Hook) -> Result<()> {
    let mut two = Two::new(hook, Setup::default())?;
    let guest = guest_address(1);
    two.lab.vmnat_ok(&["dnat", "add", &format!("9000:{guest}:7000/tcp+udp")])?;
    two.lab.host.ip(&format!("route add default via {SECOND_ROUTER} dev enp4s0 metric 500\n"))?;
    let asker = Asker::new(&two.lab.world, 0)?;
    let is_answered =
        || Ok(asker.ask_within(&format!("{SECOND_EXTERNAL}:9000"), 20, Duration::from_millis(300)).is_ok());
    wait_until("it is answered", PATIENCE, is_answered)?;
    two.lab.host.ip(&format!("rule add from {guest} unreachable\n"))?;
    thread::sleep(MOMENT);
    let answer = asker.ask_within(&format!("{SECOND_EXTERNAL}:9000"), 20, Duration::from_millis(500));
    client::must_fail("a call that may not be answered", answer)?;
    two.lab.host.ip(&format!("rule delete from {guest} unreachable\n"))?;
    wait_until("it is answered again", PATIENCE, is_answered)?;
    two.assert_invariants()
}

/// 1. an address that no uplink has is refused, and which there are is said; 2. guests are seen as the chosen one over TCP, UDP and in
///    fragments, and the host as its primary; 3. a forward is answered at both; 4. the address goes, and nothing leaves as another; 5. it
///    comes back; 6. the choice is undone.
fn guests_are_seen_as_the_address_that_was_chosen(hook: Hook) -> Result<()> {
    const CHOSEN: &str = "203.0.113.7";
    let mut lab = Lab::with(Setup { ip_forward: true, ..Setup::default() })?;
    lab.host.ip(&format!("address add {CHOSEN}/24 dev enp3s0\n"))?;
    let up = ["up", "--bridge", "virbr0", "--uplink", "enp3s0", "--hook", hook.name()];
    let refused = [&up[..], &["--external", "203.0.113.8"]].concat();
    lab.refused_with(5, &refused)?;
    let error = lab.vmnat_refused(&refused)?;
    ensure!(error.contains(&format!("enp3s0 has {EXTERNAL}, {CHOSEN}")), "it does not say which: {error}");
    let choice = format!("enp3s0={CHOSEN}");
    lab.vmnat_ok(&[&up[..], &["--external", &choice]].concat())?;
    let own = LeakWatch::new(&lab.router, "wan0", octets(CHOSEN)?)?;
    let guest = lab.guest(1)?;
    let asker = Asker::new(guest, 0)?;
    let seen =
        [client::converse(guest, SERVER_ECHO)?, asker.ask_within(SERVER_ECHO, 4000, client::PATIENCE)?];
    ensure!(seen.iter().all(|seen| seen.ip().to_string() == CHOSEN), "seen as {seen:?}");
    own.assert_none().context("as another address")?;
    let host = client::ask(&lab.host, SERVER_ECHO)?;
    ensure!(host.ip().to_string() == EXTERNAL, "the host is seen as {host}");
    let uplinks = lab.rows(&["uplink", "list"])?;
    ensure!(uplinks.iter().any(|row| row["address"] == CHOSEN), "uplinks {uplinks:?}");
    lab.vmnat_ok(&["dnat", "add", &format!("9000:{}:7000/tcp", guest_address(1))])?;
    let mut conversations = Vec::new();
    for external in [EXTERNAL, CHOSEN] {
        conversations.push(Conversation::open(&lab.world, &format!("{external}:9000")).context(external)?);
    }
    thread::sleep(Duration::from_secs(5));
    for conversation in &mut conversations {
        conversation.exchange(10_000).context("after another look at the way")?;
    }
    drop(conversations);
    lab.host.ip(&format!("address delete {CHOSEN}/24 dev enp3s0\n"))?;
    wait_until("status says that the address is lost", PATIENCE, || {
        Ok(lab.vmnat_ok(&["status"])?.contains("has lost the address"))
    })?;
    client::must_fail("a ping as another address", client::ping_as(lab.guest(2)?, 7, SERVER, MOMENT))?;
    lab.host.ip(&format!("address add {CHOSEN}/24 dev enp3s0\n"))?;
    let is_seen = |address: &str| -> Result<bool> {
        let seen = Asker::new(lab.guest(2)?, 0)?.ask_within(SERVER_ECHO, 20, MOMENT);
        Ok(seen.is_ok_and(|seen| seen.ip().to_string() == address))
    };
    wait_until("guest 2 is seen as the chosen address again", PATIENCE, || is_seen(CHOSEN))?;
    lab.vmnat_ok(&["up", "--external", "primary"])?;
    ensure!(is_seen(EXTERNAL)?, "the choice stands");
    // What has left as the chosen address was meant to.
    lab.leaks.forget()?;
    lab.assert_sound_but_for_invalid_packets()
}
