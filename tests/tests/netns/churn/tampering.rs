//! Somebody takes vmnat's hooks away, puts others before them, or changes the host's firewall and settings: it is told, healed where
//! it is vmnat's own, and nothing leaks meanwhile, beside the agent and without it.

use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, tc::TcAttachOptions};
use vmnat_tests::lab::{
    Lab, SERVER_ECHO, Setup, client, firewall::NFT_DROPS, traffic::Traffic, vmnat::Hook, wait_until,
};
use vmnat_user::{paths::Instance, rawbpf};

use super::{PATIENCE, assert_spared, heals};

on_both_hooks!(
    hooks_that_are_taken_away_come_back,
    nothing_leaks_where_hooks_are_taken_away_without_an_agent,
    firewalls_and_settings_change_under_traffic,
);

/// Takes both hooks, or the one that there is, of an interface away.
fn take_away(lab: &Lab, hook: Hook, interface: &str) -> Result<()> {
    if hook == Hook::Clsact {
        return lab.host.exec(&["tc", "qdisc", "del", "dev", interface, "clsact"]).map(drop);
    }
    for point in ["ingress", "egress"] {
        let pin = Instance::default().link(interface, point);
        if pin.exists() {
            detach(&pin).with_context(|| format!("detach {}", pin.display()))?;
        }
    }
    Ok(())
}

/// As `bpftool link detach` does.
fn detach(pin: &std::path::Path) -> Result<()> {
    const LINK_DETACH: libc::c_long = 34;
    let link = rawbpf::object_get(pin)?;
    let mut attribute = [u64::from(link.as_fd().as_raw_fd().cast_unsigned()), 0];
    // SAFETY: the attribute is live and as large as stated, and holds no pointer.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, LINK_DETACH, attribute.as_mut_ptr(), size_of_val(&attribute)) };
    ensure!(result == 0, "{}", std::io::Error::last_os_error());
    Ok(())
}

/// With `ip_forward` on and every rule open: 1. traffic; 2. the hooks of port and bridge are taken away, one after the other; each
///    comes back by itself, and no stream dies; 3. both of the uplink: nothing leaks, and they come back. What the world sends meanwhile
///    is the host's, which resets it: streams end or go on, and none hangs. The log tells of all.
fn hooks_that_are_taken_away_come_back(hook: Hook) -> Result<()> {
    let mut lab = Lab::with(Setup { ip_forward: true, ..Setup::default() })?;
    lab.up(hook)?;
    let traffic = Traffic::start(&lab)?;
    let mut healed = Vec::new();
    for interface in ["vnet1", "virbr0"] {
        take_away(&lab, hook, interface)?;
        if hook == Hook::Clsact && interface == "vnet1" {
            // Whoever replaces the discipline makes another.
            lab.host.exec(&["tc", "qdisc", "add", "dev", interface, "clsact"]).ok();
        }
        healed.push((interface, heals(&lab)?));
        traffic.moves(Duration::from_secs(30))?;
    }
    if hook == Hook::Clsact {
        lab.host.exec(&["tc", "filter", "del", "dev", "enp3s0", "egress"])?;
        healed.push(("filter of enp3s0", heals(&lab)?));
    }
    let report = traffic.finish()?;
    println!("{hook:?}: hooks were taken away, and back after {healed:?}: {report}");
    assert_spared(&report, Duration::from_secs(5))?;
    let traffic = Traffic::over_forwards(&lab)?;
    take_away(&lab, hook, "enp3s0")?;
    let healed = heals(&lab)?;
    thread::sleep(Duration::from_millis(500));
    let report = traffic.finish()?;
    println!("{hook:?}: both hooks of the uplink, back after {healed:?}: {report}");
    let hung: Vec<_> = report.dead.iter().filter(|death| !death.contains("reset")).collect();
    ensure!(hung.is_empty(), "streams hung: {hung:?}");
    report.assert_same_ports()?;
    client::converse(lab.guest(1)?, SERVER_ECHO)?;
    let log = lab.vmnat_ok(&["logs"])?;
    for what in
        ["inbound at ingress of enp3s0", "guard at egress of enp3s0", "outbound_bridge at ingress of virbr0"]
    {
        ensure!(log.contains(&format!("attached {what}")), "the log does not tell of {what}: {log}");
    }
    lab.assert_sound_but_for_invalid_packets()
}

/// Without an agent nobody heals: 1. the port's hook goes, and the bridge's takes over; 2. the bridge's goes too, and the guard alone
///    keeps what the kernel would forward; 3. the world's way in goes, and the host knows nothing of what comes; `status` names each,
///    and `up` puts all back.
fn nothing_leaks_where_hooks_are_taken_away_without_an_agent(hook: Hook) -> Result<()> {
    let mut lab = Lab::with(Setup { ip_forward: true, ..Setup::default() })?;
    lab.up(hook)?;
    let traffic = Traffic::start(&lab)?;
    lab.kill_agent()?;
    let missing = |what: &str| -> Result<()> {
        let output = lab.vmnat(&["status"])?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(13) && error.contains(what), "{:?}: {error}", output.status);
        Ok(())
    };
    for (interface, what) in [
        ("vnet1", "outbound_port at ingress of vnet1"),
        ("vnet2", "outbound_port at ingress of vnet2"),
        ("virbr0", "outbound_bridge at ingress of virbr0"),
    ] {
        take_away(&lab, hook, interface)?;
        missing(what)?;
        thread::sleep(Duration::from_millis(500));
        lab.leaks.assert_none().with_context(|| format!("after {interface}"))?;
    }
    ensure!(lab.counter("leaked_source")? > 0, "the guard has kept nothing: the kernel forwards nothing");
    lab.vmnat_ok(&["up"])?;
    let healed = heals(&lab)?;
    traffic.moves(Duration::from_secs(30))?;
    let report = traffic.finish()?;
    println!("{hook:?}: hooks taken away without an agent, whole {healed:?} after `up`: {report}");
    report.assert_streams_live()?;
    lab.assert_sound_but_for_invalid_packets()
}

/// Another program before vmnat's is told by `status` and the log, and left alone; when it goes, so does the warning.
#[test]
fn a_program_ahead_of_vmnats_is_told() -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(Hook::Tcx)?;
    let traffic = Traffic::start(&lab)?;
    let pin = Instance::default().program("guard");
    let other = lab.host.run(|| -> Result<_> {
        // Any program that lets everything on will do.
        let mut program = SchedClassifier::from_pin(&pin)?;
        let first = TcAttachOptions::TcxOrder(LinkOrder::first());
        let id = program.attach_with_options("enp3s0", TcAttachType::Ingress, first)?;
        Ok(program.take_link(id)?)
    })?;
    let said = "program guard stands ahead of vmnat's inbound at ingress of enp3s0";
    wait_until("a warning of it", PATIENCE, || Ok(lab.vmnat_ok(&["status"])?.contains(said)))?;
    ensure!(lab.vmnat_ok(&["logs"])?.contains(said), "the log does not tell");
    drop(other);
    let healed = heals(&lab)?;
    let report = traffic.finish()?;
    println!("a program ahead came and went, told no more after {healed:?}: {report}");
    report.assert_unnoticed(1)?;
    lab.assert_invariants()
}

/// The same of a filter, which clsact asks first.
#[test]
fn a_filter_ahead_of_vmnats_is_told() -> Result<()> {
    let mut lab = Lab::new()?;
    lab.host.exec(&["tc", "qdisc", "add", "dev", "enp3s0", "clsact"])?;
    let place = ["dev", "enp3s0", "egress", "prio", "1", "bpf", "bytecode", "1,6 0 0 0", "classid", "0:1"];
    lab.host.exec(&[&["tc", "filter", "add"], &place[..]].concat())?;
    lab.up(Hook::Clsact)?;
    let status = lab.vmnat_ok(&["status"])?;
    let said = "stands ahead of vmnat's guard at egress of enp3s0";
    ensure!(status.contains(said), "{status}");
    lab.host.exec(&["tc", "filter", "del", "dev", "enp3s0", "egress", "prio", "1"])?;
    heals(&lab)?;
    lab.assert_invariants()
}

/// 1. traffic; 2. the ruleset is flushed, and one that drops all is loaded; `br_netfilter` goes on and off; `ip_forward` off and on;
///    `rp_filter` of the loopback and of all becomes strict; the loopback goes down and up: 3. nobody has noticed.
fn firewalls_and_settings_change_under_traffic(hook: Hook) -> Result<()> {
    let mut lab = Lab::with(Setup { ip_forward: true, ..Setup::default() })?;
    lab.up(hook)?;
    let traffic = Traffic::start(&lab)?;
    for _ in 0..2 {
        lab.host.nft(NFT_DROPS)?;
        thread::sleep(Duration::from_millis(200));
        lab.host.nft("flush ruleset\n")?;
        for on in [true, false] {
            lab.set_br_netfilter(on)?;
            thread::sleep(Duration::from_millis(200));
        }
        for value in ["0", "1"] {
            lab.host.set_sysctl("net/ipv4/ip_forward", value)?;
            thread::sleep(Duration::from_millis(300));
        }
        for value in ["1", "0"] {
            lab.host.set_sysctl("net/ipv4/conf/all/rp_filter", value)?;
            lab.host.set_sysctl("net/ipv4/conf/lo/rp_filter", value)?;
            thread::sleep(Duration::from_millis(200));
        }
        lab.host.ip("link set lo down\nlink set lo up\n")?;
    }
    let healed = heals(&lab)?;
    let report = traffic.finish()?;
    println!("{hook:?}: firewalls and settings changed, quiet after {healed:?}: {report}");
    assert_spared(&report, Duration::from_millis(500))?;
    let forwarding = lab.host.run(|| fs::read_to_string("/proc/sys/net/ipv4/conf/virbr0/forwarding"))?;
    ensure!(forwarding.trim() == "1", "the bridge's forwarding is {forwarding}");
    lab.assert_invariants()
}
