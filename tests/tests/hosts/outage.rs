//! Rulesets flushed, reloaded and re-ordered, daemons restarted, bridges deleted and made again, a resolver that dies: all while
//! guests talk.

use std::{fs, thread, time::Duration};

use anyhow::{Result, ensure};
use vmnat_tests::{
    hosts::{
        Tree,
        checks::Check,
        churn::{Churn, LEARNING, REBUILDING},
        software::{by_hand, dnsmasq, docker, firewalld, libvirt, nftables, ufw},
        stage::{Network, Stage},
        variant::Variant,
    },
    lab::{RESOLVER, wait_until},
};

mod short {
    play!(flush);
}

mod full {
    play!(reorder, firewalld_reload, ufw_reload, docker_restart, network_restart, resolver_death);
}

/// No resolver is there.
const DEAD: &str = "198.51.100.200";

/// Long enough that flows notice.
const WHILE: Duration = Duration::from_secs(1);

/// Long enough that files have another time, and that what reloads has settled.
const LONGER: Duration = Duration::from_secs(2);

const NETWORKS: &[Network] = &[Network::DEFAULT];

/// libvirt rejects what nobody inside has asked for.
const REJECTED: &[Check] = &[Check::Forward];

/// libvirt's own rules are flushed with the rest, and nobody puts them back.
fn flush() -> Churn {
    Churn {
        host: Variant {
            situation: 6,
            name: "churn-flush",
            title: "libvirt 9.0, then `nft flush ruleset`",
            tree: Tree::Bookworm,
            networks: NETWORKS,
            build: libvirt_alone,
            before: &[
                Check::Ping,
                Check::Tcp,
                Check::Http,
                Check::Udp,
                Check::Dns,
                Check::Fragments,
                Check::Forward,
                Check::NoLeak,
                Check::Stream,
                Check::OldFlows,
                Check::NewFlows,
            ],
            options: &[],
            after: &[],
            changes: &[],
        },
        happens: |stage, _| {
            stage.run(&["nft", "flush", "ruleset"])?;
            thread::sleep(WHILE);
            Ok(())
        },
        up: &[],
        patience: LEARNING,
    }
}

fn libvirt_alone(stage: &mut Stage) -> Result<()> {
    libvirt::start(stage, libvirt::Backend::Default)?;
    by_hand::forward(stage)
}

/// 1. A drop ahead of all rules; 2. the ruleset loaded anew, twice, so for moments there is none; 3. the drop again, which stays.
fn reorder() -> Churn {
    Churn {
        host: Variant {
            name: "churn-reorder",
            title: "a ruleset written for guests, loaded twice again, with a drop inserted ahead of its rules, as in a wrong order",
            build: |stage| {
                by_hand::bridges(stage)?;
                dnsmasq::start(stage)?;
                stage.lab.host.set_sysctl("net/ipv4/ip_forward", "1")?;
                nftables::load(stage)
            },
            before: &[
                Check::Ping,
                Check::Tcp,
                Check::Http,
                Check::Udp,
                Check::Dns,
                Check::Fragments,
                Check::GatewayDns,
                Check::Forward,
                Check::Stream,
                Check::OldFlows,
                Check::NewFlows,
            ],
            ..flush().host
        },
        happens: |stage, _| {
            let drop_first = ["nft", "insert", "rule", "inet", "filter", "forward", "drop"];
            stage.run(&drop_first)?;
            thread::sleep(WHILE);
            for _ in 0..2 {
                nftables::load(stage)?;
                thread::sleep(WHILE);
            }
            stage.run(&drop_first)?;
            thread::sleep(WHILE);
            Ok(())
        },
        ..flush()
    }
}

/// Flows that begin while firewalld reloads leave untranslated.
fn firewalld_reload() -> Churn {
    Churn {
        host: Variant {
            name: "churn-firewalld",
            title: "firewalld, dockerd with a container, libvirt 9.0, then `firewall-cmd --reload`, three times",
            build: |stage| {
                firewalld::start(stage)?;
                docker::start(stage)?;
                docker::publish(stage)?;
                libvirt_alone(stage)
            },
            before: &[Check::Forward, Check::NoLeak],
            ..flush().host
        },
        happens: |stage, _| {
            for _ in 0..3 {
                firewalld::reload(stage)?;
                thread::sleep(LONGER);
            }
            Ok(())
        },
        ..flush()
    }
}

/// With this setting the reload flushes the chains that libvirt has hung its own into.
fn ufw_reload() -> Churn {
    Churn {
        host: Variant {
            name: "churn-ufw",
            title: "libvirt 9.0, ufw, then `ufw reload`, and again with MANAGE_BUILTINS=yes",
            build: |stage| {
                libvirt_alone(stage)?;
                ufw::enable(stage)
            },
            before: &[
                Check::Ping,
                Check::Tcp,
                Check::Http,
                Check::Udp,
                Check::Dns,
                Check::Fragments,
                Check::GatewayDns,
                Check::Dhcp,
                Check::Forward,
                Check::NoLeak,
            ],
            after: &[],
            ..flush().host
        },
        happens: |stage, _| {
            ufw::reload(stage)?;
            thread::sleep(WHILE);
            ufw::manage_builtins(stage)?;
            ufw::reload(stage)?;
            thread::sleep(WHILE);
            Ok(())
        },
        ..flush()
    }
}

fn docker_restart() -> Churn {
    Churn {
        host: Variant {
            name: "churn-docker",
            title: "libvirt 9.0, dockerd with a container, then dockerd restarted",
            build: |stage| {
                libvirt_alone(stage)?;
                docker::start(stage)?;
                docker::publish(stage)
            },
            before: REJECTED,
            ..flush().host
        },
        happens: |stage, _| {
            stage.stop("dockerd")?;
            thread::sleep(WHILE);
            docker::start(stage)?;
            stage.run(&["docker", "start", "web"])?;
            Ok(())
        },
        ..flush()
    }
}

/// virbr0 is another interface afterwards, with its spanning tree on, and the guests' taps belong to none until someone plugs
/// them again. The agent takes both up by itself.
fn network_restart() -> Churn {
    Churn {
        host: Variant {
            name: "churn-network",
            title: "libvirt 9.0, then `virsh net-destroy` and `net-start`, and the guests' taps put back into virbr0",
            // What the world says while the bridge is gone goes back to it, with the guest's own address.
            before: &[Check::Forward, Check::NoLeak],
            ..flush().host
        },
        happens: |stage, with_vmnat| {
            let old = stage.lab.host.interface("virbr0")?;
            libvirt::virsh(stage, &["net-destroy", "default"])?;
            if with_vmnat {
                status_says(stage, "the bridge is gone", |status| status.contains("virbr0 (not there)"))?;
            }
            libvirt::virsh(stage, &["net-start", "default"])?;
            ensure!(stage.lab.host.interface("virbr0")? != old, "virbr0 is the old one");
            stage.plug()?;
            if with_vmnat {
                status_says(stage, "all is attached", |status| status.contains("vnet3"))?;
            }
            stage.settle(REBUILDING);
            Ok(())
        },
        patience: REBUILDING,
        ..flush()
    }
}

/// Waits until `vmnat status` says something, which is up to the agent.
fn status_says(stage: &Stage, what: &str, says: fn(&str) -> bool) -> Result<()> {
    wait_until(what, Duration::from_secs(5), || {
        let status = stage.lab.vmnat(&["status"])?;
        Ok(says(&String::from_utf8_lossy(&status.stdout)))
    })
}

/// libvirt's dnsmasq asks whom the host's `resolv.conf` names.
fn resolver_death() -> Churn {
    Churn {
        host: Variant {
            name: "churn-resolver",
            title: "libvirt 9.0, then the host's `resolv.conf` names a resolver that is dead; vmnat with `--dns`",
            before: &[Check::GatewayDns, Check::Forward],
            ..flush().host
        },
        happens: |stage, _| {
            fs::write(stage.lab.host.file("/etc/resolv.conf"), format!("nameserver {DEAD}\n"))?;
            // dnsmasq looks at the file's time, in whole seconds.
            thread::sleep(LONGER);
            Ok(())
        },
        up: &["--dns", RESOLVER],
        ..flush()
    }
}
