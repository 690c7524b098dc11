//! `vmnat dnat list`: port forwards, where they lead, and what went through them.

use std::{collections::HashMap, net::Ipv4Addr};

use anyhow::Result;
use serde::Serialize;

use super::load;
use crate::{
    cli::print,
    forwards::{self, Count, PortForward, Target, now},
    paths::Instance,
    report::{self, Column},
    state::State,
    tables::Tables,
};

/// List port forwards; also while the instance is down
#[derive(Clone, Debug, clap::Args)]
#[command(visible_alias = "ls")]
pub(super) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    id: u32,
    forward: String,
    protocol: &'static str,
    /// None for every uplink's.
    host: Option<Ipv4Addr>,
    uplink: Option<String>,
    port: u16,
    last_port: u16,
    /// As it was written.
    target: String,
    /// The guest's address; none while nobody knows it.
    guest: Option<Ipv4Addr>,
    /// Its lease is not known at the moment.
    lease_missing: bool,
    guest_port: u16,
    connections: u64,
    refused: u64,
    inbound: Amount,
    outbound: Amount,
    from: Vec<String>,
    /// Second since 1970.
    expires: Option<u64>,
    comment: Option<String>,
    runtime_only: bool,
    /// Who asks for it: `command` or `file`.
    origin: &'static str,
    /// The file of the configuration that says it.
    file: Option<String>,
}

#[derive(Debug, Serialize)]
struct Amount {
    packets: u64,
    bytes: u64,
}

/// Runs the command.
///
/// # Errors
/// When neither the instance nor its file is there.
pub(super) fn run(instance: &Instance, args: &Args) -> Result<()> {
    let Args { json } = args;
    let (state, is_running) = load(instance)?;
    let counts = if is_running { forwards::counts(&Tables::open(instance)?)? } else { HashMap::new() };
    let rows: Vec<Row> =
        state.forwards.iter().map(|forward| row(forward, &state, is_running, &counts)).collect();
    if *json {
        return print::line(&report::json("dnat", &rows)?);
    }
    print::text(&text(&rows, now()))
}

fn row(forward: &PortForward, state: &State, is_running: bool, counts: &HashMap<u32, Count>) -> Row {
    let PortForward { id, wish } = forward;
    let spec = &wish.spec;
    let count = counts.get(id).copied().unwrap_or_default();
    let resolved = state.resolved.get(id);
    let is_lease = !matches!(spec.target, Target::Address(_));
    let lease_missing = is_lease && resolved.is_none_or(|known| known.missing);
    Row {
        id: *id,
        forward: spec.to_string(),
        protocol: spec.protocols.name(),
        host: spec.host,
        uplink: wish.uplink.clone(),
        port: spec.ports.first(),
        last_port: spec.ports.last(),
        target: spec.target.to_string(),
        guest: spec.target.address().or(resolved.map(|known| known.address)),
        lease_missing: is_running && lease_missing,
        guest_port: spec.target_port,
        connections: count.connections,
        refused: count.refused,
        inbound: Amount { packets: count.inbound.packets, bytes: count.inbound.bytes },
        outbound: Amount { packets: count.outbound.packets, bytes: count.outbound.bytes },
        from: wish.from.iter().map(ToString::to_string).collect(),
        expires: wish.expires,
        comment: wish.comment.clone(),
        runtime_only: wish.runtime_only,
        origin: if wish.file.is_some() { "file" } else { "command" },
        file: wish.file.clone(),
    }
}

const COLUMNS: [Column; 12] = [
    Column::Number("ID"),
    Column::Text("FROM"),
    Column::Text("TO"),
    Column::Text("PROTOCOL"),
    Column::Number("CONNECTIONS"),
    Column::Number("TO GUEST"),
    Column::Number("FROM GUEST"),
    Column::Number("REFUSED"),
    Column::Text("SOURCES"),
    Column::Text("EXPIRES"),
    Column::Text("COMMENT"),
    Column::Text("ORIGIN"),
];

/// A table; columns that say nothing are left out.
fn text(rows: &[Row], now: u64) -> String {
    if rows.is_empty() {
        return "no port forwards\n".to_owned();
    }
    let mut cells: Vec<[String; 12]> = rows.iter().map(|row| cells(row, now)).collect();
    tell_command(&mut cells);
    let says = |column: usize| cells.iter().any(|row| row.get(column).is_some_and(|cell| !cell.is_empty()));
    let told: Vec<bool> = (0..COLUMNS.len()).map(says).collect();
    let columns: Vec<Column> =
        COLUMNS.into_iter().zip(&told).filter(|(_, told)| **told).map(|(column, _)| column).collect();
    let kept = |row: [String; 12]| {
        row.into_iter().zip(&told).filter(|(_, told)| **told).map(|(cell, _)| cell).collect::<Vec<_>>()
    };
    report::table(&columns, cells.into_iter().map(kept))
}

fn cells(row: &Row, now: u64) -> [String; 12] {
    let external = match (row.host, &row.uplink) {
        (Some(host), _) => host.to_string(),
        (None, Some(uplink)) => uplink.clone(),
        (None, None) => "every uplink".to_owned(),
    };
    let span = row.last_port.saturating_sub(row.port);
    let ports = |first: u16| match span {
        0 => first.to_string(),
        _ => format!("{first}-{}", first.saturating_add(span)),
    };
    let guest = match row.guest {
        Some(guest) if guest.to_string() == row.target => String::new(),
        Some(guest) if row.lease_missing => format!(" ({guest}, lease is gone)"),
        Some(guest) => format!(" ({guest})"),
        None if row.lease_missing => " (no lease)".to_owned(),
        None => String::new(),
    };
    let amount =
        |amount: &Amount| format!("{} ({})", report::number(amount.packets), report::bytes(amount.bytes));
    let expires = match (row.expires, row.runtime_only) {
        (None, false) => String::new(),
        (None, true) => "with the instance".to_owned(),
        (Some(end), _) if end <= now => "expired".to_owned(),
        (Some(end), _) => format!("in {}", report::span(end.saturating_sub(now))),
    };
    [
        row.id.to_string(),
        format!("{external}:{}", ports(row.port)),
        format!("{}:{}{guest}", row.target, ports(row.guest_port)),
        row.protocol.to_owned(),
        report::number(row.connections),
        amount(&row.inbound),
        amount(&row.outbound),
        if row.from.is_empty() { String::new() } else { report::number(row.refused) },
        row.from.join(" "),
        expires,
        row.comment.clone().unwrap_or_default(),
        row.file.clone().unwrap_or_default(),
    ]
}

/// Where some forwards are a file's, says that the others are not.
fn tell_command(cells: &mut [[String; 12]]) {
    if cells.iter().any(|[.., origin]| !origin.is_empty()) {
        for [.., origin] in cells.iter_mut().filter(|[.., origin]| origin.is_empty()) {
            "command line".clone_into(origin);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        forwards::{Resolved, Wish},
        state::HookMode,
    };

    fn state() -> State {
        let mut state = State::new(HookMode::Tcx);
        let wish = |spec: &str| Wish::plain(spec.parse().unwrap());
        state.forwards = vec![
            PortForward { id: 1, wish: wish("8080-8081:192.168.122.10:80-81") },
            PortForward { id: 2, wish: wish("192.0.2.1:53:ns:53/udp") },
        ];
        state.resolved.insert(2, Resolved { address: [192, 168, 122, 11].into(), missing: false });
        state
    }

    fn rows(state: &State) -> Vec<Row> {
        state.forwards.iter().map(|forward| row(forward, state, true, &HashMap::new())).collect()
    }

    #[test]
    fn a_plain_list_has_no_empty_columns() {
        let expected = "ID  FROM                    TO                          PROTOCOL  CONNECTIONS  TO GUEST  FROM GUEST\n \
                        1  every uplink:8080-8081  192.168.122.10:80-81        tcp                 0   0 (0 B)     0 (0 B)\n \
                        2  192.0.2.1:53            ns:53 (192.168.122.11)      udp                 0   0 (0 B)     0 (0 B)\n";
        assert_eq!(
            text(&rows(&state()), 0).split_whitespace().collect::<Vec<_>>(),
            expected.split_whitespace().collect::<Vec<_>>()
        );
    }

    #[test]
    fn options_have_columns_of_their_own() {
        let mut state = state();
        state.forwards[0].wish = Wish {
            from: vec!["192.0.2.0/24".parse().unwrap()],
            uplink: Some("enp3s0".into()),
            comment: Some("the office".into()),
            expires: Some(7300),
            ..state.forwards[0].wish.clone()
        };
        state.resolved.clear();
        let printed = text(&rows(&state), 100);
        for words in
            ["SOURCES", "192.0.2.0/24", "enp3s0:8080-8081", "in 2 h", "the office", "ns:53 (no lease)"]
        {
            assert!(printed.contains(words), "no {words} in {printed}");
        }
        assert!(text(&rows(&state), 9_000).contains("expired"));
    }

    #[test]
    fn origins_are_told_where_they_differ() {
        let mut state = state();
        assert!(!text(&rows(&state), 0).contains("ORIGIN"));
        state.forwards[1].wish.file = Some("/etc/vmnat/vmnat.toml".into());
        let printed = text(&rows(&state), 0);
        for words in ["ORIGIN", "command line", "/etc/vmnat/vmnat.toml"] {
            assert!(printed.contains(words), "no {words} in {printed}");
        }
    }

    #[test]
    fn a_stopped_instance_misses_no_lease() {
        let mut state = state();
        state.resolved.clear();
        let rows: Vec<Row> =
            state.forwards.iter().map(|forward| row(forward, &state, false, &HashMap::new())).collect();
        assert!(!rows[1].lease_missing && !text(&rows, 0).contains("no lease"));
    }

    #[test]
    fn json_keeps_its_shape() {
        let expected = concat!(
            r#"{"id":2,"forward":"192.0.2.1:53:ns:53/udp","protocol":"udp","host":"192.0.2.1","uplink":null,"#,
            r#""port":53,"last_port":53,"target":"ns","guest":"192.168.122.11","lease_missing":false,"guest_port":53,"#,
            r#""connections":0,"refused":0,"inbound":{"packets":0,"bytes":0},"outbound":{"packets":0,"bytes":0},"#,
            r#""from":[],"expires":null,"comment":null,"runtime_only":false,"origin":"command","file":null}"#,
        );
        assert_eq!(serde_json::to_string(&rows(&state())[1]).unwrap(), expected);
    }
}
