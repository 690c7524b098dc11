//! Desired state: what files say comes true as a whole, beside what the command line says.

mod apply;
pub(crate) mod atomic;
mod boot;
mod faults;
mod refused;
mod reload;

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use vmnat_tests::lab::{Lab, guest_address};

/// The operator's main file.
const MAIN: &str = "/etc/vmnat/vmnat.toml";

/// The state of the lab's instance.
const STATE: &str = "/run/vmnat/default/state.json";

/// Writes one of the operator's files.
fn write(path: &str, text: &str) -> Result<()> {
    if let Some(folder) = Path::new(path).parent() {
        fs::create_dir_all(folder)?;
    }
    Ok(fs::write(path, text)?)
}

/// The lab's bridge and uplink as a file says them.
fn base(hook: vmnat_tests::lab::vmnat::Hook) -> String {
    format!("uplink = \"enp3s0\"\nhook = \"{}\"\n", hook.name())
}

const BRIDGE: &str = "[bridge.virbr0]\n";

/// A port forward to the first guest's web server.
fn http(port: u16) -> String {
    format!("{port}:{}:80/tcp", guest_address(1))
}

/// Port forwards of a file, one a port.
fn forwards(ports: impl Iterator<Item = u16>) -> String {
    let rules: Vec<String> = ports.map(|port| format!("  \"{}\",\n", http(port))).collect();
    format!("forward = [\n{}]\n", rules.concat())
}

/// Asserts how `vmnat diff` ends, and returns what it prints.
fn diff(lab: &Lab, code: i32) -> Result<String> {
    let output = lab.vmnat(&["diff"])?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(code),
        "`vmnat diff` ends with {:?} instead of {code}: {printed}{error}",
        output.status.code()
    );
    ensure!((code == 2) != error.is_empty(), "`vmnat diff` says {error:?}");
    Ok(printed)
}

/// The specifications of all port forwards with their origins, in the order of their numbers.
fn listed(lab: &Lab) -> Result<Vec<(String, String)>> {
    let word = |row: &serde_json::Value, field: &str| row[field].as_str().unwrap_or_default().to_owned();
    let rows = lab.rows(&["dnat", "list"])?;
    Ok(rows.iter().map(|row| (word(row, "forward"), word(row, "origin"))).collect())
}

/// The quota of flows that each guest has.
fn guest_flows(lab: &Lab) -> Result<u64> {
    let status = lab.listing(&["status"])?;
    let flows = status.at(0).pointer("/guest_quotas/flows").and_then(serde_json::Value::as_u64);
    flows.context("status tells no quota")
}
