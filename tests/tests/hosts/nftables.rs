//! A careful administrator's own nftables ruleset: `policy drop` on input and forward, with and without a thought for guests.

use vmnat_tests::hosts::{
    Tree,
    checks::Check,
    software::{docker, libvirt, networkd, nftables},
    stage::Network,
    variant::Variant,
};

mod short {
    play!(networkd_bridge, without_guests_then_libvirt);
}

mod full {
    play!(at_boot_then_docker_then_bridge, after_libvirt);
}

/// What is no guest's is the firewall's.
const CONTAINERS: &str =
    "the ruleset forwards nothing for Docker's containers, which are no guests of vmnat's";

/// networkd's bridge with the ruleset that was written for it: all works but names at the gateway, which nobody serves.
fn networkd_bridge() -> Variant {
    Variant {
        situation: 3,
        name: "nftables-networkd",
        title: "a ruleset written for guests, three WAN interfaces, systemd-networkd's bridge 10.10.0.1/24 with its DHCP \
                server, 80 and 443 to 10.10.0.200",
        tree: Tree::Bookworm,
        networks: &[Network::GUIDE],
        build: |stage| {
            networkd::start(stage)?;
            nftables::load(stage)
        },
        before: &[Check::GatewayDns],
        options: &[],
        after: &[],
        changes: &[],
    }
}

/// The ruleset's jump over Docker's chains, and `br_netfilter`: all that worked is gone.
fn at_boot_then_docker_then_bridge() -> Variant {
    Variant {
        name: "nftables-docker-networkd",
        title: "the same ruleset at boot, then dockerd with a container, then the bridge",
        build: |stage| {
            nftables::load(stage)?;
            docker::start(stage)?;
            docker::publish(stage)?;
            networkd::start(stage)
        },
        before: &[
            Check::Ping,
            Check::Tcp,
            Check::Http,
            Check::Udp,
            Check::Dns,
            Check::Fragments,
            Check::GatewayDns,
            Check::Sibling,
            Check::Forward,
            Check::Published,
            Check::Egress,
        ],
        after: &[(Check::Published, CONTAINERS), (Check::Egress, CONTAINERS)],
        ..networkd_bridge()
    }
}

fn without_guests_then_libvirt() -> Variant {
    Variant {
        name: "nftables-libvirt",
        title: "a ruleset without a thought for guests, then libvirt 9.0's default network",
        networks: &[Network::DEFAULT],
        build: |stage| {
            nftables::load_without_guests(stage)?;
            libvirt::start(stage, libvirt::Backend::Default)
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
        ],
        after: &[],
        ..networkd_bridge()
    }
}

fn after_libvirt() -> Variant {
    Variant {
        name: "libvirt-nftables",
        title: "libvirt 9.0's default network, then the ruleset written for guests, which flushes libvirt's rules",
        networks: &[Network::DEFAULT],
        build: |stage| {
            libvirt::start(stage, libvirt::Backend::Default)?;
            nftables::load(stage)
        },
        before: &[Check::GatewayDns],
        after: &[],
        ..networkd_bridge()
    }
}
