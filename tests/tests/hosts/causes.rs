//! `vmnat doctor` names the true cause on each of the hosts that cut their guests off, before vmnat is up.

use std::{fs, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vmnat_tests::hosts::{
    Tree,
    software::{by_hand, dnsmasq, docker, firewalld, libvirt, nftables, ufw},
    stage::{Network, Stage},
};

/// Makes each cause a test of its name.
macro_rules! name_causes {
    ($($cause:ident),+ $(,)?) => {
        $(#[test] fn $cause() -> anyhow::Result<()> { super::$cause().must_be_named() })+
    };
}

mod short {
    name_causes!(docker_drops);
}

mod full {
    name_causes!(
        firewalld_rejects,
        a_ruleset_by_hand_drops,
        ufw_drops,
        docker_drops_what_libvirt_accepts,
        a_flush_takes_the_masquerade,
        the_networks_taps_are_loose,
        the_resolver_is_dead,
    );
}

/// What `vmnat doctor` exits with when guests lack something.
const LACKING: i32 = 14;

/// A host, and what takes something from its guests.
struct Cause {
    tree: Tree,
    build: fn(&mut Stage) -> Result<()>,
    /// The finding that comes first.
    id: &'static str,
    /// What that finding and its evidence name.
    names: &'static [&'static str],
}

impl Cause {
    fn must_be_named(&self) -> Result<()> {
        let mut stage = Stage::new(self.tree, &[Network::DEFAULT])?;
        (self.build)(&mut stage)?;
        let output = stage.lab.vmnat(&["doctor", "--json"])?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        let document: Value = serde_json::from_str(&printed).with_context(|| format!("{printed}{error}"))?;
        let report = document.pointer("/rows/0").context("no report")?;
        let problems: Vec<&Value> = report["findings"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|one| one["severity"] == "problem")
            .collect();
        for problem in &problems {
            println!("{}: {}\n  {}", problem["id"], problem["sentence"], problem["evidence"]);
        }
        println!("verdict: {}", report["verdict"]);
        ensure!(
            output.status.code() == Some(LACKING),
            "exit code {:?}: {error}{printed}",
            output.status.code()
        );
        ensure!(report["cause"] == self.id, "the cause is {}, not {}: {printed}", report["cause"], self.id);
        let first = problems.first().context("no problem among the findings")?;
        ensure!(first["id"] == self.id, "the first problem is {first}");
        let said = format!("{} {}", first["sentence"], first["evidence"]);
        for name in self.names {
            ensure!(said.contains(name), "no {name:?} in {said}");
        }
        stage.keep_quiet();
        Ok(())
    }
}

fn own_bridge(stage: &mut Stage) -> Result<()> {
    by_hand::bridges(stage)?;
    dnsmasq::start(stage)?;
    by_hand::nat(stage)
}

fn docker_drops() -> Cause {
    Cause {
        tree: Tree::Bookworm,
        build: |stage| {
            docker::start(stage)?;
            own_bridge(stage)
        },
        id: "forward-policy",
        names: &["Docker", "FORWARD"],
    }
}

fn firewalld_rejects() -> Cause {
    Cause {
        build: |stage| {
            firewalld::start(stage)?;
            by_hand::bridges(stage)?;
            dnsmasq::start(stage)?;
            firewalld::put_bridge_into(stage, "block")?;
            firewalld::reload(stage)?;
            by_hand::nat(stage)
        },
        id: "forward-rule",
        names: &["firewalld", "reject"],
        ..docker_drops()
    }
}

fn a_ruleset_by_hand_drops() -> Cause {
    Cause {
        build: |stage| {
            nftables::load_without_guests(stage)?;
            libvirt::start(stage, libvirt::Backend::Default)
        },
        id: "forward-policy",
        names: &["inet filter", "forward", "drop"],
        ..docker_drops()
    }
}

fn ufw_drops() -> Cause {
    Cause {
        build: |stage| {
            own_bridge(stage)?;
            ufw::enable(stage)
        },
        id: "forward-policy",
        names: &["ufw"],
        ..docker_drops()
    }
}

fn docker_drops_what_libvirt_accepts() -> Cause {
    Cause {
        tree: Tree::Trixie,
        build: |stage| {
            docker::start(stage)?;
            libvirt::start(stage, libvirt::Backend::Nftables)
        },
        ..docker_drops()
    }
}

fn a_flush_takes_the_masquerade() -> Cause {
    Cause {
        build: |stage| {
            libvirt::start(stage, libvirt::Backend::Default)?;
            stage.run(&["nft", "flush", "ruleset"]).map(drop)
        },
        id: "no-masquerade",
        names: &["192.168.122."],
        ..docker_drops()
    }
}

/// libvirt leaves the taps of guests that run without a bridge.
fn the_networks_taps_are_loose() -> Cause {
    Cause {
        build: |stage| {
            libvirt::start(stage, libvirt::Backend::Default)?;
            libvirt::virsh(stage, &["net-destroy", "default"])?;
            libvirt::virsh(stage, &["net-start", "default"]).map(drop)
        },
        id: "tap-without-master",
        names: &["vnet1"],
        ..docker_drops()
    }
}

fn the_resolver_is_dead() -> Cause {
    Cause {
        build: |stage| {
            libvirt::start(stage, libvirt::Backend::Default)?;
            fs::write(stage.lab.host.file("/etc/resolv.conf"), "nameserver 198.51.100.200\n")?;
            // dnsmasq looks at the file's time, in whole seconds.
            thread::sleep(Duration::from_secs(2));
            Ok(())
        },
        id: "gateway-dns-dead",
        names: &["the host's resolver 198.51.100.200 does not answer", "/etc/resolv.conf"],
        ..docker_drops()
    }
}
