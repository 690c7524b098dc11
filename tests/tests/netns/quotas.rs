//! What one guest takes leaves enough for all others, whatever it does and whoever calls it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use vmnat_tests::lab::{
    Lab, SERVER, SERVER_ECHO,
    client::{self, Asker, Conversation},
    frame::{Packet, Tap},
    guest_address,
    namespace::Namespace,
    vmnat::Hook,
    wait_until,
};

on_both_hooks!(
    a_greedy_guest_is_stopped_and_nobody_else,
    a_quota_changes_while_flows_go_on,
    a_flood_of_handshakes_through_a_forward_drains_by_itself,
    a_full_flow_table_is_told_and_ends_nothing,
    guests_get_ports_of_the_pool_alone,
);

const SYN: u8 = 0x02;
const SOON: Duration = Duration::from_secs(5);

/// A port of the world where handshakes are never answered.
const SILENT: u16 = 9;

fn silence(namespace: &Namespace, hook: &str) -> Result<()> {
    namespace.nft(&format!(
        "table ip silence {{ chain c {{ type filter hook {hook} priority -400; tcp dport {SILENT} drop; }}; }}\n"
    ))
}

/// What `vmnat guests` says of a guest.
fn guest(lab: &Lab, number: usize) -> Result<Value> {
    let rows = lab.rows(&["guests"])?;
    let row = rows.iter().find(|row| row["address"] == guest_address(number));
    row.cloned().with_context(|| format!("no guest {number} in {rows:?}"))
}

fn count(row: &Value, what: &str) -> Result<u64> {
    row[what].as_u64().with_context(|| format!("no {what} in {row}"))
}

fn warns(lab: &Lab, what: &str) -> Result<()> {
    wait_until(what, SOON, || Ok(lab.vmnat_ok(&["status"])?.contains(what)))
}

/// A10. 1. quotas of 200 flows and 50 half-open ones; a session of each guest; 2. guest 1 sends 120 SYNs that nobody answers and
///    opens 350 UDP flows: it is stopped at its quotas, and told by ICMP 3/13; 3. guest 2 opens flows as ever, the sessions of both
///    go on; 4. log and status name guest, quota and refusals.
fn a_greedy_guest_is_stopped_and_nobody_else(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    silence(&lab.router, "forward")?;
    lab.up_with(hook, &["--guest-flows", "200", "--guest-half-open", "50", "--reap-interval", "300ms"])?;
    let mut sessions =
        [Conversation::open(lab.guest(1)?, SERVER_ECHO)?, Conversation::open(lab.guest(2)?, SERVER_ECHO)?];
    let wire = Tap::open(lab.guest(1)?, "eth0")?;
    for port in 10_000..10_120 {
        wire.send(&Packet::tcp(lab.outbound_ends(1, SERVER)?, port, SILENT, 1, SYN).bytes())?;
    }
    wire.expect("administratively prohibited", SOON, |packet| packet.icmp() == Some((3, 13)))?;
    let row = guest(&lab, 1)?;
    ensure!(count(&row, "half_open")? == 50 && count(&row, "refused_half_open")? == 70, "{row}");
    for port in 11_000..11_350 {
        wire.send(&Packet::udp(lab.outbound_ends(1, SERVER)?, port, SILENT, b"x").bytes())?;
    }
    let row = guest(&lab, 1)?;
    ensure!(count(&row, "flows")? == 200 && count(&row, "refused_flows")? == 201, "{row}");
    ensure!(count(&row, "refused")? == 271, "{row}");
    client::must_fail("a flow above the quota", client::ask(lab.guest(1)?, SERVER_ECHO))?;

    for _ in 0..20 {
        client::ask(lab.guest(2)?, SERVER_ECHO)?;
    }
    client::converse(lab.guest(2)?, SERVER_ECHO)?;
    for session in &mut sessions {
        session.exchange(50_000)?;
    }
    let name = guest_address(1);
    warns(&lab, &format!("guest {name} has reached its quota of 200 flows: 2"))?;
    warns(&lab, &format!("guest {name} has reached its quota of 50 half-open flows: 70 refused"))?;
    let logs = lab.vmnat_ok(&["logs"])?;
    let told = logs.lines().filter(|line| line.contains("flow_quota") && line.contains("200 flows"));
    ensure!(told.count() == 1, "not told once:\n{logs}");
    let status = lab.listing(&["status"])?;
    ensure!(status.at(0)["events"].as_array().is_some_and(|events| events.len() == 2), "{status:?}");
    ensure!(count(&guest(&lab, 2)?, "refused")? == 0, "guest 2 was refused something");
    lab.assert_sound_but_for_invalid_packets()
}

/// 1. guest 1 has a session and 20 flows; 2. its quota becomes 5: they go on, it gets no other; 3. no quota: it does.
fn a_quota_changes_while_flows_go_on(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let mut session = Conversation::open(lab.guest(1)?, SERVER_ECHO)?;
    let askers: Vec<Asker> = (0..20).map(|_| Asker::new(lab.guest(1)?, 0)).collect::<Result<_>>()?;
    for asker in &askers {
        asker.ask(SERVER_ECHO)?;
    }
    lab.vmnat_ok(&["up", "--guest-flows", "5"])?;
    session.exchange(50_000)?;
    for asker in &askers {
        asker.ask(SERVER_ECHO).context("a flow from before the quota")?;
    }
    let further = Asker::new(lab.guest(1)?, 0)?;
    let refused = further.ask_within(SERVER_ECHO, 10, Duration::from_millis(400));
    client::must_fail("a flow above the quota", refused)?;
    let status = lab.listing(&["status"])?;
    let quota = |what: &str| status.at(0).pointer(&format!("/guest_quotas/{what}")).and_then(Value::as_u64);
    ensure!(quota("flows") == Some(5), "status has another quota: {status:?}");
    ensure!(quota("half_open") == Some(1024), "what was not named has changed: {status:?}");
    lab.vmnat_ok(&["up", "--guest-flows", "0"])?;
    further.ask(SERVER_ECHO).context("a flow without a quota")?;
    ensure!(lab.vmnat_ok(&["guests"])?.contains("any number of flows"));
    session.exchange(50_000)?;
    lab.assert_invariants()
}

/// A9. 1. a forward to a port of guest 1 that never answers, and one to its echo; a session of each guest; 2. a stranger sends 300
///    SYNs: 50 flows stay half open; 3. guest 2 is unaffected, the sessions go on; 4. the half-open flows time out, and the
///    world reaches guest 1 again.
fn a_flood_of_handshakes_through_a_forward_drains_by_itself(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    silence(lab.guest(1)?, "input")?;
    lab.up_with(
        hook,
        &["--guest-half-open", "50", "--timeout", "tcp_half_open=3", "--reap-interval", "300ms"],
    )?;
    let silent = format!("8009:{}:{SILENT}/tcp", guest_address(1));
    let echo = format!("8007:{}:7000/tcp", guest_address(1));
    for forward in [&silent, &echo] {
        lab.vmnat_ok(&["dnat", "add", forward])?;
    }
    client::converse(&lab.world, "203.0.113.2:8007")?;
    let mut sessions =
        [Conversation::open(lab.guest(1)?, SERVER_ECHO)?, Conversation::open(lab.guest(2)?, SERVER_ECHO)?];
    let wire = Tap::open(&lab.router, "wan0")?;
    for port in 10_000..10_300 {
        wire.send(
            &Packet::tcp(lab.inbound_ends("198.51.100.77", "203.0.113.2")?, port, 8009, 1, SYN).bytes(),
        )?;
    }
    let row = guest(&lab, 1)?;
    ensure!(count(&row, "half_open")? <= 50 && count(&row, "refused_half_open")? >= 250, "{row}");
    client::converse(lab.guest(2)?, SERVER_ECHO)?;
    for session in &mut sessions {
        session.exchange(50_000)?;
    }
    wait_until("the half-open flows to time out", Duration::from_secs(15), || {
        Ok(count(&guest(&lab, 1)?, "half_open")? == 0)
    })?;
    client::converse(&lab.world, "203.0.113.2:8007").context("after the flood")?;
    for session in &mut sessions {
        session.exchange(50_000)?;
    }
    lab.assert_sound_but_for_invalid_packets()
}

/// 1. a table of 1,024 flows and no quota: guest 1 fills it, beyond what it is to hold; 2. status says so, and no live flow has ended.
fn a_full_flow_table_is_told_and_ends_nothing(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    let quotas = ["--guest-flows", "0", "--guest-rate", "0"];
    lab.up_with(hook, &[&["--flows", "1024", "--reap-interval", "300ms"], &quotas[..]].concat())?;
    let mut sessions =
        [Conversation::open(lab.guest(1)?, SERVER_ECHO)?, Conversation::open(lab.guest(2)?, SERVER_ECHO)?];
    let asker = Asker::new(lab.guest(2)?, 0)?;
    asker.ask(SERVER_ECHO)?;
    let wire = Tap::open(lab.guest(1)?, "eth0")?;
    for port in 10_000..11_700 {
        wire.send(&Packet::udp(lab.outbound_ends(1, SERVER)?, port, SILENT, b"x").bytes())?;
    }
    warns(&lab, "the flow table, which is for 1,024 flows, is full")?;
    for session in &mut sessions {
        session.exchange(50_000)?;
    }
    asker.ask(SERVER_ECHO).context("a live flow of guest 2")?;
    ensure!(lab.vmnat_ok(&["logs"])?.contains("flow_table_full"), "not in the log");
    lab.vmnat_ok(&["flows", "rm", "--guest", &guest_address(1)])?;
    lab.assert_sound_but_for_invalid_packets()
}

/// 1. a pool of 20000 to 20999: a guest's port in it is kept, others are changed into it; 2. another pool: the mapping that exists
///    stays, further ones are in the other; 3. a pool that is all the host's is refused, and nothing changes.
fn guests_get_ports_of_the_pool_alone(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up_with(hook, &["--pool", "20000-20999"])?;
    let port = |asker: &Asker| Ok::<_, anyhow::Error>(asker.ask(SERVER_ECHO)?.port());
    let kept = Asker::new(lab.guest(1)?, 20_500)?;
    ensure!(port(&kept)? == 20_500, "a port of the pool is changed");
    let mut changed = Vec::new();
    for _ in 0..20 {
        changed.push(port(&Asker::new(lab.guest(1)?, 0)?)?);
    }
    ensure!(changed.iter().all(|port| (20_000..=20_999).contains(port)), "outside of the pool: {changed:?}");
    lab.vmnat_ok(&["up", "--pool", "25000-25999"])?;
    ensure!(port(&kept)? == 20_500, "a live mapping has moved");
    let other = port(&Asker::new(lab.guest(2)?, 20_501)?)?;
    ensure!((25_000..=25_999).contains(&other), "{other} is outside of the pool");
    lab.refused_with(10, &["up", "--pool", "40000-50000"])?;
    lab.refused_with(2, &["up", "--pool", "80-90"])?;
    let status = lab.vmnat_ok(&["status"])?;
    ensure!(status.contains("ports        25000 to 25999"), "{status}");
    lab.assert_invariants()
}
