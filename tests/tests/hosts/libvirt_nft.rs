//! libvirt's nftables backend, with Debian 13's libvirt 11 and Docker 26: its accepting is not the last word, for a packet must pass
//! every table.

use vmnat_tests::hosts::{
    Tree,
    checks::Check,
    software::{by_hand, docker, firewalld, libvirt, nftables, ufw},
    stage::Network,
    variant::Variant,
};

mod full {
    play!(docker_before, ufw_before, firewalld_before, firewalld_and_docker_before, ruleset_before);
}

fn docker_before() -> Variant {
    Variant {
        situation: 5,
        name: "docker-libvirt11",
        title: "dockerd 26 with a container, then libvirt 11.3 with its nftables backend, a port forward by hand",
        tree: Tree::Trixie,
        networks: &[Network::DEFAULT],
        build: |stage| {
            docker::start(stage)?;
            docker::publish(stage)?;
            libvirt::start(stage, libvirt::Backend::Nftables)?;
            by_hand::forward(stage)
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
        changes: &[],
    }
}

fn ufw_before() -> Variant {
    Variant {
        name: "ufw-libvirt11",
        title: "ufw, then libvirt 11.3 with its nftables backend, a port forward by hand",
        build: |stage| {
            ufw::enable(stage)?;
            libvirt::start(stage, libvirt::Backend::Nftables)?;
            by_hand::forward(stage)
        },
        before: &[
            Check::Tcp,
            Check::Http,
            Check::Udp,
            Check::Dns,
            Check::Fragments,
            Check::GatewayDns,
            Check::Dhcp,
            Check::Forward,
        ],
        ..docker_before()
    }
}

fn firewalld_before() -> Variant {
    Variant {
        name: "firewalld-libvirt11",
        title: "firewalld 2, then libvirt 11.3 with its nftables backend, a port forward by hand",
        build: |stage| {
            firewalld::start(stage)?;
            libvirt::start(stage, libvirt::Backend::Nftables)?;
            by_hand::forward(stage)
        },
        before: &[Check::Forward],
        ..docker_before()
    }
}

fn firewalld_and_docker_before() -> Variant {
    Variant {
        name: "firewalld-docker-libvirt11",
        title: "firewalld 2, dockerd 26 with a container, then libvirt 11.3 with its nftables backend",
        build: |stage| {
            firewalld::start(stage)?;
            docker::start(stage)?;
            docker::publish(stage)?;
            libvirt::start(stage, libvirt::Backend::Nftables)?;
            by_hand::forward(stage)
        },
        ..docker_before()
    }
}

fn ruleset_before() -> Variant {
    Variant {
        name: "nftables-libvirt11",
        title: "a ruleset written for guests, then libvirt 11.3 with its nftables backend",
        build: |stage| {
            nftables::load(stage)?;
            libvirt::start(stage, libvirt::Backend::Nftables)
        },
        before: &[Check::GatewayDns, Check::Forward],
        ..docker_before()
    }
}
