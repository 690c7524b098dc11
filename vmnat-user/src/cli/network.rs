//! `vmnat network`: bridges and the subnets behind them.

use std::fmt::Write as _;

use anyhow::Result;
use clap::Subcommand;
use ipnet::Ipv4Net;
use serde::Serialize;

use super::{print, report, up};
use crate::{
    change::Change,
    error::Error,
    facts::Facts,
    paths::Instance,
    plan, reconcile,
    report::{self as listing, Column},
    state::{self, Bridge, Filtering, State},
};

/// Add, remove or list bridges and the networks behind them
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Clone, Debug, Subcommand)]
enum Action {
    /// Serve a further bridge, or change one; live flows are not touched
    Add {
        /// The bridge
        bridge: String,
        /// Its networks; the bridge's own subnets when none is given
        networks: Vec<Ipv4Net>,
        /// Who may answer to the mapped ports of its guests [default: address-and-port-dependent]
        #[arg(long, value_name = "FILTERING")]
        filtering: Option<up::FilteringWish>,
        /// Bind its guests to their leases [default: off]
        #[arg(long, value_name = "ON|OFF", num_args = 0..=1, require_equals = true, default_missing_value = "on")]
        strict_leases: Option<up::StrictWish>,
    },
    /// Serve a bridge no more; its guests' flows end
    Rm {
        /// The bridge
        bridge: String,
    },
    /// List bridges and networks
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) network: Option<Ipv4Net>,
    pub(super) bridge: String,
    pub(super) gateway: Option<String>,
    pub(super) ports: usize,
    /// Who may answer to the mappings of its guests.
    pub(super) filtering: Filtering,
    /// Its guests may use the addresses alone that were given to them.
    pub(super) strict_leases: bool,
    pub(super) present: bool,
}

/// Runs the command.
///
/// # Errors
/// When the change cannot be made.
pub async fn run(instance: &Instance, args: Args) -> Result<()> {
    match args.action {
        Action::Add { bridge, networks, filtering, strict_leases } => {
            let strict = strict_leases.map(|wish| wish == up::StrictWish::On);
            add(instance, bridge, networks, filtering.map(Filtering::from), strict).await
        }
        Action::Rm { bridge } => remove(instance, &bridge).await,
        Action::List { json } => list(instance, json).await,
    }
}

async fn add(
    instance: &Instance,
    name: String,
    networks: Vec<Ipv4Net>,
    filtering: Option<Filtering>,
    strict: Option<bool>,
) -> Result<()> {
    let mut change = Change::begin(instance).await?;
    up::check_bridge(&change.facts, &name)?;
    let networks: Vec<Ipv4Net> = networks.into_iter().map(|network| network.trunc()).collect();
    if let Some(bridge) = change.state.bridges.iter_mut().find(|bridge| bridge.name == name) {
        // To name an option alone changes nothing else.
        if (filtering.is_none() && strict.is_none()) || !networks.is_empty() {
            bridge.networks = networks;
        }
        bridge.filtering = filtering.unwrap_or(bridge.filtering);
        bridge.strict_leases = strict.unwrap_or(bridge.strict_leases);
    } else {
        let (filtering, strict_leases) = (filtering.unwrap_or_default(), strict.unwrap_or_default());
        change.state.bridges.push(Bridge { networks, filtering, strict_leases, ..Bridge::new(name) });
    }
    reconcile::admit(instance, &change.state, &change.facts)?;
    report(&change.apply().await?, "nothing to change")
}

async fn remove(instance: &Instance, name: &str) -> Result<()> {
    let mut change = Change::begin(instance).await?;
    if !change.state.bridges.iter().any(|bridge| bridge.name == name) {
        let hint = format!("this instance serves {}", up::names(&change.state));
        return Err(Error::NoInterface { name: name.to_owned(), hint }.into());
    }
    change.state.bridges.retain(|bridge| bridge.name != name);
    report(&change.apply().await?, "nothing to change")
}

async fn list(instance: &Instance, json: bool) -> Result<()> {
    let state = state::load(instance)?;
    let facts = crate::facts::gather(&crate::change::connect()?).await?;
    let rows = rows(&state, &facts);
    if json { print::line(&listing::json("networks", &rows)?) } else { print::text(&text(&rows)) }
}

/// A row for each network, and for each bridge that has none.
pub(super) fn rows(state: &State, facts: &Facts) -> Vec<Row> {
    let mut rows = Vec::new();
    for bridge in &state.bridges {
        let Some(link) = facts.link(&bridge.name) else {
            let (name, filtering) = (bridge.name.clone(), bridge.filtering);
            rows.push(Row {
                network: None,
                bridge: name,
                gateway: None,
                ports: 0,
                filtering,
                strict_leases: bridge.strict_leases,
                present: false,
            });
            continue;
        };
        let ports = facts.ports_of(link.index).count();
        let networks = plan::networks(state, facts, &[link]);
        let (filtering, strict_leases) = (bridge.filtering, bridge.strict_leases);
        let row = |network, gateway| {
            let bridge = link.name.clone();
            Row { network, bridge, gateway, ports, filtering, strict_leases, present: true }
        };
        if networks.is_empty() {
            rows.push(row(None, None));
        }
        rows.extend(networks.into_iter().map(|network| {
            let gateway = Some(network.gateway).filter(|gateway| !gateway.is_unspecified());
            row(Some(network.subnet), gateway.map(|gateway| gateway.to_string()))
        }));
    }
    rows
}

pub(super) fn text(rows: &[Row]) -> String {
    const COLUMNS: [Column; 6] = [
        Column::Text("NETWORK"),
        Column::Text("BRIDGE"),
        Column::Text("GATEWAY"),
        Column::Number("PORTS"),
        Column::Text("FILTERING"),
        Column::Text("LEASES"),
    ];
    if rows.is_empty() {
        return "no networks\n".to_owned();
    }
    let mut text = listing::table(&COLUMNS, rows.iter().map(cells));
    for row in rows.iter().filter(|row| row.filtering == Filtering::EndpointIndependent) {
        let of = row.network.map_or_else(|| row.bridge.clone(), |network| network.to_string());
        // Writing to a string cannot fail.
        let _ = writeln!(text, "note: anyone who knows a mapped port reaches the guest, in {of}");
    }
    text
}

fn cells(row: &Row) -> [String; 6] {
    let Row { network, bridge, gateway, ports, filtering, strict_leases, present } = row;
    let bridge = if *present { bridge.clone() } else { format!("{bridge} (not there)") };
    let network = network.map_or_else(|| "none".to_owned(), |network| network.to_string());
    let gateway = gateway.clone().unwrap_or_else(|| "none".to_owned());
    let leases = if *strict_leases { "strict" } else { "as learned" };
    [network, bridge, gateway, ports.to_string(), filtering.name().to_owned(), leases.to_owned()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_network_is_told_plainly() {
        let row = Row {
            network: "192.168.122.0/24".parse().ok(),
            bridge: "virbr0".into(),
            gateway: None,
            ports: 2,
            filtering: Filtering::EndpointIndependent,
            strict_leases: false,
            present: true,
        };
        let plain = "anyone who knows a mapped port reaches the guest, in 192.168.122.0/24";
        assert!(text(&[row]).contains(plain));
    }
}
