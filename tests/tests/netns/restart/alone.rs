//! The dataplane alone: the agent is killed, and none is started for a long time.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};
use serde_json::Value;
use vmnat_tests::lab::{
    Lab, SERVER, SERVER_ECHO,
    client::{self, Asker, Conversation},
    frame::{Packet, Tap},
    guest_address,
    traffic::Traffic,
    vmnat::Hook,
    wait_until,
};

use super::{PATIENCE, is_long};

on_both_hooks!(all_goes_on_without_an_agent, a_flood_without_an_agent_takes_nobody_elses);

/// The guest's quota, and more than it: what it may not have.
const QUOTA: u16 = 2_000;
const FLOOD: u16 = 3_000;

/// A13: forwarding goes on, new flows open, port forwards work, and nothing leaks. Ten minutes where there is time.
fn all_goes_on_without_an_agent(hook: Hook) -> Result<()> {
    let alone = Duration::from_secs(if is_long() { 600 } else { 6 });
    let mut lab = Lab::new()?;
    // Nothing expires without an agent: all that guest 1 opens meanwhile counts, some 27 flows a second.
    lab.up_with(hook, &["--guest-flows", "60000"])?;
    let traffic = Traffic::start(&lab)?;
    lab.kill_agent()?;
    thread::sleep(alone);
    traffic.moves(PATIENCE)?;
    let report = traffic.finish()?;
    println!("{hook:?}, without an agent: {report}");
    report.assert_unnoticed(1)?;
    let before = lab.flow_count()?;
    // Whoever comes next takes over where the last one ended.
    lab.up(hook)?;
    println!("{hook:?}: {before} flows at the end");
    lab.assert_invariants()
}

fn flows_of(lab: &Lab, number: usize) -> Result<u64> {
    let rows = lab.rows(&["guests"])?;
    let row = rows.iter().find(|row| row["address"] == guest_address(number));
    Ok(row.and_then(|row| row["flows"].as_u64()).unwrap_or(0))
}

/// A13 and A10: with the agent dead, guest 1 opens more flows than it may have. 1. the quota holds, nobody's flow is evicted,
/// guest 2 opens flows as ever; 2. what has expired stays, for it is the agent that removes; 3. another agent comes, and the
/// table drains.
fn a_flood_without_an_agent_takes_nobody_elses(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    let quota = QUOTA.to_string();
    // A table that two such guests would fill.
    let options = [
        "--flows",
        "4096",
        "--guest-flows",
        &quota,
        "--timeout",
        "udp_unreplied=2",
        "--timeout",
        "udp_replied=2",
    ];
    let fast = ["--timeout", "mapping_rest=2", "--reap-interval", "300ms", "--guest-rate", "0"];
    lab.up_with(hook, &[&options[..], &fast].concat())?;
    let mut sessions =
        [Conversation::open(lab.guest(1)?, SERVER_ECHO)?, Conversation::open(lab.guest(2)?, SERVER_ECHO)?];
    let asker = Asker::new(lab.guest(2)?, 20_000)?;
    let seen_as = asker.ask(SERVER_ECHO)?;
    lab.kill_agent()?;

    let wire = Tap::open(lab.guest(1)?, "eth0")?;
    let ends = lab.outbound_ends(1, SERVER)?;
    for port in 0..FLOOD {
        wire.send(&Packet::udp(ends, 10_000 + port, 9, b"flood").bytes())?;
        if port % 64 == 0 {
            thread::sleep(Duration::from_millis(1));
        }
    }
    let held = flows_of(&lab, 1)?;
    ensure!(held == u64::from(QUOTA), "guest 1 holds {held} flows of {QUOTA}");
    client::must_fail(
        "a flow above the quota",
        Asker::new(lab.guest(1)?, 0)?.ask_within(SERVER_ECHO, 10, Duration::from_millis(400)),
    )?;
    thread::sleep(Duration::from_secs(3));
    ensure!(flows_of(&lab, 1)? == held, "somebody has removed flows");
    for session in &mut sessions {
        session.exchange(50_000)?;
    }
    ensure!(asker.ask(SERVER_ECHO)? == seen_as, "guest 2 has lost its port");
    for _ in 0..20 {
        client::ask(lab.guest(2)?, SERVER_ECHO)?;
    }
    let counters = lab.vmnat_ok(&["counters"])?;
    ensure!(!counters.contains("flow_table_full"), "the table was full: {counters}");

    lab.up(hook)?;
    wait_until("the table has drained", PATIENCE, || Ok(flows_of(&lab, 1)? <= 2))?;
    client::ask(lab.guest(1)?, SERVER_ECHO)?;
    for session in &mut sessions {
        session.exchange(50_000)?;
    }
    let rows: Vec<Value> = lab.rows(&["flows"])?;
    ensure!(rows.len() < 60, "{} flows are left", rows.len());
    lab.assert_sound_but_for_invalid_packets()
}
