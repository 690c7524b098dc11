//! `vmnat dnat`: port forwards.

use anyhow::Result;
use clap::Subcommand;
use serde::Serialize;
use vmnat_common::Protocol;

use super::{print, report};
use crate::{
    change::Change,
    error::Error,
    forwards::{ForwardSpec, PortForward},
    host_ports,
    paths::Instance,
    plan,
    report::{self as listing, Column},
    state,
    tables::Tables,
};

/// Add, remove or list port forwards
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Clone, Debug, Subcommand)]
enum Action {
    /// Lead a port of the host to a guest
    Add {
        /// For example 8080:192.168.122.10:80, or 192.0.2.1:53:192.168.122.10:53/udp
        #[arg(value_name = "[HOSTIP:]PORT:GUEST:PORT[/tcp|udp]")]
        forward: ForwardSpec,
        /// Take the port even where a socket of the host has it
        #[arg(long)]
        steal: bool,
    },
    /// Remove a port forward; connections through it go on
    Rm {
        /// Its number in the list, or the forward as it was added
        #[arg(value_name = "ID|FORWARD")]
        which: String,
    },
    /// List port forwards
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Serialize)]
struct Row {
    id: u32,
    protocol: &'static str,
    host: Option<String>,
    port: u16,
    guest: String,
    guest_port: u16,
    connections: u64,
}

/// Runs the command.
///
/// # Errors
/// When the change cannot be made.
pub async fn run(instance: &Instance, args: Args) -> Result<()> {
    match args.action {
        Action::Add { forward, steal } => add(instance, forward, steal).await,
        Action::Rm { which } => remove(instance, &which).await,
        Action::List { json } => list(instance, json),
    }
}

async fn add(instance: &Instance, spec: ForwardSpec, steal: bool) -> Result<()> {
    let mut change = Change::begin(instance).await?;
    if let Some(same) = change.state.forwards.iter().find(|forward| forward.spec == spec) {
        return print::line(&format!("port forward {} ({spec}) is there already", same.id));
    }
    if let Some(other) = change.state.forwards.iter().find(|forward| forward.spec.collides_with(&spec)) {
        let what = format!("port {}/{}", spec.port, spec.protocol);
        let holder = format!("port forward {} ({})", other.id, other.spec);
        let hint = format!(": remove it with `vmnat dnat rm {}`, or take another port", other.id);
        return Err(Error::Taken { what, holder, hint }.into());
    }
    let bridges: Vec<_> =
        change.state.bridges.iter().filter_map(|bridge| change.facts.link(&bridge.name)).collect();
    let networks = plan::networks(&change.state, &change.facts, &bridges);
    if !networks.iter().any(|network| network.subnet.contains(&spec.guest)) {
        return Err(Error::NotAGuest { guest: spec.guest }.into());
    }
    if !steal && host_ports::taken()?.sockets.contains(&(spec.protocol, spec.port)) {
        let what = format!("port {}/{}", spec.port, spec.protocol);
        let holder = "a socket of the host".to_owned();
        let hint =
            ": end what listens there, take another port, or give this one to the guest with --steal".into();
        return Err(Error::Taken { what, holder, hint }.into());
    }
    let id = change.state.next_forward;
    change.state.next_forward = id.saturating_add(1);
    change.state.forwards.push(PortForward { id, spec });
    report(&change.apply().await?, "no uplink serves it yet")?;
    print::line(&format!("port forward {id} is {spec}"))
}

async fn remove(instance: &Instance, which: &str) -> Result<()> {
    let mut change = Change::begin(instance).await?;
    let spec = which.parse::<ForwardSpec>().ok();
    let id = which.parse::<u32>().ok();
    let is_meant = |forward: &PortForward| Some(forward.id) == id || Some(forward.spec) == spec;
    let Some(place) = change.state.forwards.iter().position(is_meant) else {
        let what = format!("there is no port forward \"{which}\"; `vmnat dnat list` shows them");
        return Err(Error::Usage(what).into());
    };
    let gone = change.state.forwards.remove(place);
    report(&change.apply().await?, &format!("removed port forward {} ({})", gone.id, gone.spec))
}

fn list(instance: &Instance, json: bool) -> Result<()> {
    let state = state::load(instance)?;
    let tables = Tables::open(instance)?;
    let row = |forward: &PortForward| {
        let PortForward { id, spec } = forward;
        let counted = tables.forward_count.get(id).ok().flatten().unwrap_or_default();
        Row {
            id: *id,
            protocol: Protocol::name(spec.protocol),
            host: spec.host.map(|host| host.to_string()),
            port: spec.port,
            guest: spec.guest.to_string(),
            guest_port: spec.guest_port,
            connections: counted.connections,
        }
    };
    let rows: Vec<Row> = state.forwards.iter().map(row).collect();
    if json { print::line(&listing::json("dnat", &rows)?) } else { print::text(&text(&rows)) }
}

fn text(rows: &[Row]) -> String {
    const COLUMNS: [Column; 5] = [
        Column::Number("ID"),
        Column::Text("PROTOCOL"),
        Column::Text("FROM"),
        Column::Text("TO"),
        Column::Number("CONNECTIONS"),
    ];
    if rows.is_empty() {
        return "no port forwards\n".to_owned();
    }
    listing::table(&COLUMNS, rows.iter().map(cells))
}

fn cells(row: &Row) -> [String; 5] {
    let Row { id, protocol, host, port, guest, guest_port, connections } = row;
    let host = host.clone().unwrap_or_else(|| "every uplink".to_owned());
    [
        id.to_string(),
        (*protocol).to_owned(),
        format!("{host}:{port}"),
        format!("{guest}:{guest_port}"),
        listing::number(*connections),
    ]
}
