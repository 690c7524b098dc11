//! Rules and networks that change under traffic: the guests of vmnat go on talking.

use std::time::Duration;

use anyhow::Result;
use vmnat_tests::{
    hosts::{
        Tree,
        checks::Check,
        software::{by_hand, dnsmasq, docker, libvirt, nftables, ufw},
        stage::{Network, Stage},
        talk::Change,
        variant::Variant,
    },
    lab::RESOLVER,
};

mod full {
    play!(rules, networks, resolver_dead);
}

/// What no guest may notice, on a machine that is busy with other tests.
pub const UNNOTICED: Duration = Duration::from_millis(800);

/// A bridge that is deleted takes its guests' ports along until somebody puts them back.
const RECREATED: Duration = Duration::from_secs(15);

fn rules() -> Variant {
    Variant {
        situation: 6,
        name: "rules-change",
        title: "dockerd, a bridge of one's own; rules are flushed, loaded and re-ordered, Docker is started again",
        tree: Tree::Bookworm,
        networks: &[Network::DEFAULT],
        build: |stage| {
            docker::start(stage)?;
            by_hand::bridges(stage)?;
            dnsmasq::start(stage)?;
            by_hand::nat(stage)
        },
        before: &[
            Check::Ping,
            Check::Tcp,
            Check::Http,
            Check::Udp,
            Check::Dns,
            Check::Fragments,
            Check::Sibling,
            Check::Forward,
        ],
        options: &[],
        after: &[],
        changes: &[
            Change { title: "nft flush ruleset", work: flush, silence: UNNOTICED },
            Change { title: "dockerd is started again", work: restart_docker, silence: UNNOTICED },
            Change { title: "a ruleset that drops is loaded ten times", work: load, silence: UNNOTICED },
            Change { title: "its chains move ahead of all others", work: reorder, silence: UNNOTICED },
            Change { title: "the old ruleset is back", work: restart_docker_after_flush, silence: UNNOTICED },
        ],
    }
}

fn flush(stage: &mut Stage) -> Result<()> {
    stage.run(&["nft", "flush", "ruleset"]).map(drop)
}

fn restart_docker(stage: &mut Stage) -> Result<()> {
    stage.stop("dockerd")?;
    docker::start(stage)
}

fn load(stage: &mut Stage) -> Result<()> {
    (0..10).try_for_each(|_| nftables::load_without_guests(stage))
}

/// The same chains at a priority before which nothing but connection tracking comes.
fn reorder(stage: &mut Stage) -> Result<()> {
    for hook in ["input", "forward"] {
        stage.lab.host.nft(&format!(
            "add table inet early\n\
             add chain inet early {hook} {{ type filter hook {hook} priority -190; policy accept; }}\n\
             add rule inet early {hook} iifname virbr0 drop\n"
        ))?;
    }
    Ok(())
}

fn restart_docker_after_flush(stage: &mut Stage) -> Result<()> {
    flush(stage)?;
    restart_docker(stage)
}

fn networks() -> Variant {
    Variant {
        name: "networks-change",
        title: "ufw, libvirt 9.0; its network is destroyed and started (virbr0 anew, with the spanning tree), libvirtd and ufw start again",
        build: |stage| {
            ufw::enable(stage)?;
            libvirt::start(stage, libvirt::Backend::Default)?;
            by_hand::forward(stage)
        },
        before: &[Check::Forward],
        changes: &[
            Change { title: "net-destroy and net-start", work: recreate, silence: RECREATED },
            Change { title: "ufw reload", work: |stage| ufw::reload(stage), silence: UNNOTICED },
            Change { title: "libvirtd is started again", work: restart_libvirt, silence: UNNOTICED },
        ],
        ..rules()
    }
}

fn recreate(stage: &mut Stage) -> Result<()> {
    libvirt::virsh(stage, &["net-destroy", "default"])?;
    libvirt::virsh(stage, &["net-start", "default"])?;
    stage.plug()
}

fn restart_libvirt(stage: &mut Stage) -> Result<()> {
    stage.stop("libvirtd")?;
    libvirt::start_daemon(stage)
}

fn resolver_dead() -> Variant {
    Variant {
        name: "resolver-dead",
        title: "libvirt 9.0; the resolver that the host itself asks does not answer",
        build: |stage| {
            stage.write("/etc/resolv.conf", "nameserver 192.0.2.53\n")?;
            libvirt::start(stage, libvirt::Backend::Default)?;
            by_hand::forward(stage)
        },
        before: &[Check::GatewayDns, Check::Forward],
        options: &["--dns", RESOLVER],
        changes: &[],
        ..rules()
    }
}
