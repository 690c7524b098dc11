//! Port forwards and what goes through them: counted, ended, and kept off the masquerade's ports.

use anyhow::{Result, ensure};
use vmnat_tests::lab::{
    EXTERNAL, Lab, SERVER_ECHO,
    client::{self, Asker, Conversation},
    guest_address,
    vmnat::Hook,
};

on_both_hooks!(
    counters_go_with_live_and_ended_conversations,
    killing_ends_live_conversations_of_that_forward,
    killing_ends_what_turns_round_on_the_host,
    ports_leave_the_pool_and_come_back,
);

fn echo(port: u16, guest: usize) -> String {
    format!("{port}:{}:7000/tcp", guest_address(guest))
}

/// 1. a live conversation is in the counters; 2. ended and removed, it still is; another forward has none of it.
fn counters_go_with_live_and_ended_conversations(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    lab.vmnat_ok(&["dnat", "add", &echo(9000, 1), &echo(9001, 1)])?;
    let bytes = |lab: &Lab, row: usize, way: &str| -> Result<u64> {
        let rows = lab.listing(&["dnat", "list"])?;
        Ok(rows.at(row).pointer(&format!("/{way}/bytes")).and_then(serde_json::Value::as_u64).unwrap_or(0))
    };
    let mut conversation = Conversation::open(&lab.world, &format!("{EXTERNAL}:9000"))?;
    conversation.exchange(500_000)?;
    let live = (bytes(&lab, 0, "inbound")?, bytes(&lab, 0, "outbound")?);
    ensure!(live.0 > 500_000 && live.1 > 500_000 && live.0 < 1_000_000, "{live:?} of 500,000 bytes each way");
    conversation.close()?;
    lab.vmnat_ok(&["flows", "rm", "--all"])?;
    let ended = (bytes(&lab, 0, "inbound")?, bytes(&lab, 0, "outbound")?);
    ensure!(ended.0 >= live.0 && ended.0.abs_diff(live.0) < 1000, "{live:?}, and ended {ended:?}");
    let rows = lab.listing(&["dnat", "list"])?;
    ensure!(rows.at(0)["connections"] == 1 && rows.at(1)["connections"] == 0, "{rows:?}");
    ensure!(bytes(&lab, 1, "inbound")? == 0, "the other forward has counted too");
    lab.assert_sound_but_for_invalid_packets()
}

/// 1. two conversations through one forward, one through another; 2. `rm --kill` ends the two and tells so.
fn killing_ends_live_conversations_of_that_forward(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    lab.vmnat_ok(&["dnat", "add", &echo(9000, 1), &echo(9001, 1)])?;
    let mut first = Conversation::open(&lab.world, &format!("{EXTERNAL}:9000"))?;
    let mut second = Conversation::open(&lab.world, &format!("{EXTERNAL}:9000"))?;
    let mut other = Conversation::open(&lab.world, &format!("{EXTERNAL}:9001"))?;
    let mut own = Conversation::open(lab.guest(1)?, SERVER_ECHO)?;
    let printed = lab.vmnat_ok(&["dnat", "rm", "1", "--kill"])?;
    ensure!(
        printed.contains("removed port forward 1") && printed.contains("ended 2 of their flows"),
        "{printed}"
    );
    client::must_fail("a conversation that was ended", first.exchange(1000))?;
    client::must_fail("a conversation that was ended", second.exchange(1000))?;
    other.exchange(100_000)?;
    own.exchange(100_000)?;
    lab.assert_sound_but_for_invalid_packets()
}

fn killing_ends_what_turns_round_on_the_host(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    lab.vmnat_ok(&["dnat", "add", &echo(9000, 1)])?;
    let mut sibling = Conversation::open(lab.guest(2)?, &format!("{EXTERNAL}:9000"))?;
    sibling.exchange(1000)?;
    ensure!(lab.flow_count()? > 0, "no flow");
    lab.vmnat_ok(&["dnat", "rm", "1", "--kill"])?;
    ensure!(lab.flow_count()? == 0, "a half is left: {:?}", lab.rows(&["flows"])?);
    client::must_fail("a conversation that was ended", sibling.exchange(1000))?;
    lab.assert_sound_but_for_invalid_packets()
}

/// 1. a guest converses from port 5000, which it keeps outside; 2. that port and 6000-6009 are forwarded: the conversation goes
///    on, a new one from 6000 gets another port; 3. the forward goes: the next one keeps 6000.
fn ports_leave_the_pool_and_come_back(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let mut live = Conversation::open_from(lab.guest(1)?, 5000, SERVER_ECHO)?;
    ensure!(live.seen_as.port() == 5000, "seen as {}", live.seen_as);
    lab.vmnat_ok(&["dnat", "add", &echo(5000, 2), &format!("6000-6009:{}:7000-7009/udp", guest_address(2))])?;
    live.exchange(100_000)?;
    client::converse(&lab.world, &format!("{EXTERNAL}:5000"))?;
    live.exchange(100_000)?;
    let ask = |guest: usize, port: u16| Asker::new(lab.guest(guest)?, port)?.ask(SERVER_ECHO);
    for port in [6000, 6009] {
        let seen_as = ask(2, port)?;
        ensure!(!(6000..6010).contains(&seen_as.port()), "guest 2's {port} is seen as {seen_as}");
    }
    ensure!(ask(2, 6010)?.port() == 6010, "a port beside the range is not offered");
    lab.vmnat_ok(&["dnat", "rm", "2"])?;
    ensure!(ask(1, 6000)?.port() == 6000, "the port is not back");
    live.exchange(100_000)?;
    lab.assert_invariants()
}
