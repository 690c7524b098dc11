//! `vmnat leases`: where each guest's address lives, who says so, and what the operator says of it.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::Result;
use clap::Subcommand;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval},
};
use vmnat_common::Mac;

use super::{print, report};
use crate::{
    change::Change,
    error::Error,
    leases::{self, Directory, Event, LeaseRow, Source},
    paths::Instance,
    plan,
    report::{self as listing, Column},
    state::{self, Binding},
    tables::Tables,
};

/// Between two looks of `--watch`.
const LOOK: Duration = Duration::from_millis(500);

const SOURCES: &str = "\
Sources, best first; of two that contradict each other the better one is believed:
  bound             the operator, by `vmnat leases bind`
  lease-file        files that `vmnat up --lease-file` named
  libvirt           /var/lib/libvirt/dnsmasq/<bridge>.status
  libvirt-hosts     /var/lib/libvirt/dnsmasq/*.hostsfile: addresses that a libvirt network reserves
  networkd          the DHCP server of systemd-networkd: its files since version 256, the system's bus before
  dnsmasq           /var/lib/misc/dnsmasq.leases, /var/lib/dnsmasq/dnsmasq.leases, libvirt's *.leases
  traffic           ARP, and the first packet of a flow
  neighbour         the host's neighbour table
  forwarding-table  the bridge's forwarding table, for ports alone

Rows that have expired do not count. An address that one of the first six gives to a guest is bound: no other MAC takes it
while the guest's port is there.

Examples:
  vmnat leases --watch --json                                    changes as they come, a line each
  vmnat leases bind 192.168.122.10 52:54:00:12:34:56             for a guest without DHCP, under --strict-leases
  vmnat leases bind 192.168.122.10 52:54:00:12:34:56 --port vnet3
";

/// Show where each guest's address lives, its name, and who says so
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = SOURCES, args_conflicts_with_subcommands = true)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Stay, and print what is added, changed or gone; with --json a JSON object a line
    #[arg(long)]
    watch: bool,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Clone, Debug, Subcommand)]
enum Action {
    /// Give an address to a guest, before what any other source says
    Bind {
        /// The guest's address
        address: Ipv4Addr,
        /// The guest's MAC
        #[arg(value_parser = leases::guest_mac)]
        mac: Mac,
        /// The only port of the bridge by which it may come [default: where the guest is]
        #[arg(long, value_name = "PORT")]
        port: Option<String>,
    },
    /// Take back what `bind` has said
    Unbind {
        /// The address
        address: Ipv4Addr,
    },
}

/// Runs the command.
///
/// # Errors
/// When the instance does not run, the kernel refuses, or the address is in no network.
pub async fn run(instance: &Instance, args: Args) -> Result<()> {
    match args {
        Args { action: Some(Action::Bind { address, mac, port }), .. } => {
            bind(instance, Binding { address, mac: mac.to_string(), port }).await
        }
        Args { action: Some(Action::Unbind { address }), .. } => unbind(instance, address).await,
        Args { watch: true, json, .. } => watch(instance, json).await,
        Args { json, .. } => list(instance, json),
    }
}

fn list(instance: &Instance, json: bool) -> Result<()> {
    let leases = look(instance, &Tables::open(instance)?)?;
    if json {
        print::line(&listing::json("leases", &leases)?)
    } else if leases.is_empty() {
        print::line("no leases")
    } else {
        print::text(&listing::table(&COLUMNS, leases.iter().map(cells)))
    }
}

fn look(instance: &Instance, tables: &Tables) -> Result<Vec<LeaseRow>> {
    leases::list(tables, &Directory::of_files(&state::load(instance)?))
}

/// Prints changes until it is told to end, or nobody reads any more.
async fn watch(instance: &Instance, json: bool) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let tables = Tables::open(instance)?;
    let mut known = look(instance, &tables)?;
    let present = known.iter().map(|lease| leases::Change { event: Event::Present, lease: lease.clone() });
    if !tell(&present.collect::<Vec<_>>(), json)? {
        return Ok(());
    }
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
        }
        let now = look(instance, &tables)?;
        let changes = leases::changes(&known, &now);
        known = now;
        if !print::is_read() || !tell(&changes, json)? {
            return Ok(());
        }
    }
}

/// Prints changes, a line each; false when nobody reads them.
fn tell(changes: &[leases::Change], json: bool) -> Result<bool> {
    for change in changes {
        let line = if json { serde_json::to_string(change)? } else { sentence(change) };
        if !print::is_written(&format!("{line}\n"))? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn sentence(change: &leases::Change) -> String {
    let [address, mac, name, port, bridge, source, ..] = cells(&change.lease);
    let name = if name.is_empty() { String::new() } else { format!(" \"{name}\"") };
    let bridge = if bridge.is_empty() { String::new() } else { format!(" of {bridge}") };
    format!("{:<8} {address} {mac}{name} at port {port}{bridge}, from {source}", change.event.name())
}

async fn bind(instance: &Instance, binding: Binding) -> Result<()> {
    let mut change = Change::begin(instance).await?;
    let networks = plan::managed(&change.state, &change.facts);
    let network = networks.iter().find(|network| network.subnet.contains(&binding.address));
    let refused = |why: String| {
        let what = format!("cannot bind {}", binding.address);
        Error::Unfit { what, why, hint: "`vmnat network list` shows networks and bridges".to_owned() }
    };
    let Some(network) = network else {
        return Err(refused("it is in no network of this instance".to_owned()).into());
    };
    if network.gateway == binding.address.into() {
        return Err(refused("it is the host's own".to_owned()).into());
    }
    let bridge = change.facts.name_of(network.bridge);
    if let Some(port) = &binding.port
        && !change.facts.ports_of(network.bridge).any(|link| link.name == *port)
    {
        return Err(refused(format!("{bridge} has no port {port}")).into());
    }
    let line = format!("bound {binding}");
    let bindings = &mut change.state.bindings;
    bindings.retain(|known| known.address != binding.address);
    bindings.push(binding);
    report(&change.apply().await?, &line)
}

async fn unbind(instance: &Instance, address: Ipv4Addr) -> Result<()> {
    let mut change = Change::begin(instance).await?;
    let Some(known) = change.state.bindings.iter().find(|known| known.address == address).cloned() else {
        let why = "nobody has bound it by `vmnat leases bind`".to_owned();
        let hint = "`vmnat leases` shows who says what".to_owned();
        return Err(Error::Unfit { what: format!("cannot unbind {address}"), why, hint }.into());
    };
    change.state.bindings.retain(|binding| *binding != known);
    report(&change.apply().await?, &format!("took back: {known}"))
}

const COLUMNS: [Column; 9] = [
    Column::Text("ADDRESS"),
    Column::Text("MAC"),
    Column::Text("NAME"),
    Column::Text("PORT"),
    Column::Text("BRIDGE"),
    Column::Text("SOURCE"),
    Column::Text("BOUND"),
    Column::Number("EXPIRES"),
    Column::Number("SEEN"),
];

fn cells(lease: &LeaseRow) -> [String; 9] {
    let span_until = |end: u64| listing::span(end.saturating_sub(crate::forwards::now()));
    [
        lease.address.to_string(),
        lease.mac.to_string(),
        lease.name.clone().unwrap_or_default(),
        lease.port.clone().unwrap_or_else(|| "unknown".to_owned()),
        lease.bridge.clone().unwrap_or_default(),
        sources(lease),
        if lease.bound { "yes".to_owned() } else { "no".to_owned() },
        lease.expires.map_or_else(|| "never".to_owned(), |end| format!("in {}", span_until(end))),
        lease.age_seconds.map_or_else(|| "never".to_owned(), |age| format!("{} ago", listing::span(age))),
    ]
}

/// Who says the MAC, and who says name and port where it is somebody else.
fn sources(lease: &LeaseRow) -> String {
    let others = [("name", lease.name_source), ("port", lease.port_source)];
    let others = others.into_iter().filter_map(|(what, source)| Some((what, source?)));
    let others = others.filter(|(_, source)| *source != lease.source);
    let others: Vec<String> =
        others.map(|(what, source): (_, Source)| format!("{what}: {}", source.name())).collect();
    let own = lease.source.name();
    if others.is_empty() { own.to_owned() } else { format!("{own} ({})", others.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease() -> LeaseRow {
        LeaseRow {
            address: [192, 168, 122, 10].into(),
            mac: Mac::new([0x52, 0x54, 0, 1, 2, 3]),
            name: Some("web".into()),
            port: None,
            bridge: Some("virbr0".into()),
            source: Source::Neighbour,
            name_source: Some(Source::LibvirtHosts),
            port_source: None,
            bound: false,
            expires: None,
            age_seconds: Some(61),
        }
    }

    #[test]
    fn a_lease_whose_port_is_unknown_says_so() {
        let expected = concat!(
            r#"{"address":"192.168.122.10","mac":"52:54:00:01:02:03","name":"web","port":null,"bridge":"virbr0","#,
            r#""source":"neighbour","name_source":"libvirt-hosts","port_source":null,"bound":false,"expires":null,"#,
            r#""age_seconds":61}"#,
        );
        assert_eq!(serde_json::to_string(&lease()).unwrap(), expected);
        let cells = cells(&lease());
        assert_eq!((cells[3].as_str(), cells[8].as_str()), ("unknown", "1 min 1 s ago"));
        assert_eq!(cells[5], "neighbour (name: libvirt-hosts)");
    }

    #[test]
    fn a_change_is_one_line() {
        let lease = LeaseRow { port: Some("vnet0".into()), ..lease() };
        let change = leases::Change { event: Event::Changed, lease };
        let expected = "changed  192.168.122.10 52:54:00:01:02:03 \"web\" at port vnet0 of virbr0, \
                        from neighbour (name: libvirt-hosts)";
        assert_eq!(sentence(&change), expected);
        assert!(serde_json::to_string(&change).unwrap().starts_with(r#"{"event":"changed","address":"#));
    }
}
