//! ufw with Debian's defaults: what is not asked for is dropped, coming in and forwarded.

use crate::{SERVE_DHCP, churn::UNNOTICED};
use vmnat_tests::hosts::{
    Tree,
    checks::Check,
    software::{by_hand, dnsmasq, docker, libvirt, ufw},
    stage::Network,
    talk::Change,
    variant::Variant,
};

mod short {
    play!(bridge, two_libvirt_networks);
}

mod full {
    play!(libvirt_after, libvirt_and_builtins, bridge_and_docker);
}

/// ufw forwards pings and nothing else.
const REFUSED: &[Check] = &[
    Check::Tcp,
    Check::Http,
    Check::Udp,
    Check::Dns,
    Check::Fragments,
    Check::GatewayDns,
    Check::Dhcp,
    Check::Forward,
];

const RELOAD: Change = Change { title: "ufw reload", work: |stage| ufw::reload(stage), silence: UNNOTICED };

const RELOAD_OF_ALL: Change = Change {
    title: "ufw reload with MANAGE_BUILTINS=yes",
    work: |stage| {
        ufw::manage_builtins(stage)?;
        ufw::reload(stage)
    },
    silence: UNNOTICED,
};

fn bridge() -> Variant {
    Variant {
        situation: 4,
        name: "ufw-bridge",
        title: "ufw with Debian's defaults, a bridge of one's own with dnsmasq, masquerade and a port forward",
        tree: Tree::Bookworm,
        networks: &[Network::DEFAULT],
        build: |stage| {
            by_hand::bridges(stage)?;
            dnsmasq::start(stage)?;
            by_hand::nat(stage)?;
            ufw::enable(stage)
        },
        before: REFUSED,
        options: SERVE_DHCP,
        after: &[],
        changes: &[RELOAD, RELOAD_OF_ALL],
    }
}

fn bridge_and_docker() -> Variant {
    Variant {
        name: "ufw-docker-bridge",
        title: "dockerd with a container, then ufw and a bridge of one's own",
        build: |stage| {
            docker::start(stage)?;
            docker::publish(stage)?;
            ufw::enable(stage)?;
            by_hand::bridges(stage)?;
            dnsmasq::start(stage)?;
            by_hand::nat(stage)
        },
        before: &[
            Check::Tcp,
            Check::Http,
            Check::Udp,
            Check::Dns,
            Check::Fragments,
            Check::GatewayDns,
            Check::Dhcp,
            Check::Sibling,
            Check::Forward,
        ],
        // One with MANAGE_BUILTINS=yes would flush Docker's own chains.
        changes: &[RELOAD],
        ..bridge()
    }
}

fn two_libvirt_networks() -> Variant {
    Variant {
        name: "ufw-libvirt-two",
        title: "ufw, then libvirt 9.0 with two networks at once, virbr0 and virbr1, and a port forward",
        networks: &[Network::DEFAULT, Network::SECOND],
        build: |stage| {
            ufw::enable(stage)?;
            libvirt::start(stage, libvirt::Backend::Default)?;
            by_hand::forward(stage)
        },
        before: &[Check::Forward],
        after: &[],
        changes: &[RELOAD],
        options: &[],
        ..bridge()
    }
}

fn libvirt_after() -> Variant {
    Variant {
        name: "libvirt-ufw-reload",
        title: "libvirt 9.0 with a port forward, then ufw, reloaded",
        build: |stage| {
            libvirt::start(stage, libvirt::Backend::Default)?;
            by_hand::forward(stage)?;
            ufw::enable(stage)?;
            ufw::reload(stage)
        },
        before: &[Check::Forward],
        after: &[],
        changes: &[],
        options: &[],
        ..bridge()
    }
}

/// The reload flushes the chains that libvirt has hung its own into.
fn libvirt_and_builtins() -> Variant {
    Variant {
        name: "libvirt-ufw-builtins",
        title: "libvirt 9.0 with a port forward, then ufw, reloaded with MANAGE_BUILTINS=yes",
        build: |stage| {
            libvirt::start(stage, libvirt::Backend::Default)?;
            by_hand::forward(stage)?;
            ufw::enable(stage)?;
            ufw::manage_builtins(stage)?;
            ufw::reload(stage)
        },
        // Pings leave, but nobody translates them any more.
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
        changes: &[],
        options: &[],
        ..bridge()
    }
}
