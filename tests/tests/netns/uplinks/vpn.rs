//! A VPN that owns the default route, the way `wg-quick` sets it up: a table of its own, a rule for all packets without its mark, and
//! a rule that keeps the main table's other routes. Nothing of a guest leaves beside it.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use vmnat_tests::lab::{
    EXTERNAL, Lab, SERVER, SERVER_ECHO, Setup,
    client::{self, Asker, Conversation},
    firewall::NFT_FORWARD_DROP,
    frame::Tap,
    guest_address, octets,
    uplink::Tunnel,
    vmnat::Hook,
    wait_until,
    watch::LeakWatch,
};

on_both_hooks!(
    a_vpn_that_is_no_uplink_is_honoured,
    a_vpn_that_owns_the_default_route_is_followed,
    a_kill_switch_holds_while_the_vpn_flaps,
    nothing_leaks_when_a_followed_vpn_goes_while_no_agent_runs,
);

/// The host's address in the VPN.
const INSIDE: &str = "10.8.0.2";
const PATIENCE: Duration = Duration::from_secs(10);
const MOMENT: Duration = Duration::from_millis(300);

/// A VPN between the host and the router. What it carries is not seen on the wire.
fn connect(lab: &Lab) -> Result<Tunnel> {
    let vpn = Tunnel::open(&lab.host, &lab.router, "vpn0", false)?;
    lab.router.ip("address add 10.8.0.1/24 dev vpn0\nlink set vpn0 up mtu 1400\n")?;
    lab.host.ip(&format!(
        "address add {INSIDE}/24 dev vpn0\n\
         link set vpn0 up mtu 1400\n\
         route add default dev vpn0 table 51820\n"
    ))?;
    Ok(vpn)
}

/// The rules, which stay when the VPN goes.
fn rule(lab: &Lab) -> Result<()> {
    lab.host.ip("rule add not fwmark 51820 table 51820 priority 1001\n\
         rule add table main suppress_prefixlength 0 priority 1000\n")
}

/// Frames on the wire that are about the world: the host itself keeps quiet during these tests.
fn in_clear(wire: &Tap) -> Result<usize> {
    let server = octets(SERVER)?;
    let frames = wire.drain();
    Ok(frames.iter().filter(|frame| frame.get(30..34) == Some(&server)).count())
}

fn seen_as(lab: &Lab, guest: usize) -> Result<String> {
    let asker = Asker::new(lab.guest(guest)?, 0)?;
    Ok(asker.ask_within(SERVER_ECHO, 20, MOMENT)?.ip().to_string())
}

fn is_seen_as(lab: &Lab, guest: usize, address: &str) -> bool {
    seen_as(lab, guest).is_ok_and(|seen| seen == address)
}

/// `up --uplink enp3s0`, and the host masquerades what leaves by the VPN: 1. it comes up while a guest converses, and from then on
///    nothing of guests is on the wire; 2. guests go by the VPN, as the kernel decides; 3. a call by the wire is not answered
///    there; 4. `status` names the VPN; 5. it goes, and guests are the uplink's again.
fn a_vpn_that_is_no_uplink_is_honoured(hook: Hook) -> Result<()> {
    let mut lab = Lab::with(Setup { ip_forward: true, ..Setup::default() })?;
    lab.host.nft(
        "table ip nat { chain post { type nat hook postrouting priority 100; oifname vpn0 masquerade; }; }",
    )?;
    lab.up(hook)?;
    lab.vmnat_ok(&["dnat", "add", &format!("9000:{}:7000/tcp+udp", guest_address(1))])?;
    let stranger = Asker::new(&lab.world, 0)?;
    stranger.ask(&format!("{EXTERNAL}:9000"))?;
    let mut conversation = Conversation::open(lab.guest(1)?, SERVER_ECHO)?;
    conversation.exchange(10_000)?;
    let vpn = connect(&lab)?;
    rule(&lab)?;
    thread::sleep(MOMENT);
    let wire = Tap::open(&lab.router, "wan0")?;
    ensure!(is_seen_as(&lab, 2, INSIDE), "guest 2 is seen as {:?}", seen_as(&lab, 2));
    client::must_fail("a conversation of the uplink", conversation.exchange(1000))?;
    client::converse(lab.guest(2)?, SERVER_ECHO)?;
    client::ping(lab.guest(1)?, SERVER)?;
    let call = Asker::new(&lab.world, 0)?.ask_within(&format!("{EXTERNAL}:9000"), 20, MOMENT);
    client::must_fail("a call by the wire, whose answer would leave beside the VPN", call)?;
    let status = lab.vmnat_ok(&["status"])?;
    ensure!(status.contains("leaves by vpn0, which is no uplink"), "status says nothing of it: {status}");
    let clear = in_clear(&wire)?;
    ensure!(clear == 0, "{clear} packets of guests beside the VPN");
    drop(vpn);
    wait_until("guest 1 goes by the uplink", PATIENCE, || Ok(is_seen_as(&lab, 1, EXTERNAL)))?;
    ensure!(in_clear(&wire)? > 0, "the capture sees nothing: the test is void");
    lab.assert_sound_but_for_invalid_packets()
}

/// `up` without `--uplink`, with FORWARD on drop: 1. the VPN comes, and guests leave by it, translated by vmnat; 2. it goes, and they
///    leave by the other; 3. a private source is never on the wire.
fn a_vpn_that_owns_the_default_route_is_followed(hook: Hook) -> Result<()> {
    let mut lab = Lab::with(Setup { ip_forward: true, ..Setup::default() })?;
    lab.host.nft(NFT_FORWARD_DROP)?;
    lab.vmnat_ok(&["up", "--bridge", "virbr0", "--hook", hook.name()])?;
    ensure!(is_seen_as(&lab, 1, EXTERNAL), "seen as {:?}", seen_as(&lab, 1));
    rule(&lab)?;
    for round in 0..2 {
        let vpn = connect(&lab)?;
        let inside = LeakWatch::new(&lab.router, "vpn0", octets(INSIDE)?)?;
        wait_until("guests go by the VPN", PATIENCE, || Ok(is_seen_as(&lab, 1, INSIDE)))?;
        let wire = Tap::open(&lab.router, "wan0")?;
        let seen = client::converse(lab.guest(2)?, SERVER_ECHO)?;
        ensure!(seen.ip().to_string() == INSIDE, "round {round}: seen as {seen}");
        let uplinks = lab.rows(&["uplink", "list"])?;
        ensure!(uplinks.iter().any(|row| row["uplink"] == "vpn0"), "uplinks {uplinks:?}");
        let clear = in_clear(&wire)?;
        ensure!(clear == 0, "round {round}: {clear} packets of guests beside the VPN");
        inside.assert_none()?;
        drop(inside);
        drop(vpn);
        wait_until("guests go by the first uplink", PATIENCE, || Ok(is_seen_as(&lab, 1, EXTERNAL)))?;
    }
    lab.assert_sound_but_for_invalid_packets()
}

/// The VPN's table ends in an unreachable route, as kill switches have it. While guests send all the time: 1. the VPN goes and comes
///    three times; 2. not a packet of theirs is on the wire, be the VPN there or not; 3. while it is away they are told.
fn a_kill_switch_holds_while_the_vpn_flaps(hook: Hook) -> Result<()> {
    let mut lab = Lab::with(Setup { ip_forward: true, ..Setup::default() })?;
    lab.host.ip("route add unreachable default table 51820 metric 4278198272\n")?;
    rule(&lab)?;
    let mut vpn = Some(connect(&lab)?);
    lab.vmnat_ok(&["up", "--bridge", "virbr0", "--hook", hook.name()])?;
    wait_until("guests go by the VPN", PATIENCE, || Ok(is_seen_as(&lab, 1, INSIDE)))?;
    let wire = Tap::open(&lab.router, "wan0")?;
    let done = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let chatter = scope.spawn(|| -> Result<()> {
            let asker = Asker::new(lab.guest(2)?, 0)?;
            while !done.load(Ordering::Relaxed) {
                // The kernel reports on a send that an earlier datagram was refused.
                asker.send(SERVER_ECHO, b"all the time").ok();
                thread::sleep(Duration::from_millis(2));
            }
            Ok(())
        });
        let flapped = (0..3).try_for_each(|round| -> Result<()> {
            drop(vpn.take());
            thread::sleep(MOMENT);
            ensure!(seen_as(&lab, 1).is_err(), "round {round}: online without the VPN");
            vpn = Some(connect(&lab)?);
            wait_until("guests go by the VPN", PATIENCE, || Ok(is_seen_as(&lab, 1, INSIDE)))
        });
        done.store(true, Ordering::Relaxed);
        chatter.join().map_err(|_| anyhow::anyhow!("the chatter panicked"))??;
        flapped
    })?;
    let clear = in_clear(&wire)?;
    ensure!(clear == 0, "{clear} packets of guests beside the VPN");
    lab.host.ip("rule delete priority 1001\n").context("the host's own traffic by the wire again")?;
    client::ping(&lab.host, SERVER)?;
    ensure!(in_clear(&wire)? > 0, "the capture sees nothing: the test is void");
    lab.assert_sound_but_for_invalid_packets()
}

/// Nobody tells the programs that the default route has moved: what the kernel then forwards by the other interface meets the guard.
fn nothing_leaks_when_a_followed_vpn_goes_while_no_agent_runs(hook: Hook) -> Result<()> {
    let mut lab = Lab::with(Setup { ip_forward: true, ..Setup::default() })?;
    rule(&lab)?;
    let vpn = connect(&lab)?;
    lab.vmnat_ok(&["up", "--bridge", "virbr0", "--hook", hook.name()])?;
    ensure!(is_seen_as(&lab, 1, INSIDE), "seen as {:?}", seen_as(&lab, 1));
    lab.kill_agent()?;
    drop(vpn);
    thread::sleep(Duration::from_secs(5));
    ensure!(seen_as(&lab, 1).is_err() && seen_as(&lab, 2).is_err(), "online without an uplink");
    lab.leaks.assert_none()?;
    let leaked = lab.counter("leaked_source")?;
    ensure!(leaked > 0, "the kernel has forwarded nothing of {}: the test is void", guest_address(1));
    lab.vmnat_ok(&["up"])?;
    ensure!(is_seen_as(&lab, 1, EXTERNAL), "seen as {:?}", seen_as(&lab, 1));
    lab.assert_sound_but_for_invalid_packets()
}
