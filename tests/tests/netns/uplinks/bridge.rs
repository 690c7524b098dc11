//! An uplink that is a bridge: what comes in meets vmnat at the bridge's ports, before `br_netfilter`; machines on that very
//! bridge are none of vmnat's.

use std::time::Duration;

use anyhow::{Result, ensure};
use vmnat_tests::lab::{
    EXTERNAL, Lab, SERVER, SERVER_ECHO, SERVER_HTTP, Setup,
    client::{self, Conversation},
    frame::Tap,
    guest_address,
    namespace::Namespace,
    uplink::Kind,
    vmnat::Hook,
    wait_until,
};

on_both_hooks!(
    replies_come_before_br_netfilter,
    a_port_that_comes_later_is_hooked,
    a_machine_on_the_uplinks_bridge_is_not_touched,
);

/// Drops whatever the world sends to the external address, before connection tracking.
const RAW_DROPS: &str = "
table ip early {
  chain prerouting {
    type filter hook prerouting priority -300;
    ip daddr 203.0.113.2 ip saddr 198.51.100.0/24 drop
  }
}
";

fn bridged(hook: Hook) -> Result<Lab> {
    let mut lab = Lab::with(Setup { br_netfilter: true, ip_forward: true, ..Setup::default() })?;
    lab.change_uplink(Kind::Bridge)?;
    lab.vmnat_ok(&["up", "--bridge", "virbr0", "--uplink", "br0", "--hook", hook.name()])?;
    Ok(lab)
}

/// 1. rules that drop every reply in PREROUTING cut off the host; 2. guests go on, and a port forward; 3. each packet of the host's
///    is counted once.
fn replies_come_before_br_netfilter(hook: Hook) -> Result<()> {
    let mut lab = bridged(hook)?;
    lab.host.nft(RAW_DROPS)?;
    let attempt = client::ping_as(&lab.host, 3, SERVER, Duration::from_millis(300));
    client::must_fail("a ping of the host, whose replies are dropped", attempt)?;
    client::converse(lab.guest(1)?, SERVER_ECHO)?;
    client::download(lab.guest(2)?, SERVER_HTTP, 1_000_000)?;
    lab.vmnat_ok(&["dnat", "add", &format!("8080:{}:80/tcp", guest_address(1))])?;
    client::download(&lab.world, &format!("{EXTERNAL}:8080"), 1_000_000)?;
    lab.host.exec(&["nft", "delete", "table", "ip", "early"])?;
    let before = lab.counter("no_flow")?;
    client::ping(&lab.host, SERVER)?;
    let counted = lab.counter("no_flow")?;
    let times = counted.saturating_sub(before);
    ensure!(times == 1, "one reply was counted {times} times");
    lab.assert_invariants()
}

/// 1. the port leaves the bridge and comes back, as when a cable is moved; 2. the same rules, and guests go on; 3. a second
///    port is hooked, and forgotten with its interface.
fn a_port_that_comes_later_is_hooked(hook: Hook) -> Result<()> {
    let mut lab = bridged(hook)?;
    lab.host.nft(RAW_DROPS)?;
    let mut conversation = Conversation::open(lab.guest(1)?, SERVER_ECHO)?;
    let is_hooked = |lab: &Lab, name: &str| -> Result<bool> {
        let status = String::from_utf8(lab.vmnat(&["status"])?.stdout)?;
        Ok(status.lines().any(|line| line.starts_with(name) && line.contains("inbound_port")))
    };
    let patience = Duration::from_secs(5);
    ensure!(is_hooked(&lab, "enp3s0")?, "status does not name the port's hook");
    lab.host.ip("link set enp3s0 nomaster\n")?;
    wait_until("the port's hook has gone", patience, || Ok(!is_hooked(&lab, "enp3s0")?))?;
    lab.host.ip("link set enp3s0 master br0\n")?;
    wait_until("the port is hooked again", patience, || is_hooked(&lab, "enp3s0"))?;
    conversation.exchange(100_000)?;
    lab.host.ip("link add enp5s0 type veth peer name cable\n\
         link set cable up\n\
         link set enp5s0 master br0 up\n")?;
    wait_until("the second port is hooked", patience, || is_hooked(&lab, "enp5s0"))?;
    lab.host.ip("link delete enp5s0\n")?;
    wait_until("it is forgotten", patience, || Ok(!is_hooked(&lab, "enp5s0")?))?;
    conversation.exchange(100_000)?;
    lab.host.exec(&["nft", "delete", "table", "ip", "early"])?;
    lab.assert_invariants()
}

/// A machine has an address of the uplink's own subnet: 1. it talks to the world as itself, and its frames pass as they are; 2. it
///    calls a port forward as a stranger does; 3. guests call it, and see its own address.
fn a_machine_on_the_uplinks_bridge_is_not_touched(hook: Hook) -> Result<()> {
    const ADDRESS: &str = "203.0.113.50";
    let mut lab = bridged(hook)?;
    let machine = Namespace::new("machine")?;
    lab.host.ip(&format!(
        "link add vm0 type veth peer name eth0 netns {}\n\
         link set vm0 master br0 up\n",
        machine.path()
    ))?;
    machine.ip(&format!(
        "link set lo up\naddress add {ADDRESS}/24 dev eth0\nlink set eth0 up\nroute add default via 203.0.113.1\n"
    ))?;
    client::ping(lab.guest(1)?, SERVER)?;
    client::ping(&lab.host, SERVER)?;
    let touched = |lab: &Lab| -> Result<[u64; 3]> {
        let [out, inward, hosts] = ["translated_outbound", "translated_inbound", "no_flow"];
        Ok([lab.counter(out)?, lab.counter(inward)?, lab.counter(hosts)?])
    };
    let before = touched(&lab)?;
    let wire = Tap::open(&lab.router, "wan0")?;
    let seen_as = client::converse(&machine, SERVER_ECHO)?;
    ensure!(seen_as.ip().to_string() == ADDRESS, "seen as {seen_as}");
    client::download(&machine, SERVER_HTTP, 1_000_000)?;
    ensure!(wire.drain().iter().any(|frame| frame.get(26..30) == Some(&[203, 0, 113, 50])), "nothing passed");
    let after = touched(&lab)?;
    ensure!(before == after, "its packets were taken for others': {before:?}, {after:?}");
    ensure!(lab.counter("bridged")? > 0, "its packets met no hook: the test is void");
    lab.vmnat_ok(&["dnat", "add", &format!("9000:{}:7000/tcp", guest_address(1))])?;
    let seen_as = client::converse(&machine, &format!("{EXTERNAL}:9000"))?;
    ensure!(seen_as.ip().to_string() == ADDRESS, "the guest sees {seen_as}");
    client::ping(lab.guest(1)?, ADDRESS)?;
    // The watch is for one address; what has left with this one was meant to.
    lab.leaks.forget()?;
    lab.assert_invariants()
}
