//! How listings look: tables, numbers and ages for people, one JSON envelope for programs, and the generated page of
//! `docs/counters.md`. Makes text, prints nothing.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;
use vmnat_common::{Outcome, outcome::Kind};

/// Version of every listing's JSON; it changes when a field goes or changes its meaning, not when one is added.
pub const JSON_SCHEMA: u32 = 1;

/// What became of packets, in the order of listings.
pub const KINDS: [Kind; 3] = [Kind::Forwarded, Kind::Passed, Kind::Dropped];

/// The envelope of every listing: `{"schema":1,"kind":"flows","rows":[…]}`.
#[derive(Debug, Serialize)]
struct Envelope<'a, T> {
    schema: u32,
    kind: &'a str,
    rows: &'a [T],
}

/// A listing as JSON, on one line.
///
/// # Errors
/// When a row cannot be written as JSON.
pub fn json<T: Serialize>(kind: &str, rows: &[T]) -> Result<String> {
    let envelope = Envelope { schema: JSON_SCHEMA, kind, rows };
    serde_json::to_string(&envelope).with_context(|| format!("cannot write the {kind} as JSON"))
}

/// The beginning of a listing's JSON whose rows are written one by one, with commas between.
#[must_use]
pub fn json_begin(kind: &str) -> String {
    format!(r#"{{"schema":{JSON_SCHEMA},"kind":"{kind}","rows":["#)
}

/// What ends it.
pub const JSON_END: &str = "]}";

/// The head of a table whose rows are not known yet, and so its columns' widths are given.
#[must_use]
pub fn wide_head<const N: usize>(columns: &[Column; N], widths: &[usize; N]) -> String {
    let heads = columns.map(|column| match column {
        Column::Text(head) | Column::Number(head) => head.to_owned(),
    });
    wide_row(columns, widths, &heads)
}

/// A row of it; what is wider than its column moves the rest of its line.
#[must_use]
pub fn wide_row<const N: usize>(columns: &[Column; N], widths: &[usize; N], cells: &[String; N]) -> String {
    let mut line = String::new();
    for ((column, width), cell) in columns.iter().zip(widths).zip(cells) {
        let _ = match column {
            Column::Text(_) => write!(line, "{cell:<width$}  "),
            Column::Number(_) => write!(line, "{cell:>width$}  "),
        };
    }
    line.truncate(line.trim_end().len());
    line.push('\n');
    line
}

/// A column of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// Words, from the left.
    Text(&'static str),
    /// A number, to the right.
    Number(&'static str),
}

/// A table as text, without lines around it; every line ends with a line's end.
#[must_use]
pub fn table<R: IntoIterator<Item = String>>(
    columns: &[Column],
    rows: impl IntoIterator<Item = R>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|column| match column {
        Column::Text(head) | Column::Number(head) => *head,
    }));
    for row in rows {
        table.add_row(row);
    }
    for (column, cells) in columns.iter().zip(table.column_iter_mut()) {
        cells.set_padding((0, 2));
        if matches!(column, Column::Number(_)) {
            cells.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A number with a comma between thousands: `1,234,567`.
#[must_use]
pub fn number(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len().saturating_mul(2));
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && digits.len().saturating_sub(place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// So many bytes, with three digits or so: `512 B`, `1.5 MB`; a thousand to the next unit.
#[must_use]
pub fn bytes(value: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    let mut tenths = value;
    let mut name = "B";
    for unit in UNITS {
        // The first step keeps a decimal.
        let limit = if name == "B" { 1000 } else { 10_000 };
        if tenths < limit {
            break;
        }
        tenths = tenths.checked_div(if name == "B" { 100 } else { 1000 }).unwrap_or(0);
        name = unit;
    }
    let (whole, rest) = (tenths.checked_div(10).unwrap_or(0), tenths.checked_rem(10).unwrap_or(0));
    if name == "B" { format!("{value} B") } else { format!("{whole}.{rest} {name}") }
}

/// A span of time in its two largest units: `7 s`, `4 min 5 s`, `2 h 10 min`, `5 d 3 h`.
#[must_use]
pub fn span(seconds: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let first = UNITS.iter().position(|(length, _)| seconds >= *length).unwrap_or(3);
    let mut rest = seconds;
    let mut parts = Vec::new();
    for (length, name) in UNITS.iter().skip(first).take(2) {
        let whole = rest.checked_div(*length).unwrap_or(0);
        rest = rest.saturating_sub(whole.saturating_mul(*length));
        if whole > 0 || parts.is_empty() {
            parts.push(format!("{whole} {name}"));
        }
    }
    parts.join(" ")
}

/// The page `docs/counters.md`: every outcome with its sentence, by kind.
#[must_use]
pub fn counters_markdown() -> String {
    let mut page = String::from(
        "# Counters\n\n\
         Every visit of a packet to a hook of vmnat ends in exactly one of these outcomes, and is counted under it.\n\
         `vmnat counters` prints the numbers.\n\n\
         This page is generated from the list in `vmnat-common/src/outcome.rs`; a test compares the two.\n",
    );
    for kind in KINDS {
        // Writing to a string cannot fail.
        let _ = write!(
            page,
            "\n## {}\n\n{}\n\n| counter | what happened |\n|---|---|\n",
            title(kind),
            about(kind)
        );
        for outcome in Outcome::ALL.iter().filter(|outcome| outcome.kind() == kind) {
            let _ = writeln!(page, "| `{}` | {} |", outcome.name(), outcome.sentence());
        }
    }
    page
}

const fn title(kind: Kind) -> &'static str {
    match kind {
        Kind::Forwarded => "Forwarded",
        Kind::Passed => "Passed",
        Kind::Dropped => "Dropped",
    }
}

const fn about(kind: Kind) -> &'static str {
    match kind {
        Kind::Forwarded => "vmnat sent the packet on its way.",
        Kind::Passed => "vmnat left the packet as it was and let the kernel go on with it.",
        Kind::Dropped => "vmnat discarded the packet.",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn json_that_is_written_in_parts_is_the_same_document() {
        let parts = format!("{}1,2{JSON_END}", json_begin("flows"));
        assert_eq!(parts, json("flows", &[1, 2]).unwrap());
    }

    #[test]
    fn a_wide_row_keeps_its_columns() {
        let columns = [Column::Text("NAME"), Column::Number("COUNT"), Column::Text("END")];
        let row = |cells: [&str; 3]| wide_row(&columns, &[6, 5, 3], &cells.map(str::to_owned));
        assert_eq!(wide_head(&columns, &[6, 5, 3]), "NAME    COUNT  END\n");
        assert_eq!(row(["a", "7", ""]), "a           7\n");
        assert_eq!(row(["longer-than", "7", "x"]), "longer-than      7  x\n");
    }

    #[test]
    fn the_page_of_counters_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/counters.md");
        if std::env::var_os("VMNAT_WRITE_DOCS").is_some() {
            std::fs::write(path, counters_markdown()).unwrap();
        }
        let page = std::fs::read_to_string(path).unwrap();
        assert!(
            page == counters_markdown(),
            "run this test with VMNAT_WRITE_DOCS=1 to write docs/counters.md"
        );
    }

    #[test]
    fn every_outcome_stands_on_the_page_once() {
        let page = counters_markdown();
        for outcome in Outcome::ALL {
            assert_eq!(page.matches(&format!("| `{}` |", outcome.name())).count(), 1, "{}", outcome.name());
        }
    }

    #[test]
    fn a_listing_says_what_it_is() {
        assert_eq!(json("flows", &[1, 2]).unwrap(), r#"{"schema":1,"kind":"flows","rows":[1,2]}"#);
        assert_eq!(json::<u8>("leases", &[]).unwrap(), r#"{"schema":1,"kind":"leases","rows":[]}"#);
    }

    #[test]
    fn numbers_and_spans_read_well() {
        for (value, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(number(value), text);
        }
        for (value, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (1_550_000, "1.5 MB"),
            (999_999, "999.9 kB"),
            (5_000_000_000, "5.0 GB"),
        ] {
            assert_eq!(bytes(value), text);
        }
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (245, "4 min 5 s"),
            (7800, "2 h 10 min"),
            (442_800, "5 d 3 h"),
            (86_401, "1 d"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }

    #[test]
    fn columns_line_up() {
        let rows = [["tcp".to_owned(), "7".to_owned()], ["icmp".to_owned(), "1,000".to_owned()]];
        let text = table(&[Column::Text("PROTOCOL"), Column::Number("PACKETS")], rows);
        assert_eq!(text, "PROTOCOL  PACKETS\ntcp             7\nicmp        1,000\n");
    }

    proptest! {
        #[test]
        fn no_number_makes_a_format_panic(value in any::<u64>()) {
            prop_assert_eq!(number(value).replace(',', ""), value.to_string());
            prop_assert!(bytes(value).len() <= 9 && !span(value).is_empty());
        }
    }
}
