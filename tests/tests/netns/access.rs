//! What guests may reach, and who may call them, while conversations go on.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use vmnat_tests::lab::{
    EXTERNAL, GATEWAY, GATEWAY_ECHO, Lab, SERVER, SERVER_ECHO, SERVER_HTTP, STRANGER,
    client::{self, Asker, Conversation, PATIENCE},
    firewall::NFT_FORWARD_DROP,
    frame::Tap,
    guest_address,
    namespace::Namespace,
    vmnat::Hook,
};

on_both_hooks!(
    guests_reach_what_the_lists_leave_them,
    a_change_ends_the_conversations_that_it_forbids,
    who_may_not_call_reaches_no_guest,
    an_allow_opens_another_network_and_nothing_more,
    a_rule_that_cannot_be_is_refused,
);

/// How long an answer that must not come is waited for.
const MOMENT: Duration = Duration::from_millis(400);

/// The guest of a second network.
const OTHER: &str = "192.168.150.10";

fn cannot_ask(guest: &Namespace, port: u16, to: &str) -> Result<()> {
    let attempt = Asker::new(guest, port)?.ask_within(to, 8, MOMENT);
    client::must_fail(&format!("UDP to {to}"), attempt)
}

fn cannot_connect(from: &Namespace, to: &str) -> Result<()> {
    client::must_fail(&format!("TCP to {to}"), client::connect(from, None, to, MOMENT))
}

/// 1. a network is denied but for one port of one server: TCP to it goes, UDP and ping and HTTP do not, and the guest is told so; 2. its
///    gateway, its sibling and callers by a forward are there as ever; 3. `status` says it all; 4. `none` opens it again.
fn guests_reach_what_the_lists_leave_them(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    let allowed = format!("{SERVER}:7000/tcp");
    lab.up_with(hook, &["--deny", "198.51.100.0/24", "--allow", &allowed])?;
    lab.vmnat_ok(&["dnat", "add", &format!("8080:{}:80", guest_address(1))])?;
    let guest = lab.guest(1)?;
    let wire = Tap::open(guest, "eth0")?;
    client::converse(guest, SERVER_ECHO).context("what is allowed")?;
    cannot_ask(guest, 31_000, SERVER_ECHO)?;
    wire.expect("administratively prohibited", PATIENCE, |packet| packet.icmp() == Some((3, 13)))?;
    cannot_connect(guest, SERVER_HTTP)?;
    cannot_connect(guest, &format!("{STRANGER}:7000"))?;
    client::must_fail("a ping", client::ping_as(guest, 7, SERVER, MOMENT))?;
    ensure!(lab.counter("access_denied")? >= 4, "the refusals are not counted");

    client::converse(guest, GATEWAY_ECHO).context("a service of the host")?;
    client::ping(guest, GATEWAY)?;
    client::ping(guest, &guest_address(2))?;
    client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/").context("by the forward")?;

    let status = lab.vmnat_ok(&["status"])?;
    for told in [
        "FORWARD rules of the host's firewall do not apply to these guests",
        "only answers, and what port forwards lead to guests",
        "198.51.100.0/24",
        &allowed,
    ] {
        ensure!(status.contains(told), "status does not say \"{told}\":\n{status}");
    }
    lab.vmnat_ok(&["up", "--deny", "none"])?;
    client::ask(guest, SERVER_ECHO)?;
    let rules = lab.rows(&["access", "list"])?;
    ensure!(rules.len() == 1 && rules.iter().all(|rule| rule["verb"] == "allow"), "{rules:?}");
    lab.assert_sound_but_for_invalid_packets()
}

/// 1. TCP, UDP and another guest's conversation; 2. a rule forbids the first guest's TCP alone: it ends at once, the others go on; 3. without
///    the rule a new one begins.
fn a_change_ends_the_conversations_that_it_forbids(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let mut conversation = Conversation::open(lab.guest(1)?, SERVER_ECHO)?;
    let asker = Asker::new(lab.guest(1)?, 31_000)?;
    let mapped = asker.ask(SERVER_ECHO)?;
    let mut other = Conversation::open(lab.guest(2)?, &format!("{STRANGER}:7000"))?;
    let rule = format!("virbr0={SERVER}:7000/tcp");
    let told = lab.vmnat_ok(&["access", "add", "--deny", &rule])?;
    ensure!(told.contains("ended 1 flows that the access lists forbid"), "{told}");
    client::must_fail("a conversation that is forbidden", conversation.exchange(1000))?;
    let rows = lab.rows(&["flows"])?;
    ensure!(
        !rows
            .iter()
            .any(|row| row["protocol"] == "tcp" && row.pointer("/remote/address") == Some(&SERVER.into()))
    );
    ensure!(asker.ask(SERVER_ECHO)? == mapped, "UDP has moved");
    other.exchange(10_000)?;
    lab.vmnat_ok(&["access", "rm", "--deny", &rule])?;
    client::converse(lab.guest(1)?, SERVER_ECHO)?;
    ensure!(lab.vmnat_ok(&["access", "list"])?.starts_with("no access lists"));
    lab.assert_sound_but_for_invalid_packets()
}

/// A forward of TCP and UDP, and an open network: 1. a stranger may call neither, the server may call both; 2. what the server has
///    begun ends when it may not either; 3. what guests call themselves is not concerned.
fn who_may_not_call_reaches_no_guest(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up_with(hook, &["--filtering", "endpoint-independent", "--deny-from", STRANGER])?;
    lab.vmnat_ok(&["dnat", "add", &format!("9000:{}:7000/tcp+udp", guest_address(1))])?;
    let there = format!("{EXTERNAL}:9000");
    let knock = |from: &str, patience| client::connect_as(&lab.world, from, &there, patience);
    knock(SERVER, PATIENCE).context("the server is kept out")?;
    client::must_fail("a stranger's call", knock(STRANGER, MOMENT))?;
    let caller = Asker::new(lab.guest(1)?, 31_000)?;
    let mapped = caller.ask(SERVER_ECHO)?;
    let stranger = lab.world.run(|| std::net::UdpSocket::bind((STRANGER, 5000)))?;
    stranger.send_to(b"knock", mapped)?;
    ensure!(!caller.hears(MOMENT), "the stranger reaches an open mapping");
    lab.vmnat_ok(&["access", "add", "--allow-from", STRANGER, "--deny-from", "none"])?;
    stranger.send_to(b"knock", mapped)?;
    ensure!(caller.hears(PATIENCE), "an open mapping is closed");

    let mut conversation = Conversation::open(&lab.world, &there)?;
    conversation.exchange(1000)?;
    let told = lab.vmnat_ok(&["access", "add", "--deny-from", "any:7000/tcp"])?;
    ensure!(told.contains("flows that the access lists forbid"), "{told}");
    client::must_fail("a call that is forbidden", conversation.exchange(1000))?;
    client::ask(&lab.world, &there).context("a call by another protocol")?;
    client::converse(lab.guest(1)?, SERVER_ECHO).context("a call of the guest's own")?;
    lab.assert_sound_but_for_invalid_packets()
}

/// A second bridge and its guest.
fn add_network(lab: &Lab) -> Result<Namespace> {
    let guest = Namespace::new("other")?;
    lab.host.ip(&format!(
        "link add virbr1 type bridge stp_state 0 forward_delay 0\n\
         address add 192.168.150.1/24 dev virbr1\n\
         link set virbr1 up\n\
         link add other1 type veth peer name eth0 netns {}\n\
         link set other1 master virbr1 up\n",
        guest.path()
    ))?;
    guest.ip(&format!(
        "link set lo up\n\
         address add {OTHER}/24 dev eth0\n\
         link set eth0 up\n\
         route add default via 192.168.150.1\n"
    ))?;
    Ok(guest)
}

/// A firewall that drops what is forwarded. 1. networks are closed to each other, also when everything is allowed; 2. one port of guest 1 is
///    opened to the other network: TCP in bulk and UDP reach it from the caller's own address, ping, other ports, the sibling and the
///    way back are closed as before; 3. the rule goes: the live conversation ends.
fn an_allow_opens_another_network_and_nothing_more(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    let other = add_network(&lab)?;
    lab.host.nft(NFT_FORWARD_DROP)?;
    lab.up_with(hook, &["--bridge", "virbr1", "--allow", "any"])?;
    let there = format!("{}:7000", guest_address(1));
    cannot_connect(&other, &there)?;
    client::must_fail("a ping", client::ping_as(&other, 7, &guest_address(1), MOMENT))?;

    lab.vmnat_ok(&["access", "add", "--allow", &format!("virbr1={there}")])?;
    let seen = [client::converse(&other, &there)?, client::ask(&other, &there)?];
    ensure!(seen.iter().all(|seen| seen.ip().to_string() == OTHER), "seen as {seen:?}");
    client::must_fail("a ping", client::ping_as(&other, 7, &guest_address(1), MOMENT))?;
    cannot_connect(&other, &format!("{}:80", guest_address(1)))?;
    cannot_connect(&other, &format!("{}:7000", guest_address(2)))?;
    cannot_connect(lab.guest(1)?, &format!("{OTHER}:7000"))?;
    client::ask(&other, SERVER_ECHO)?;

    let mut conversation = Conversation::open(&other, &there)?;
    conversation.exchange(100_000)?;
    // Its way is looked at again every few seconds.
    std::thread::sleep(Duration::from_secs(6));
    conversation.exchange(100_000)?;
    lab.vmnat_ok(&["access", "rm", "--allow", &format!("virbr1={there}")])?;
    client::must_fail("a conversation across networks", conversation.exchange(1000))?;
    lab.assert_sound_but_for_invalid_packets()
}

/// One clear sentence each, and nothing has changed.
fn a_rule_that_cannot_be_is_refused(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    for (arguments, why) in [
        (&["up", "--deny", "10.0.0.0/33"][..], "is no IPv4 network"),
        (&["access", "add", "--deny", "10.0.0.0/8/ospf"], "there is no protocol \"ospf\""),
        (&["access", "add", "--deny", "virbr9=10.0.0.0/8"], "virbr9"),
        (&["access", "add"], "name a rule"),
        (&["access", "rm", "--deny", "10.0.0.0/8"], "there is no such rule"),
    ] {
        let error = lab.vmnat_refused(arguments)?;
        ensure!(error.contains(why), "{arguments:?}: {error}");
    }
    ensure!(lab.rows(&["access", "list"])?.is_empty());
    client::ask(lab.guest(1)?, SERVER_ECHO)?;
    lab.assert_invariants()
}
