//! `vmnat leases`: where each guest's address lives.

use std::net::Ipv4Addr;

use anyhow::Result;
use serde::Serialize;

use super::print;
use crate::{
    leases::{self, Directory, LeaseRow},
    paths::Instance,
    report::{self, Column},
    state,
    tables::Tables,
};

/// Show where each guest's address lives, as learned from traffic and the neighbour table, and its name
///
/// Names come from the lease files of libvirt and dnsmasq, and those that `up --lease-file` named.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A lease in JSON.
#[derive(Serialize)]
struct Row<'a> {
    address: Ipv4Addr,
    mac: String,
    name: Option<&'a str>,
    port: Option<&'a str>,
    bridge: &'a str,
    source: &'a str,
    age_seconds: u64,
}

/// Runs the command.
///
/// # Errors
/// When the instance does not run, or the kernel refuses.
pub fn run(instance: &Instance, args: &Args) -> Result<()> {
    let Args { json } = args;
    let state = state::load(instance)?;
    let leases = leases::list(&Tables::open(instance)?, &Directory::of_files(&state))?;
    if *json {
        let rows: Vec<_> = leases.iter().map(row).collect();
        print::line(&report::json("leases", &rows)?)
    } else if leases.is_empty() {
        print::line("no leases")
    } else {
        print::text(&report::table(&COLUMNS, leases.iter().map(cells)))
    }
}

fn row(lease: &LeaseRow) -> Row<'_> {
    let LeaseRow { address, mac, name, port, bridge, source, age_seconds } = lease;
    Row {
        address: *address,
        mac: mac.to_string(),
        name: name.as_deref(),
        port: port.as_deref(),
        bridge,
        source,
        age_seconds: *age_seconds,
    }
}

const COLUMNS: [Column; 7] = [
    Column::Text("ADDRESS"),
    Column::Text("MAC"),
    Column::Text("NAME"),
    Column::Text("PORT"),
    Column::Text("BRIDGE"),
    Column::Text("LEARNED FROM"),
    Column::Number("SEEN"),
];

fn cells(lease: &LeaseRow) -> [String; 7] {
    let LeaseRow { address, mac, name, port, bridge, source, age_seconds } = lease;
    [
        address.to_string(),
        mac.to_string(),
        name.clone().unwrap_or_default(),
        port.clone().unwrap_or_else(|| "unknown".to_owned()),
        bridge.clone(),
        (*source).to_owned(),
        format!("{} ago", report::span(*age_seconds)),
    ]
}

#[cfg(test)]
mod tests {
    use vmnat_common::Mac;

    use super::*;

    #[test]
    fn a_lease_whose_port_is_unknown_says_so() {
        let lease = LeaseRow {
            address: [192, 168, 122, 10].into(),
            mac: Mac::new([0x52, 0x54, 0, 1, 2, 3]),
            name: Some("web".into()),
            port: None,
            bridge: "virbr0".into(),
            source: "neighbour",
            age_seconds: 61,
        };
        let expected = concat!(
            r#"{"address":"192.168.122.10","mac":"52:54:00:01:02:03","name":"web","port":null,"bridge":"virbr0","#,
            r#""source":"neighbour","age_seconds":61}"#,
        );
        assert_eq!(serde_json::to_string(&row(&lease)).unwrap(), expected);
        let cells = cells(&lease);
        assert_eq!((cells[3].as_str(), cells[6].as_str()), ("unknown", "1 min 1 s ago"));
    }
}
