//! `vmnat flows`: what guests talk to, and by which external endpoint.

mod printer;

use std::net::Ipv4Addr;

use anyhow::Result;
use clap::Subcommand;
use ipnet::Ipv4Net;
use serde::Serialize;
use vmnat_common::{Endpoint, Protocol};

use self::printer::{Names, Printer};
use super::print;
use crate::{
    error::Error,
    flows::{self, Filter, Flow, Traffic},
    paths::Instance,
    report::{self, Column},
    tables::Tables,
};

/// Show the flows of guests, or remove some
///
/// Beyond ten thousand they are shown as they are read, in no order.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    filter: FilterArgs,
    /// Print only how many there are
    #[arg(long)]
    count: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, Subcommand)]
enum Action {
    /// Remove flows; a conversation that goes on opens a flow again, by the same external port
    Rm(RemoveArgs),
}

#[derive(Clone, Debug, clap::Args)]
struct RemoveArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Remove every flow
    #[arg(long)]
    all: bool,
}

#[derive(Clone, Debug, clap::Args)]
struct FilterArgs {
    /// Only those of this guest, or of the guests in this network
    #[arg(long, value_name = "ADDRESS|CIDR", value_parser = guest)]
    guest: Option<Ipv4Net>,
    /// Only those with this guest's, external or remote address
    #[arg(long, value_name = "ADDRESS")]
    address: Option<Ipv4Addr>,
    /// Only those with this guest's, external or remote port, or ICMP identifier
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Only those of this protocol: tcp, udp, sctp or icmp
    #[arg(long, value_name = "PROTOCOL", value_parser = protocol)]
    protocol: Option<Protocol>,
}

impl From<&FilterArgs> for Filter {
    fn from(args: &FilterArgs) -> Self {
        let FilterArgs { guest, address, port, protocol } = *args;
        Self { guest, address, port, protocol }
    }
}

/// Runs the command.
///
/// # Errors
/// When the instance does not run, or the kernel refuses.
pub fn run(instance: &Instance, args: &Args) -> Result<()> {
    let Args { action, filter, count, json } = args;
    let filter = Filter::from(filter);
    match action {
        // clap's own rule would also refuse the global options here.
        Some(Action::Rm(_)) if !filter.is_empty() || *count || *json => {
            Err(Error::Usage("write the options of `flows rm` after \"rm\"".to_owned()).into())
        }
        Some(Action::Rm(args)) => remove(instance, args),
        None if *count => show_count(instance, &filter, *json),
        None => show(instance, &filter, *json),
    }
}

fn remove(instance: &Instance, args: &RemoveArgs) -> Result<()> {
    let RemoveArgs { filter, all } = args;
    let filter = Filter::from(filter);
    if filter.is_empty() != *all {
        let what =
            "say which flows to remove by --guest, --address, --port or --protocol; or all of them by --all";
        return Err(Error::Usage(what.to_owned()).into());
    }
    let removed = flows::remove(&Tables::open(instance)?, &filter)?;
    let noun = if removed == 1 { "flow" } else { "flows" };
    print::line(&format!("removed {} {noun}", report::number(removed)))
}

fn show_count(instance: &Instance, filter: &Filter, json: bool) -> Result<()> {
    #[derive(Serialize)]
    struct Row {
        flows: u64,
    }
    let flows = flows::count(&Tables::open(instance)?, filter)?;
    if json {
        print::line(&report::json("flow_count", &[Row { flows }])?)
    } else {
        print::line(&flows.to_string())
    }
}

/// Rows that are held, and put in order; where there are more, they are printed as they are read.
const HELD: usize = 10_000;

fn show(instance: &Instance, filter: &Filter, json: bool) -> Result<()> {
    let tables = Tables::open(instance)?;
    let mut printer = Printer::new(json);
    let mut held = Vec::new();
    let mut is_read = true;
    flows::each(&tables, filter, |flow| {
        held.push(flow);
        // While there may be few, all of them are waited for.
        if held.len() >= if printer.has_begun { BATCH } else { HELD } {
            is_read = printer.print(&held)?;
            held.clear();
        }
        Ok(is_read)
    })?;
    if !is_read {
        return Ok(());
    }
    if !printer.has_begun {
        flows::sort(&mut held);
        if !json {
            return show_table(&held);
        }
    }
    printer.print(&held)?;
    printer.end()
}

fn show_table(flows: &[Flow]) -> Result<()> {
    if flows.is_empty() {
        return print::line("no flows");
    }
    let mut names = Names::default();
    print::text(&report::table(&COLUMNS, flows.iter().map(|flow| cells(flow, names.of(flow.out_if)))))
}

/// Rows that are printed at once where they are not held.
const BATCH: usize = 1_000;

/// A flow in JSON.
#[derive(Serialize)]
struct Row<'a> {
    protocol: String,
    guest: Place,
    external: Place,
    remote: Place,
    stage: &'a str,
    idle_seconds: u64,
    outbound: Amount,
    inbound: Amount,
    interface: &'a str,
    forwarded: bool,
    imported: bool,
}

#[derive(Serialize)]
struct Place {
    address: Ipv4Addr,
    port: u16,
}

#[derive(Serialize)]
struct Amount {
    packets: u64,
    bytes: u64,
}

impl<'a> Row<'a> {
    fn new(flow: &Flow, interface: &'a str) -> Self {
        Self {
            protocol: protocol_name(flow.protocol),
            guest: flow.guest.into(),
            external: flow.external.into(),
            remote: flow.remote.into(),
            stage: flow.stage,
            idle_seconds: flow.idle_seconds,
            outbound: flow.outbound.into(),
            inbound: flow.inbound.into(),
            interface,
            forwarded: flow.forwarded,
            imported: flow.imported,
        }
    }
}

impl From<Endpoint> for Place {
    fn from(endpoint: Endpoint) -> Self {
        Self { address: endpoint.address.into(), port: endpoint.port.number() }
    }
}

impl From<Traffic> for Amount {
    fn from(traffic: Traffic) -> Self {
        Self { packets: traffic.packets, bytes: traffic.bytes }
    }
}

const COLUMNS: [Column; 10] = [
    Column::Text("PROTOCOL"),
    Column::Text("GUEST"),
    Column::Text("EXTERNAL"),
    Column::Text("REMOTE"),
    Column::Text("STAGE"),
    Column::Number("IDLE"),
    Column::Number("OUTBOUND"),
    Column::Number("INBOUND"),
    Column::Text("INTERFACE"),
    Column::Text("ORIGIN"),
];

/// How wide the columns are where the rows are not known beforehand.
const WIDTHS: [usize; COLUMNS.len()] = [8, 21, 21, 21, 12, 12, 22, 22, 15, 9];

fn cells(flow: &Flow, interface: &str) -> [String; 10] {
    // The far port of an ICMP query is its type, which its protocol says already.
    let is_icmp = flow.protocol == Protocol::Icmp.number();
    let remote = if is_icmp { flow.remote.address.to_string() } else { flow.remote.to_string() };
    let amount =
        |traffic: Traffic| format!("{} ({})", report::number(traffic.packets), report::bytes(traffic.bytes));
    let origin = match (flow.forwarded, flow.imported) {
        (true, true) => "forward, conntrack",
        (true, false) => "forward",
        (false, true) => "conntrack",
        (false, false) => "guest",
    };
    [
        protocol_name(flow.protocol),
        flow.guest.to_string(),
        flow.external.to_string(),
        remote,
        flow.stage.to_owned(),
        report::span(flow.idle_seconds),
        amount(flow.outbound),
        amount(flow.inbound),
        interface.to_owned(),
        origin.to_owned(),
    ]
}

fn protocol_name(number: u8) -> String {
    Protocol::from_number(number).map_or_else(|| number.to_string(), |protocol| protocol.name().to_owned())
}

fn guest(text: &str) -> Result<Ipv4Net, String> {
    let net = text.parse::<Ipv4Net>().ok().map(|net| net.trunc());
    let host = text.parse::<Ipv4Addr>().ok().map(Ipv4Net::from);
    net.or(host).ok_or_else(|| "give an IPv4 address or a network such as 192.168.122.0/24".to_owned())
}

fn protocol(text: &str) -> Result<Protocol, String> {
    let found = Protocol::ALL.into_iter().find(|protocol| protocol.name().eq_ignore_ascii_case(text));
    found.ok_or_else(|| "give tcp, udp, sctp or icmp".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use vmnat_common::{Address, Port};

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn parse(words: &str) -> Result<Args, clap::Error> {
        Command::try_parse_from(["flows"].into_iter().chain(words.split_whitespace()))
            .map(|command| command.args)
    }

    #[test]
    fn a_guest_is_an_address_or_a_network() {
        assert_eq!(guest("192.168.122.10"), Ok("192.168.122.10/32".parse().unwrap()));
        assert_eq!(guest("192.168.122.10/24"), Ok("192.168.122.0/24".parse().unwrap()));
        assert!(guest("guest1").is_err() && guest("fe80::1").is_err());
    }

    #[test]
    fn words_become_a_filter() {
        let args = parse("--guest 10.0.0.5 --port 443 --protocol TCP --address 1.1.1.1 --json").unwrap();
        let expected = Filter {
            guest: Some("10.0.0.5/32".parse().unwrap()),
            address: Some([1, 1, 1, 1].into()),
            port: Some(443),
            protocol: Some(Protocol::Tcp),
        };
        assert_eq!(Filter::from(&args.filter), expected);
        assert!(args.json && parse("--protocol ipip").is_err());
    }

    #[test]
    fn removing_needs_a_filter_or_all_of_them() {
        for (words, fits) in
            [("rm", false), ("rm --all --port 5", false), ("rm --all", true), ("rm --port 5", true)]
        {
            let Some(Action::Rm(args)) = parse(words).unwrap().action else { panic!("{words}") };
            assert_eq!(Filter::from(&args.filter).is_empty() == args.all, fits, "{words}");
        }
        let misplaced = parse("--port 5 rm --all").unwrap();
        assert!(run(&Instance::default(), &misplaced).unwrap_err().to_string().contains("after \"rm\""));
    }

    fn echo() -> Flow {
        let endpoint = |octets, port| Endpoint::new(Address::new(octets), Port::new(port));
        Flow {
            protocol: 1,
            guest: endpoint([192, 168, 122, 10], 4660),
            external: endpoint([198, 51, 100, 2], 4661),
            remote: endpoint([203, 0, 113, 9], 8),
            stage: "replied",
            idle_seconds: 65,
            outbound: Traffic { packets: 2, bytes: 168 },
            inbound: Traffic { packets: 1, bytes: 84 },
            out_if: 3,
            forwarded: false,
            imported: true,
        }
    }

    #[test]
    fn json_keeps_its_shape() {
        let row = Row::new(&echo(), "enp3s0");
        let expected = concat!(
            r#"{"protocol":"icmp","guest":{"address":"192.168.122.10","port":4660},"#,
            r#""external":{"address":"198.51.100.2","port":4661},"remote":{"address":"203.0.113.9","port":8},"#,
            r#""stage":"replied","idle_seconds":65,"outbound":{"packets":2,"bytes":168},"#,
            r#""inbound":{"packets":1,"bytes":84},"interface":"enp3s0","forwarded":false,"imported":true}"#,
        );
        assert_eq!(serde_json::to_string(&row).unwrap(), expected);
    }

    #[test]
    fn a_row_reads_well() {
        let expected = [
            "icmp",
            "192.168.122.10:4660",
            "198.51.100.2:4661",
            "203.0.113.9",
            "replied",
            "1 min 5 s",
            "2 (168 B)",
            "1 (84 B)",
            "enp3s0",
            "conntrack",
        ];
        assert_eq!(cells(&echo(), "enp3s0"), expected);
    }
}
