//! Docker's daemon, started before anything else forwards, drops what is forwarded; with it comes `br_netfilter`.

use anyhow::Result;
use vmnat_tests::hosts::{
    Tree,
    checks::Check,
    software::{by_hand, dnsmasq, docker, libvirt},
    stage::{Network, Stage},
    variant::Variant,
};

mod short {
    play!(bridge_with_container);
}

mod full {
    play!(bridge, legacy_beside_libvirt, libvirt_beside);
}

/// All that Docker's DROP takes: with `br_netfilter`, the siblings' conversations too.
const CUT_OFF: &[Check] = &[
    Check::Ping,
    Check::Tcp,
    Check::Http,
    Check::Udp,
    Check::Dns,
    Check::Fragments,
    Check::Sibling,
    Check::Forward,
];

fn bridge() -> Variant {
    Variant {
        situation: 1,
        name: "docker-bridge",
        title: "dockerd first, then a bridge of one's own with masquerade and a port forward",
        tree: Tree::Bookworm,
        networks: &[Network::DEFAULT],
        build: |stage| {
            docker::start(stage)?;
            own_bridge(stage)
        },
        before: CUT_OFF,
        options: &[],
        after: &[],
        changes: &[],
    }
}

fn bridge_with_container() -> Variant {
    Variant {
        name: "docker-bridge-container",
        title: "the same, with a container and a published port",
        build: |stage| {
            docker::start(stage)?;
            own_bridge(stage)?;
            docker::publish(stage)
        },
        ..bridge()
    }
}

fn own_bridge(stage: &mut Stage) -> Result<()> {
    by_hand::bridges(stage)?;
    dnsmasq::start(stage)?;
    by_hand::nat(stage)
}

fn legacy_beside_libvirt() -> Variant {
    Variant {
        name: "docker-legacy-libvirt",
        title: "dockerd with iptables-legacy, then libvirt 9.0 with iptables-nft: a packet must pass both",
        build: |stage| {
            docker::start_on_legacy_iptables(stage)?;
            libvirt::start(stage, libvirt::Backend::Default)?;
            docker::publish(stage)?;
            by_hand::forward(stage)
        },
        ..bridge()
    }
}

/// libvirt's chains stand ahead of Docker's in iptables: this works, but for libvirt's own REJECT.
fn libvirt_beside() -> Variant {
    Variant {
        name: "docker-libvirt",
        title: "dockerd with a container, then libvirt 9.0, both with iptables-nft, and a port forward by hand",
        build: |stage| {
            docker::start(stage)?;
            docker::publish(stage)?;
            libvirt::start(stage, libvirt::Backend::Default)?;
            by_hand::forward(stage)
        },
        before: &[Check::Forward],
        ..bridge()
    }
}
