//! firewalld with its nftables backend: zones that let guests' services in, or nothing, and none that forwards for them.

use anyhow::Result;
use vmnat_tests::hosts::{
    Tree,
    checks::Check,
    software::{by_hand, dnsmasq, docker, firewalld, libvirt},
    stage::{Network, Stage},
    talk::Change,
    variant::Variant,
};

use crate::{SERVE_DHCP, churn::UNNOTICED};

mod full {
    play!(
        bridge_in_libvirts_zone,
        bridge_in_a_rejecting_zone,
        bridge_and_docker,
        libvirt_beside,
        libvirt_and_docker
    );
}

/// A reload flushes what its administrator has put into iptables by hand: nobody translates any more.
fn bridge_in_libvirts_zone() -> Variant {
    Variant {
        situation: 2,
        name: "firewalld-bridge",
        title: "firewalld, a bridge of one's own in its zone libvirt, masquerade and a port forward by hand, then a reload",
        tree: Tree::Bookworm,
        networks: &[Network::DEFAULT],
        build: |stage| {
            firewalld::start(stage)?;
            own_bridge(stage, "libvirt")?;
            by_hand::nat(stage)?;
            firewalld::reload(stage)
        },
        before: &[
            Check::Ping,
            Check::Tcp,
            Check::Http,
            Check::Udp,
            Check::Dns,
            Check::Fragments,
            Check::Forward,
            Check::NoLeak,
        ],
        options: &[],
        after: &[],
        changes: &[Change {
            title: "firewall-cmd --reload",
            work: |stage| firewalld::reload(stage),
            silence: UNNOTICED,
        }],
    }
}

fn own_bridge(stage: &mut Stage, zone: &str) -> Result<()> {
    by_hand::bridges(stage)?;
    dnsmasq::start(stage)?;
    firewalld::put_bridge_into(stage, zone)
}

fn bridge_in_a_rejecting_zone() -> Variant {
    Variant {
        name: "firewalld-bridge-block",
        title: "the same in its zone block, which rejects, masquerade and a port forward by hand after the reload",
        build: |stage| {
            firewalld::start(stage)?;
            own_bridge(stage, "block")?;
            firewalld::reload(stage)?;
            by_hand::nat(stage)
        },
        before: &[
            Check::Ping,
            Check::Tcp,
            Check::Http,
            Check::Udp,
            Check::Dns,
            Check::Fragments,
            Check::Gateway,
            Check::GatewayDns,
            Check::Dhcp,
        ],
        options: SERVE_DHCP,
        after: &[(
            Check::Gateway,
            "the zone rejects pings of the host itself, as its administrator wants it",
        )],
        ..bridge_in_libvirts_zone()
    }
}

fn bridge_and_docker() -> Variant {
    Variant {
        name: "firewalld-docker-bridge",
        title: "firewalld, dockerd with a container, a bridge of one's own in the zone libvirt",
        build: |stage| {
            firewalld::start(stage)?;
            docker::start(stage)?;
            docker::publish(stage)?;
            own_bridge(stage, "libvirt")?;
            firewalld::reload(stage)?;
            by_hand::nat(stage)
        },
        // Docker's `br_netfilter` shows what siblings say to each other to firewalld.
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
        ..bridge_in_libvirts_zone()
    }
}

fn libvirt_beside() -> Variant {
    Variant {
        name: "firewalld-libvirt",
        title: "firewalld, then libvirt 9.0, a reload, a port forward by hand",
        build: |stage| {
            firewalld::start(stage)?;
            libvirt::start(stage, libvirt::Backend::Default)?;
            firewalld::reload(stage)?;
            libvirt::wait_for_rules(stage)?;
            by_hand::forward(stage)
        },
        before: &[Check::Forward],
        ..bridge_in_libvirts_zone()
    }
}

fn libvirt_and_docker() -> Variant {
    Variant {
        name: "firewalld-docker-libvirt",
        title: "firewalld, dockerd with a container, then libvirt 9.0, a port forward by hand",
        build: |stage| {
            firewalld::start(stage)?;
            docker::start(stage)?;
            docker::publish(stage)?;
            libvirt::start(stage, libvirt::Backend::Default)?;
            by_hand::forward(stage)
        },
        before: &[Check::Forward],
        ..bridge_in_libvirts_zone()
    }
}
