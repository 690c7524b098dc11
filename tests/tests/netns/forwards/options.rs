//! What a port forward may be: a range, two protocols, limited, bound to an uplink, for a while.

use std::time::Duration;

use anyhow::{Result, ensure};
use vmnat_tests::lab::{
    EXTERNAL, Lab, STRANGER,
    client::{self, Asker, PATIENCE},
    guest_address,
    vmnat::Hook,
    wait_until,
};

on_both_hooks!(
    a_range_leads_port_by_port,
    two_protocols_are_one_forward,
    one_address_of_the_host_serves_alone,
    sources_are_limited,
    a_forward_of_an_uplink_follows_its_addresses,
    a_forward_ends_by_itself,
    the_kernel_ends_a_forward_without_the_agent,
);

/// How long a caller waits whom nobody will answer.
const MOMENT: Duration = Duration::from_millis(700);

/// A second address of the uplink.
const SECOND: &str = "203.0.113.7";

/// Guest 1's echo at 7000 is the sixth port of the range; what lies beside the range is not forwarded.
fn a_range_leads_port_by_port(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    lab.vmnat_ok(&["dnat", "add", &format!("9000-9009:{}:6995-7004/tcp+udp", guest_address(1))])?;
    client::converse(&lab.world, &format!("{EXTERNAL}:9005"))?;
    client::ask(&lab.world, &format!("{EXTERNAL}:9005"))?;
    for port in [8999, 9010] {
        let attempt = client::connect(&lab.world, None, &format!("{EXTERNAL}:{port}"), PATIENCE);
        client::must_fail("a port beside the range", attempt)?;
    }
    let rows = lab.listing(&["dnat", "ls"])?;
    ensure!(rows.at(1).is_null() && rows.at(0)["last_port"] == 9009, "{rows:?}");
    lab.assert_invariants()
}

fn two_protocols_are_one_forward(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    lab.vmnat_ok(&["dnat", "add", &format!("9000:{}:7000/tcp+udp", guest_address(1))])?;
    client::converse(&lab.world, &format!("{EXTERNAL}:9000"))?;
    client::ask(&lab.world, &format!("{EXTERNAL}:9000"))?;
    let rows = lab.listing(&["dnat", "list"])?;
    ensure!(rows.at(1).is_null() && rows.at(0)["id"] == 1 && rows.at(0)["connections"] == 2, "{rows:?}");
    lab.vmnat_ok(&["dnat", "rm", "1"])?;
    let attempt = Asker::new(&lab.world, 0)?.ask_within(&format!("{EXTERNAL}:9000"), 10, MOMENT);
    client::must_fail("UDP of a removed forward", attempt)?;
    lab.assert_invariants()
}

/// The second address has the forward, the first has none; a foreign address is worth a warning.
fn one_address_of_the_host_serves_alone(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.host.ip(&format!("address add {SECOND}/24 dev enp3s0\n"))?;
    lab.up(hook)?;
    lab.vmnat_ok(&["dnat", "add", &format!("{SECOND}:8080:{}:80", guest_address(1))])?;
    client::get(&lab.world, &format!("{SECOND}:8080"), "/")?;
    client::must_fail("the other address", client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/"))?;
    let printed = lab.vmnat_ok(&["dnat", "add", &format!("192.0.2.9:8080:{}:80", guest_address(1))])?;
    ensure!(printed.starts_with("warning: 192.0.2.9 is no address of this host"), "{printed}");
    // The second address is the host's too.
    lab.leaks.forget()?;
    lab.assert_invariants()
}

/// The world's first address lies in the one source, not in the other; the list counts who was refused.
fn sources_are_limited(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let add = |port: u16, from: &str| {
        lab.vmnat_ok(&["dnat", "add", &format!("{port}:{}:80", guest_address(1)), "--from", from])
    };
    add(8080, "198.51.100.0/28")?;
    add(8081, STRANGER)?;
    client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/")?;
    let attempt = client::connect(&lab.world, None, &format!("{EXTERNAL}:8081"), MOMENT);
    client::must_fail("a source that is not listed", attempt)?;
    let rows = lab.listing(&["dnat", "list"])?;
    ensure!(rows.at(0)["refused"] == 0 && rows.at(0)["connections"] == 1, "{rows:?}");
    ensure!(rows.at(1)["refused"].as_u64() > Some(0) && rows.at(1)["connections"] == 0, "{rows:?}");
    let printed = lab.vmnat_ok(&["dnat", "list"])?;
    ensure!(printed.contains("SOURCES") && printed.contains("198.51.100.99/32"), "{printed}");
    lab.assert_invariants()
}

/// 1. bound to the uplink, and not at 127.0.0.1; 2. the uplink gets a second address; 3. it loses it.
fn a_forward_of_an_uplink_follows_its_addresses(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    lab.vmnat_ok(&["dnat", "add", &format!("8080:{}:80", guest_address(1)), "--uplink", "enp3s0"])?;
    client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/")?;
    client::must_fail("the loopback", client::get(&lab.host, "127.0.0.1:8080", "/"))?;
    lab.host.ip(&format!("address add {SECOND}/24 dev enp3s0\n"))?;
    let reaches = || client::get(&lab.world, &format!("{SECOND}:8080"), "/").is_ok();
    wait_until("the forward is at the second address", PATIENCE, || Ok(reaches()))?;
    lab.host.ip(&format!("address del {SECOND}/24 dev enp3s0\n"))?;
    wait_until("the second address has gone", PATIENCE, || {
        let logs = lab.vmnat_ok(&["logs"])?;
        Ok(logs.contains(&format!("removed port forward 1: {SECOND}:8080/tcp")))
    })?;
    client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/")?;
    lab.leaks.forget()?;
    lab.assert_invariants()
}

/// 1. a forward for three seconds, and one that is prolonged; 2. the agent takes the first away, also from the file.
fn a_forward_ends_by_itself(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let (short, long) = (format!("8080:{}:80", guest_address(1)), format!("8081:{}:80", guest_address(1)));
    lab.vmnat_ok(&["dnat", "add", &short, "--expires", "3s"])?;
    lab.vmnat_ok(&["dnat", "add", &long, "--expires", "3s"])?;
    let printed = lab.vmnat_ok(&["dnat", "add", &long, "--expires", "7d"])?;
    ensure!(printed == format!("renewed: port forward 2 is {long}/tcp\n"), "{printed}");
    client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/")?;
    wait_until("the forward has ended", PATIENCE, || Ok(lab.rows(&["dnat", "list"])?.len() == 1))?;
    client::must_fail("an ended forward", client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/"))?;
    client::get(&lab.world, &format!("{EXTERNAL}:8081"), "/")?;
    let file = std::fs::read_to_string("/var/lib/vmnat/default/forwards.json")?;
    ensure!(!file.contains(":8080") && file.contains("8081:"), "{file}");
    ensure!(lab.vmnat_ok(&["dnat", "list"])?.contains("in 6 d 23 h"), "no end in the list");
    lab.assert_invariants()
}

/// The agent is dead; new connections stop all the same, and `up` does not bring the forward back.
fn the_kernel_ends_a_forward_without_the_agent(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    lab.kill_agent()?;
    lab.vmnat_ok(&["dnat", "add", &format!("8080:{}:80", guest_address(1)), "--expires", "2s"])?;
    let there = format!("{EXTERNAL}:8080");
    client::get(&lab.world, &there, "/")?;
    wait_until("the forward has ended", PATIENCE, || Ok(client::get(&lab.world, &there, "/").is_err()))?;
    std::thread::sleep(Duration::from_secs(1));
    ensure!(lab.vmnat_ok(&["dnat", "list"])?.contains("expired"), "the list says nothing of the end");
    lab.vmnat_ok(&["down"])?;
    lab.up(hook)?;
    ensure!(lab.rows(&["dnat", "list"])?.is_empty(), "it is back");
    lab.assert_invariants()
}
