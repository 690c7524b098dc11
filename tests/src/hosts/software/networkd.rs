//! systemd-networkd: a bridge from two files, with its own DHCP server.

use std::time::Duration;

use anyhow::{Context, Result};

use super::firewalld;
use crate::{
    hosts::stage::Stage,
    lab::{RESOLVER, wait_until},
};

/// Starts networkd with a bridge for the first network, and puts the guests' ports into it.
///
/// # Errors
///
/// When it does not start.
pub fn start(stage: &mut Stage) -> Result<()> {
    let network = stage.network()?;
    let bridge = network.bridge;
    stage.write(
        "/etc/systemd/network/98-guests.netdev",
        &format!("[NetDev]\nName={bridge}\nKind=bridge\nMACAddress=52:54:00:9a:8a:d1\n"),
    )?;
    stage.write(
        "/etc/systemd/network/98-guests.network",
        &format!(
            "[Match]\nName={bridge}\n\
             [Network]\nAddress={}/24\nDHCPServer=yes\nIPForward=ipv4\n\
             [DHCPServer]\nPoolOffset=20\nPoolSize=100\nDNS={RESOLVER}\n",
            network.gateway()
        ),
    )?;
    stage.run(&["mkdir", "-p", "/run/systemd"])?;
    // Where /sys cannot be written, networkd knows that no udev will come and does not wait for it.
    stage.run(&["mount", "-o", "remount,ro,bind", "/sys"])?;
    if !stage.lab.host.file("/run/dbus/system_bus_socket").exists() {
        firewalld::start_bus(stage)?;
    }
    stage.daemon("networkd", &["/lib/systemd/systemd-networkd"], &["ip", "link", "show", bridge])?;
    let has_address = || Ok(stage.run(&["ip", "-4", "address", "show", bridge])?.contains("inet "));
    stage.plug()?;
    wait_until("networkd has set the address", Duration::from_secs(15), has_address)
        .with_context(|| stage.log_of("networkd"))?;
    stage.settle(Duration::from_secs(10));
    Ok(())
}
