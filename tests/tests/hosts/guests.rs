//! A real guest in QEMU, from boot: it asks for its address and tries everything, on hosts that cut it off and then behind vmnat.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vmnat_tests::{
    guest::{ADDRESS, TAP, VirtualMachine},
    hosts::{
        Tree,
        checks::{Check, Findings},
        software::{by_hand, dnsmasq, docker, libvirt, ufw},
        stage::{Network, Stage},
        variant::Variant,
    },
    lab::{EXTERNAL, client},
};

use crate::SERVE_DHCP;

/// Makes each host a test of its name.
macro_rules! boot {
    ($($host:ident),+ $(,)?) => {
        $(#[test] fn $host() -> anyhow::Result<()> { super::boot(&super::$host()) })+
    };
}

mod full {
    boot!(docker_first, ufw_first, libvirt_beside_docker);
}

/// A busy machine of two cores boots the guest in well under this, and then the guest waits for what does not answer.
const PATIENCE: Duration = Duration::from_mins(4);

/// The port of the host that leads to the guest.
const PORT: &str = "8081";

/// Boots the guest without vmnat, and once more with it.
fn boot(host: &Variant) -> Result<()> {
    let mut stage = Stage::new(host.tree, host.networks)?;
    (host.build)(&mut stage)?;
    let before = checks_of_a_guest(&stage, |stage, guest| {
        let rule = format!(
            "iptables -w -t nat -A PREROUTING -i enp3s0 -p tcp --dport {PORT} -j DNAT --to-destination {guest}:80"
        );
        stage.run(&rule.split(' ').collect::<Vec<_>>()).map(drop)
    })?;
    stage.lab.host.outside().exec(&["ip", "link", "delete", TAP])?;
    stage.bring_up_with(host.options)?;
    let after = checks_of_a_guest(&stage, |stage, guest| {
        stage.lab.vmnat_ok(&["dnat", "add", &format!("{PORT}:{guest}:80")]).map(drop)
    })?;
    host.judge(&before, &after, &[])?;
    stage.lab.assert_sound_but_for_invalid_packets()?;
    stage.keep_quiet();
    Ok(())
}

/// What a guest finds from boot on, and what the world finds at it.
fn checks_of_a_guest(stage: &Stage, forward: fn(&Stage, &str) -> Result<()>) -> Result<Findings> {
    stage.lab.leaks.forget()?;
    let mut guest = VirtualMachine::start_fresh(&stage.lab)?;
    let found = guest.found(PATIENCE)?;
    let mut findings = Findings::default();
    for (check, result) in found.checks {
        findings.note(check, result);
    }
    forward(stage, found.leased.as_deref().unwrap_or(ADDRESS))?;
    findings.note(Check::Forward, call(stage));
    findings.note(Check::NoLeak, stage.lab.leaks.assert_none());
    Ok(findings)
}

/// The world fetches the guest's page by the host's address.
fn call(stage: &Stage) -> Result<()> {
    let page = client::get(&stage.lab.world, &format!("{EXTERNAL}:{PORT}"), "/index.html")
        .context("the guest's page through the port forward")?;
    ensure!(page == b"served by the guest\n", "{}", String::from_utf8_lossy(&page));
    Ok(())
}

fn docker_first() -> Variant {
    Variant {
        situation: 1,
        name: "qemu-docker-bridge",
        title: "dockerd first, then a bridge of one's own; a QEMU guest from boot",
        tree: Tree::Bookworm,
        networks: &[Network::DEFAULT],
        build: |stage| {
            docker::start(stage)?;
            own_bridge(stage)
        },
        before: &[
            Check::Ping,
            Check::Tcp,
            Check::Http,
            Check::Dns,
            Check::Fragments,
            Check::Sibling,
            Check::Forward,
        ],
        options: &[],
        after: &[],
        changes: &[],
    }
}

fn own_bridge(stage: &mut Stage) -> Result<()> {
    by_hand::bridges(stage)?;
    dnsmasq::start(stage)?;
    by_hand::nat(stage)
}

/// ufw forwards pings, whole ones and fragments.
fn ufw_first() -> Variant {
    Variant {
        situation: 4,
        name: "qemu-ufw-bridge",
        title: "ufw and a bridge of one's own; a QEMU guest from boot",
        build: |stage| {
            own_bridge(stage)?;
            ufw::enable(stage)
        },
        before: &[Check::Tcp, Check::Http, Check::Dns, Check::GatewayDns, Check::Dhcp, Check::Forward],
        options: SERVE_DHCP,
        ..docker_first()
    }
}

fn libvirt_beside_docker() -> Variant {
    Variant {
        situation: 5,
        name: "qemu-docker-libvirt11",
        title: "dockerd 26, then libvirt 11.3 with its nftables backend; a QEMU guest from boot",
        tree: Tree::Trixie,
        build: |stage| {
            docker::start(stage)?;
            libvirt::start(stage, libvirt::Backend::Nftables)
        },
        ..docker_first()
    }
}
