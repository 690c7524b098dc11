//! firewalld, with the system bus that it is spoken to by.

use std::time::Duration;

use anyhow::{Context, Result};

use super::docker;
use crate::{hosts::stage::Stage, lab::wait_until};

/// Starts the system bus, which firewalld, libvirt and networkd use.
///
/// # Errors
///
/// When it does not start.
pub fn start_bus(stage: &mut Stage) -> Result<()> {
    let command = ["dbus-daemon", "--system", "--nofork", "--nopidfile"];
    stage.daemon("dbus", &command, &["test", "-S", "/run/dbus/system_bus_socket"])
}

/// Starts firewalld with the uplink in its zone `public`, where it lets sshd's port in.
///
/// # Errors
///
/// When it does not start.
pub fn start(stage: &mut Stage) -> Result<()> {
    start_bus(stage)?;
    stage.daemon("firewalld", &["firewalld", "--nofork", "--nopid"], &["firewall-cmd", "-q", "--state"])?;
    change(stage, &["--zone=public", "--change-interface=enp3s0"])?;
    change(stage, &["--zone=public", "--add-port=22/tcp"])
}

/// Puts the first bridge into a zone.
///
/// # Errors
///
/// When firewalld refuses.
pub fn put_bridge_into(stage: &Stage, zone: &str) -> Result<()> {
    let bridge = stage.network()?.bridge;
    change(stage, &[&format!("--zone={zone}"), &format!("--change-interface={bridge}")])
}

/// Changes what is kept and what is in force alike, without a reload.
fn change(stage: &Stage, change: &[&str]) -> Result<()> {
    stage.run(&[&["firewall-cmd", "-q"], change].concat())?;
    stage.run(&[&["firewall-cmd", "-q", "--permanent"], change].concat()).map(drop)
}

/// Reloads all rules.
///
/// # Errors
///
/// When firewalld refuses.
pub fn reload(stage: &Stage) -> Result<()> {
    stage.run(&["firewall-cmd", "-q", "--reload"])?;
    let is_up = || Ok(stage.lab.host.output(&["firewall-cmd", "-q", "--state"], "")?.status.success());
    wait_until("firewalld has reloaded", Duration::from_secs(20), is_up).context("after a reload")?;
    if stage.has_container { docker::wait_for_rules(stage) } else { Ok(()) }
}
