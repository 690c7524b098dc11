//! libvirt's own networks: bridge, dnsmasq, and rules in iptables or nftables.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::{
    hosts::stage::{Network, Stage},
    lab::wait_until,
};

const VIRSH: [&str; 4] = ["virsh", "-q", "-c", "network:///system"];

/// Where libvirt keeps its firewall rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// What the release takes by itself.
    Default,
    /// A table of nftables, as Fedora and Arch have it.
    Nftables,
    /// Chains of iptables.
    Iptables,
}

/// Starts libvirtd and the networks of the stage, and puts the guests' ports into their bridges.
///
/// # Errors
///
/// When one of them does not start.
pub fn start(stage: &mut Stage, backend: Backend) -> Result<()> {
    stage.append("/etc/libvirt/libvirtd.conf", "auth_unix_rw = \"none\"\n")?;
    stage.run(&["mkdir", "-p", "/run/libvirt", "/var/lib/libvirt/dnsmasq"])?;
    let setting = match backend {
        Backend::Default => None,
        Backend::Nftables => Some("firewall_backend = \"nftables\"\n"),
        Backend::Iptables => Some("firewall_backend = \"iptables\"\n"),
    };
    if let Some(setting) = setting {
        stage.append("/etc/libvirt/network.conf", setting)?;
    }
    if backend == Backend::Nftables {
        spare_the_checksum_action(stage)?;
    }
    start_daemon(stage)?;
    let networks: Vec<Network> = stage.networks.iter().map(|guests| guests.network).collect();
    for network in networks {
        if network.prefix != Network::DEFAULT.prefix {
            define(stage, network)?;
        }
        virsh(stage, &["net-start", name(network)])?;
    }
    stage.plug()?;
    // libvirt's bridges have the spanning tree on: a port forwards nothing for the first seconds.
    stage.settle(Duration::from_secs(15));
    Ok(())
}

/// Starts the daemon alone; networks that are marked so start with it.
///
/// # Errors
///
/// When it does not start.
pub fn start_daemon(stage: &mut Stage) -> Result<()> {
    stage.daemon("libvirtd", &["libvirtd"], &[&VIRSH[..], &["net-list"]].concat())
}

/// Runs `virsh`.
///
/// # Errors
///
/// When it fails.
pub fn virsh(stage: &Stage, arguments: &[&str]) -> Result<String> {
    stage.run(&[&VIRSH, arguments].concat())
}

/// Waits until libvirt has put its chains of iptables back, which it does when firewalld says that it has reloaded.
///
/// # Errors
///
/// When it does not.
pub fn wait_for_rules(stage: &Stage) -> Result<()> {
    let are_back = || {
        let nat = stage.run(&["iptables", "-t", "nat", "-S"])?;
        Ok(nat.contains("-A POSTROUTING -j LIBVIRT_PRT") && nat.contains("-A LIBVIRT_PRT"))
    };
    wait_until("libvirt's rules are back", Duration::from_secs(10), are_back)?;
    // They come one by one, the translation's last but for those of other networks.
    std::thread::sleep(Duration::from_secs(1));
    Ok(())
}

/// What libvirt calls a network.
#[must_use]
pub fn name(network: Network) -> &'static str {
    if network.prefix == Network::DEFAULT.prefix { "default" } else { network.bridge }
}

/// Makes a second network as `virsh net-define` takes it.
fn define(stage: &Stage, network: Network) -> Result<()> {
    let Network { bridge, prefix, .. } = network;
    let definition = format!(
        "<network><name>{bridge}</name><forward mode='nat'/><bridge name='{bridge}' stp='on' delay='0'/>\
         <ip address='{prefix}.1' netmask='255.255.255.0'><dhcp>\
         <range start='{prefix}.100' end='{prefix}.199'/></dhcp></ip></network>"
    );
    let path = format!("/tmp/{bridge}.xml");
    stage.write(&path, &definition)?;
    virsh(stage, &["net-define", &path]).map(drop)
}

/// Where the kernel has no checksum action for tc, lets libvirt go without it. It fills in checksums of DHCP's answers, which only
/// guests with old clients want; libvirt refuses to start a network where it fails.
fn spare_the_checksum_action(stage: &Stage) -> Result<()> {
    let tried = stage.lab.host.output(
        &["sh", "-c", "ip link add probe type dummy && tc qdisc add dev probe clsact && tc filter add dev probe egress matchall action csum ip; code=$?; ip link del probe; exit $code"],
        "",
    )?;
    if tried.status.success() {
        return Ok(());
    }
    let tc = stage.run(&["sh", "-c", "readlink -f \"$(command -v tc)\""])?;
    let tc = tc.trim();
    stage.run(&["mv", tc, &format!("{tc}.real")])?;
    let script = format!("#!/bin/sh\ncase \"$*\" in *action?csum*) exit 0;; esac\nexec {tc}.real \"$@\"\n");
    stage.write(tc, &script)?;
    stage.run(&["chmod", "755", tc]).map(drop).context("tc without the checksum action")
}
