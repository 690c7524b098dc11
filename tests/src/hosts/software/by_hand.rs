//! What people type themselves: a bridge, forwarding, masquerade, a port forward.

use anyhow::Result;

use crate::{
    hosts::stage::{Network, Stage},
    lab::wait_until,
};

/// A bridge of one's own for each network, with its address and the guests' ports; nothing that serves them yet.
///
/// # Errors
///
/// When a command fails.
pub fn bridges(stage: &Stage) -> Result<()> {
    for guests in &stage.networks {
        let Network { bridge, .. } = guests.network;
        stage.lab.host.ip(&format!(
            "link add {bridge} type bridge stp_state 0 forward_delay 0\n\
             address add {}/24 dev {bridge}\n\
             link set {bridge} up\n",
            guests.network.gateway()
        ))?;
    }
    stage.plug()?;
    stage.settle(std::time::Duration::from_secs(5));
    Ok(())
}

/// Forwarding on, masquerade of the guests, and port 80 forwarded to the second, all with iptables.
///
/// # Errors
///
/// When a command fails.
pub fn nat(stage: &Stage) -> Result<()> {
    stage.lab.host.set_sysctl("net/ipv4/ip_forward", "1")?;
    for guests in &stage.networks {
        let cidr = guests.network.cidr();
        let rule = format!("-t nat -A POSTROUTING -s {cidr} ! -d {cidr} -o enp3s0 -j MASQUERADE");
        iptables(stage, &rule)?;
    }
    forward(stage)
}

/// Port 80 forwarded to the second guest with iptables.
///
/// # Errors
///
/// When a command fails.
pub fn forward(stage: &Stage) -> Result<()> {
    let server = stage.network()?.address(true);
    let rule =
        format!("-t nat -A PREROUTING -i enp3s0 -p tcp --dport 80 -j DNAT --to-destination {server}:80");
    iptables(stage, &rule)
}

fn iptables(stage: &Stage, rule: &str) -> Result<()> {
    let command: Vec<&str> = ["iptables", "-w"].into_iter().chain(rule.split(' ')).collect();
    stage.run(&command).map(drop)
}

/// Waits until something of the machine listens on a UDP port.
///
/// # Errors
///
/// When nothing does in time.
pub fn wait_for_udp(stage: &Stage, port: u16) -> Result<()> {
    let listens = || {
        let sockets = stage.run(&["ss", "-Hlun"])?;
        Ok(sockets.contains(&format!(":{port} ")))
    };
    wait_until(&format!("UDP port {port} is served"), std::time::Duration::from_secs(10), listens)
}
