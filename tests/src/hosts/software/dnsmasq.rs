//! dnsmasq on bridges of one's own: DHCP, and names from the host's resolver.

use anyhow::Result;

use crate::hosts::stage::Stage;

/// Starts one for all networks.
///
/// # Errors
///
/// When it does not start.
pub fn start(stage: &mut Stage) -> Result<()> {
    let mut command: Vec<String> = [
        "dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--bind-dynamic",
        "--except-interface=lo",
        "--user=root",
        "--dhcp-authoritative",
        "--pid-file=/run/dnsmasq.pid",
        "--dhcp-leasefile=/run/dnsmasq.leases",
    ]
    .map(str::to_owned)
    .into();
    for network in stage.networks.iter().map(|guests| guests.network) {
        command.push(format!("--interface={}", network.bridge));
        command.push(format!("--dhcp-range={0}.100,{0}.199,1h", network.prefix));
    }
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    stage.daemon("dnsmasq", &command, &["test", "-s", "/run/dnsmasq.pid"])
}
