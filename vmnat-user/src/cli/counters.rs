//! `vmnat counters`: what became of packets.

use anyhow::Result;
use serde::Serialize;
use vmnat_common::Outcome;

use super::print;
use crate::{
    paths::Instance,
    report::{self, Column, KINDS},
    tables::Tables,
};

/// Show what became of packets: each outcome that has occurred, and how often
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Also show outcomes that have not occurred
    #[arg(long)]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Row {
    name: &'static str,
    kind: &'static str,
    packets: u64,
    meaning: &'static str,
}

/// Runs the command.
///
/// # Errors
/// When the instance does not run, or the kernel refuses.
pub fn run(instance: &Instance, args: &Args) -> Result<()> {
    let Args { all, json } = args;
    let counts = Tables::open(instance)?.outcomes()?;
    let rows = rows(&counts, *all);
    if *json { print::line(&report::json("counters", &rows)?) } else { print::text(&text(&rows)) }
}

/// A row for each outcome, forwarded before passed before dropped.
fn rows(counts: &[u64], all: bool) -> Vec<Row> {
    let mut rows = Vec::new();
    for kind in KINDS {
        let of_kind = Outcome::ALL.iter().zip(counts).filter(|(outcome, _)| outcome.kind() == kind);
        let shown = of_kind.filter(|(_, packets)| all || **packets > 0);
        rows.extend(shown.map(|(outcome, packets)| Row {
            name: outcome.name(),
            kind: kind.name(),
            packets: *packets,
            meaning: outcome.sentence(),
        }));
    }
    rows
}

fn text(rows: &[Row]) -> String {
    const COLUMNS: [Column; 4] =
        [Column::Text("COUNTER"), Column::Text("KIND"), Column::Number("PACKETS"), Column::Text("MEANING")];
    let cells = |row: &Row| {
        [row.name.to_owned(), row.kind.to_owned(), report::number(row.packets), row.meaning.to_owned()]
    };
    let totals = KINDS.map(|kind| {
        let of_kind = rows.iter().filter(|row| row.kind == kind.name());
        let packets = of_kind.fold(0_u64, |sum, row| sum.saturating_add(row.packets));
        format!("{} {}", kind.name(), report::number(packets))
    });
    let table =
        if rows.is_empty() { String::new() } else { report::table(&COLUMNS, rows.iter().map(cells)) + "\n" };
    format!("{table}packets: {}\n", totals.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_hidden_unless_all_are_asked_for() {
        let mut counts = vec![0; Outcome::ALL.len()];
        counts[usize::try_from(Outcome::Truncated.index()).unwrap()] = 3;
        counts[usize::try_from(Outcome::TranslatedInbound.index()).unwrap()] = 1_000;
        counts[usize::try_from(Outcome::TranslatedOutbound.index()).unwrap()] = 4;
        let shown = rows(&counts, false);
        let names: Vec<_> = shown.iter().map(|row| row.name).collect();
        assert_eq!(names, ["translated_outbound", "translated_inbound", "truncated"]);
        assert_eq!(rows(&counts, true).len(), Outcome::ALL.len());
        assert!(text(&shown).ends_with("\n\npackets: forwarded 1,004, passed 0, dropped 3\n"));
    }

    #[test]
    fn nothing_yet_is_said_plainly() {
        assert_eq!(text(&[]), "packets: forwarded 0, passed 0, dropped 0\n");
    }
}
