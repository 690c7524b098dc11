//! `vmnat doctor`: what it says agrees with what packets do, on rules, settings and wires of every kind.

#![expect(clippy::indexing_slicing, reason = "JSON that lacks something answers null")]

mod rules;

use std::{fs, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use rules::{IPTABLES, NFT};
use serde_json::Value;
use vmnat_tests::lab::{
    EXTERNAL, GATEWAY, Lab, SERVER, SERVER_ECHO, Setup,
    client::{self, Asker},
    firewall::{self, NFT_DROPS, NFT_MASQUERADE},
    snapshot::Snapshot,
    vmnat::{self, Hook},
    wait_until,
};

/// One row: the report, and the exit code.
struct Said {
    report: Value,
    code: Option<i32>,
}

impl Said {
    fn cause(&self) -> &str {
        self.report["cause"].as_str().unwrap_or("none")
    }

    fn verdict(&self) -> &str {
        self.report["verdict"].as_str().unwrap_or_default()
    }

    /// The problems that keep guests from the world.
    fn cuts(&self) -> Vec<&str> {
        let findings = self.report["findings"].as_array().into_iter().flatten();
        let cuts = findings.filter(|finding| finding["severity"] == "problem" && finding["takes"] == "world");
        cuts.filter_map(|finding| finding["id"].as_str()).collect()
    }

    /// The finding of that id.
    fn finding(&self, id: &str) -> Result<&Value> {
        let mut findings = self.report["findings"].as_array().into_iter().flatten();
        findings
            .find(|finding| finding["id"] == id)
            .with_context(|| format!("nothing of {id} in {:#}", self.report))
    }

    fn ends_with(self, code: i32) -> Result<Self> {
        ensure!(self.code == Some(code), "it ends with {:?} instead of {code}: {:#}", self.code, self.report);
        Ok(self)
    }
}

fn ask(lab: &Lab, arguments: &[&str]) -> Result<Said> {
    let output = lab.vmnat(&[&["doctor", "--json"], arguments].concat())?;
    let error = String::from_utf8_lossy(&output.stderr);
    let mut value: Value =
        serde_json::from_slice(&output.stdout).with_context(|| format!("doctor says no JSON: {error}"))?;
    ensure!(value["schema"] == 1 && value["kind"] == "doctor", "{value:#}");
    Ok(Said { report: row(&mut value)?, code: output.status.code() })
}

fn row(listing: &mut Value) -> Result<Value> {
    Ok(listing.pointer_mut("/rows/0").context("no row")?.take())
}

/// A host that forwards and translates, as most do before a firewall comes.
fn open_host() -> Result<Lab> {
    let lab = Lab::with(Setup { ip_forward: true, ..Setup::default() })?;
    lab.host.nft(NFT_MASQUERADE)?;
    Ok(lab)
}

fn udp_passes(lab: &Lab) -> Result<bool> {
    let asker = Asker::new(lab.guest(1)?, 0)?;
    Ok(asker.ask_within(SERVER_ECHO, 100, Duration::from_millis(400)).is_ok())
}

/// Loads rules that are written on few lines: nft wants a line's end before a brace.
fn nft(lab: &Lab, rules: &str) -> Result<()> {
    lab.host.nft(&format!("{}\n", rules.replace(" }", "\n}")))
}

/// 1. packets of a guest pass or not; 2. doctor says the same.
fn agrees(lab: &Lab, name: &str) -> Result<bool> {
    let passes = udp_passes(lab)?;
    let said = ask(lab, &[])?;
    ensure!(
        said.cuts().is_empty() == passes,
        "{name}: packets {} and doctor says {}: {:?} {:#}",
        if passes { "pass" } else { "do not pass" },
        said.verdict(),
        said.cuts(),
        said.report
    );
    Ok(passes)
}

#[test]
fn what_it_says_of_nftables_agrees_with_what_packets_do() -> Result<()> {
    let mut lab = open_host()?;
    for (name, passes, rules) in NFT {
        nft(&lab, rules).with_context(|| name.to_owned())?;
        ensure!(agrees(&lab, name)? == passes, "{name}: the test's own word is wrong");
        lab.host.nft("flush ruleset\n")?;
        lab.host.nft(NFT_MASQUERADE)?;
    }
    lab.assert_invariants()
}

fn iptables_agree(program: &str) -> Result<()> {
    let mut lab = open_host()?;
    for (name, passes, rules) in IPTABLES {
        let script = format!("*filter\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n{rules}COMMIT\n");
        lab.host.exec_with(&[program], &script).with_context(|| name.to_owned())?;
        ensure!(agrees(&lab, name)? == passes, "{name}: the test's own word is wrong");
    }
    lab.assert_invariants()
}

#[test]
fn what_it_says_of_iptables_nft_agrees_with_what_packets_do() -> Result<()> {
    iptables_agree("iptables-nft-restore")
}

#[test]
fn what_it_says_of_iptables_legacy_agrees_with_what_packets_do() -> Result<()> {
    iptables_agree("iptables-legacy-restore")
}

/// 1. with no program to be found, the same is said; 2. no table of `ip_tables` is made; 3. with some, they
///    are read without a program.
#[test]
fn no_tool_is_needed_and_no_table_is_made() -> Result<()> {
    let mut lab = open_host()?;
    lab.host.nft(NFT_DROPS)?;
    let names = |lab: &Lab| {
        lab.host.run(|| fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default())
    };
    ensure!(names(&lab).is_empty(), "tables of iptables-legacy are there from the start");
    let program = vmnat::program()?;
    let program = program.to_str().context("a path that is no text")?;
    let bare = |lab: &Lab| -> Result<Value> {
        let output =
            lab.host.output(&["/usr/bin/env", "-i", "PATH=/nonexistent", program, "doctor", "--json"], "")?;
        row(&mut serde_json::from_slice(&output.stdout)?)
    };
    let report = bare(&lab)?;
    ensure!(report["cause"] == "forward-policy", "{report:#}");
    ensure!(
        report["findings"][0]["evidence"][0]
            .as_str()
            .is_some_and(|line| line.contains("chain forward of table inet filter")),
        "{report:#}"
    );
    ensure!(names(&lab).is_empty(), "doctor has made tables of iptables-legacy");
    lab.host.nft("flush ruleset\n")?;
    lab.host.nft(NFT_MASQUERADE)?;
    firewall::legacy_drops(&lab.host)?;
    let report = bare(&lab)?;
    ensure!(
        report["findings"][0]["evidence"][0]
            .as_str()
            .is_some_and(|line| line.contains("(iptables-legacy): policy drop")),
        "{report:#}"
    );
    lab.assert_invariants()
}

/// Settings and wires, one after the other, each put right again.
#[test]
fn settings_and_wires_are_told() -> Result<()> {
    let mut lab = open_host()?;
    client::ping(lab.guest(1)?, SERVER)?;
    ask(&lab, &[])?.ends_with(0)?;
    let cause = |lab: &Lab, wanted: &str| -> Result<Said> {
        let said = ask(lab, &[])?.ends_with(14)?;
        ensure!(said.cause() == wanted, "{} instead of {wanted}: {:#}", said.cause(), said.report);
        Ok(said)
    };
    lab.host.set_sysctl("net/ipv4/ip_forward", "0")?;
    cause(&lab, "ip-forward-off")?;
    lab.host.set_sysctl("net/ipv4/ip_forward", "1")?;
    lab.host.set_sysctl("net/ipv4/conf/virbr0/forwarding", "0")?;
    cause(&lab, "conf-forwarding-off")?;
    lab.host.set_sysctl("net/ipv4/conf/virbr0/forwarding", "1")?;
    lab.host.ip("link set vnet1 nomaster\n")?;
    let said = cause(&lab, "tap-without-master")?;
    ensure!(
        said.finding("tap-without-master")?["mend"][0] == "ip link set vnet1 master virbr0 up",
        "{:#}",
        said.report
    );
    lab.host.ip("link set vnet1 master virbr0 up\n")?;
    lab.host
        .ip("link add other0 type veth peer name other1\naddress add 192.168.122.200/25 dev other0\nlink set other0 up\n")?;
    cause(&lab, "overlap")?;
    lab.host.ip("link delete other0\n")?;
    lab.host.nft("flush ruleset\n")?;
    cause(&lab, "no-masquerade")?;
    lab.host.nft(NFT_MASQUERADE)?;
    lab.host.ip(&format!("address delete {EXTERNAL}/24 dev enp3s0\n"))?;
    let said = ask(&lab, &["--uplink", "enp3s0"])?.ends_with(14)?;
    ensure!(said.cause() == "uplink-without-address", "{:#}", said.report);
    lab.host.ip(&format!("address add {EXTERNAL}/24 dev enp3s0\nroute add default via 203.0.113.1\n"))?;
    lab.host.ip("link set virbr0 down\n")?;
    cause(&lab, "bridge-down")?;
    lab.host.ip("link set virbr0 up\n")?;
    lab.refused_with(4, &["doctor", "--bridge", "nobridge"])?;
    lab.refused_with(4, &["doctor", "--bridge", "vnet1"])?;
    lab.refused_with(4, &["doctor", "--uplink", "noth0"])?;
    lab.assert_invariants()
}

/// `br_netfilter` shows siblings' frames to a policy that drops, and doctor says so.
#[test]
fn siblings_that_a_firewall_divides_are_told() -> Result<()> {
    let mut lab = Lab::with(Setup { ip_forward: true, br_netfilter: true, ..Setup::default() })?;
    lab.host.nft(NFT_MASQUERADE)?;
    nft(
        &lab,
        "table ip f { chain c { type filter hook forward priority 0; policy drop;
        ct state established accept; iifname virbr0 oifname enp3s0 accept } }",
    )?;
    client::ping(lab.guest(1)?, SERVER)?;
    let sibling =
        client::ping_as(lab.guest(1)?, 5, &vmnat_tests::lab::guest_address(2), Duration::from_millis(400));
    client::must_fail("a ping between guests", sibling)?;
    let said = ask(&lab, &[])?.ends_with(14)?;
    ensure!(said.cause() == "siblings-drop" && said.cuts().is_empty(), "{:#}", said.report);
    lab.assert_invariants()
}

/// 1. a firewall drops, and vmnat would get past it; 2. vmnat runs: nothing is wrong; 3. its agent dies: that is.
#[test]
fn what_vmnat_gets_past_is_no_problem_while_it_runs() -> Result<()> {
    let mut lab = open_host()?;
    nft(&lab, "table ip f { chain c { type filter hook forward priority 0; policy drop; } }")?;
    client::ping(lab.guest(1)?, GATEWAY)?;
    let said = ask(&lab, &[])?.ends_with(14)?;
    ensure!(said.verdict().contains("run `vmnat up --bridge virbr0`"), "{}", said.verdict());
    ensure!(said.finding("forward-policy")?["vmnat"] == "yes");
    for hook in [Hook::Tcx, Hook::Clsact] {
        lab.up(hook)?;
        client::ping(lab.guest(1)?, SERVER)?;
        let said = ask(&lab, &[])?.ends_with(0)?;
        ensure!(
            said.verdict().starts_with("Guests on virbr0 are online through vmnat"),
            "{}",
            said.verdict()
        );
        ensure!(said.finding("forward-policy")?["severity"] == "note");
        ensure!(said.finding("vmnat-serves")?["severity"] == "fine");
        if hook == Hook::Tcx {
            lab.vmnat_ok(&["down"])?;
        }
    }
    nix::sys::signal::kill(lab.agent()?, nix::sys::signal::Signal::SIGKILL)?;
    wait_until("doctor sees that the agent is dead", Duration::from_secs(5), || {
        Ok(ask(&lab, &[])?.cause() == "agent-dead")
    })?;
    lab.assert_invariants()
}

/// 1. on a sound host every step goes through, and nothing is left; 2. behind a firewall, those to the world fail, and the
///    rule that counted the loss is named; 3. through vmnat they go through again.
#[test]
fn a_probe_tries_it_all_and_leaves_nothing() -> Result<()> {
    let mut lab = open_host()?;
    let before = Snapshot::take(&lab.host)?;
    let probe = ["--probe", "--probe-target", SERVER_ECHO];
    let said = ask(&lab, &probe)?;
    for step in ["probe-gateway", "probe-ping", "probe-tcp", "probe-fragments", "probe-mtu"] {
        ensure!(said.finding(step)?["severity"] == "fine", "{step}: {:#}", said.report);
    }
    Snapshot::take(&lab.host)?.assert_same_as(&before)?;
    nft(&lab, "table ip f { chain c { type filter hook forward priority 0; iifname virbr0 counter drop } }")?;
    let before = Snapshot::take(&lab.host)?;
    let said = ask(&lab, &probe)?.ends_with(14)?;
    ensure!(said.cause() == "forward-rule", "the cause that shows comes first: {:#}", said.report);
    for step in ["probe-ping", "probe-tcp"] {
        let finding = said.finding(step)?;
        ensure!(finding["severity"] == "problem", "{step}: {finding:#}");
        ensure!(
            finding["evidence"][0]
                .as_str()
                .is_some_and(|line| line.contains("dropped meanwhile by chain c of table ip f")),
            "{finding:#}"
        );
    }
    Snapshot::take(&lab.host)?.assert_same_as(&before)?;
    lab.up(Hook::of_the_kernel())?;
    let said = ask(&lab, &probe)?;
    for step in ["probe-gateway", "probe-ping", "probe-tcp", "probe-fragments", "probe-mtu"] {
        ensure!(said.finding(step)?["severity"] == "fine", "{step}: {:#}", said.report);
    }
    lab.assert_invariants()
}

/// Killed in the midst, a probe leaves no interface.
#[test]
fn a_probe_that_is_killed_leaves_nothing() -> Result<()> {
    let mut lab = open_host()?;
    let has_port =
        |lab: &Lab| -> Result<bool> { Ok(lab.host.exec(&["ip", "-brief", "link"])?.contains("vmnat-p")) };
    let program = vmnat::program()?;
    let program = program.to_str().context("a path that is no text")?;
    for signal in [nix::sys::signal::Signal::SIGINT, nix::sys::signal::Signal::SIGKILL] {
        let probe = lab.host.start(&[program, "doctor", "--probe"])?;
        wait_until("the probe's port is there", Duration::from_secs(10), || has_port(&lab))?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(probe.id().cast_signed()), signal)?;
        wait_until("the probe's port is gone", Duration::from_secs(10), || Ok(!has_port(&lab)?))?;
        thread::sleep(Duration::from_millis(100));
    }
    lab.assert_invariants()
}

/// What is printed for people has the verdict first, and the command that mends it.
#[test]
fn people_read_the_verdict_first() -> Result<()> {
    let mut lab = open_host()?;
    lab.host.nft(NFT_DROPS)?;
    let output = lab.vmnat(&["doctor"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        text.starts_with(
            "Guests on virbr0 are offline because a hand-written nftables chain has the policy drop"
        ),
        "{text}"
    );
    ensure!(text.contains("\n  mend: nft insert rule inet filter forward iifname virbr0 accept\n"), "{text}");
    ensure!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    lab.assert_invariants()
}
