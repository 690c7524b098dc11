//! Results as text, as JSON, and as a section of docs/benchmarks.md.

use std::{fs, io, path::Path};

use anyhow::{Context as _, Result};
use comfy_table::{Cell, CellAlignment, Table, presets::ASCII_MARKDOWN};
use serde_json::{Value, json};

use crate::{goal::Goal, plot::Plot};

const INTRODUCTION: &str = "# Benchmarks

Written by `cargo xtask bench`, but for the last section, which is docs/benchmarks/notes.md. All figures of a section come from one
run, in which everything that is compared took turns; compare within a section, not across machines. The machine is a shared one, so
other work disturbs all rows alike. The figures of every round are in docs/benchmarks/*.json.
";

/// Titles of all sections, in the order in which they stand.
const ORDER: [&str; 9] = [
    "Nanoseconds of a packet",
    "Many flows",
    "Streams",
    "Connections",
    "Latency",
    "A real guest",
    "Programs alone",
    "Ranges of ports",
    "Thousands of port forwards",
];

/// The results of one bench.
#[derive(Debug)]
pub struct Section {
    /// Its word on the command line, and of its JSON file.
    pub name: &'static str,
    /// Its heading.
    pub title: &'static str,
    /// How it was measured, and the tables.
    pub text: String,
    /// All figures.
    pub data: Value,
    /// What it had to show.
    pub goals: Vec<Goal>,
    /// Its pictures.
    pub plots: Vec<Plot>,
}

impl Section {
    /// Writes `benchmarks/<name>.json`, and this section of `benchmarks.md`; other sections stay.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let data = folder.join("benchmarks");
        fs::create_dir_all(&data).with_context(|| data.display().to_string())?;
        let path = data.join(format!("{}.json", self.name));
        fs::write(&path, serde_json::to_string(&self.data)? + "\n")
            .with_context(|| path.display().to_string())?;
        for Plot { file, svg, .. } in self.plots.iter().filter(|plot| !plot.svg.is_empty()) {
            let path = data.join(format!("{file}.svg"));
            fs::write(&path, svg).with_context(|| path.display().to_string())?;
        }
        let notes = data.join("notes.md");
        let notes = match fs::read_to_string(&notes) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            other => other.with_context(|| notes.display().to_string())?,
        };
        let path = folder.join("benchmarks.md");
        let known = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            other => other.with_context(|| path.display().to_string())?,
        };
        let section = format!("{}\n\n{}\n\n{}", self.title, machine_in_words(), self.text.trim());
        fs::write(&path, spliced(&known, &section, &notes)).with_context(|| path.display().to_string())
    }
}

/// The document with a section, whose first line is its title, in its place, and the notes at the end.
fn spliced(known: &str, section: &str, notes: &str) -> String {
    let mut sections: Vec<&str> = known.split("\n## ").skip(1).map(str::trim).collect();
    // What stands nowhere in the order is what the notes were, or a bench that is no more.
    sections.retain(|old| heading(old) != heading(section) && ORDER.contains(&heading(old)));
    sections.push(section);
    sections.sort_by_key(|section| ORDER.iter().position(|title| *title == heading(section)));
    // The notes stand as they were written, below their own heading.
    let notes = notes.trim();
    let end = if notes.is_empty() { String::new() } else { format!("\n{notes}\n") };
    format!("{INTRODUCTION}\n## {}\n{end}", sections.join("\n\n## "))
}

fn heading(section: &str) -> &str {
    section.lines().next().unwrap_or_default()
}

/// A number as people write it.
pub fn thousands(number: u32) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
    groups.join(",")
}

/// A table that is Markdown and reads well as it is.
pub fn table<const N: usize>(columns: &[&str; N], rows: &[[String; N]]) -> String {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    table.set_header(columns.iter().map(Cell::new));
    for row in rows {
        table.add_row(row.iter().enumerate().map(|(column, text)| {
            let alignment = if column == 0 { CellAlignment::Left } else { CellAlignment::Right };
            Cell::new(text).set_alignment(alignment)
        }));
    }
    table.to_string()
}

/// What the figures were taken on.
pub fn machine() -> Value {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let row = processors.lines().find(|row| row.starts_with(name))?;
        Some(row.split_once(':')?.1.trim().to_owned())
    };
    let cpus = processors.lines().filter(|row| row.starts_with("processor")).count();
    json!({
        "processor": field("model name").or_else(|| field("CPU part")).unwrap_or_else(|| "unknown".to_owned()),
        "processors": cpus,
        "is_virtual": field("flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
        "kernel": kernel_version(),
        "load": fs::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').next(),
    })
}

/// The kernel's version, without what a distribution or a builder appends.
fn kernel_version() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim().split('-').next().unwrap_or_default().to_owned()
}

fn machine_in_words() -> String {
    let machine = machine();
    let word = |name: &str| {
        let value = machine.get(name).cloned().unwrap_or_default();
        value.as_str().map_or_else(|| value.to_string(), str::to_owned)
    };
    let kind =
        if machine.get("is_virtual") == Some(&Value::Bool(true)) { "a virtual machine" } else { "a machine" };
    format!(
        "Taken on {kind} with {} processors ({}), Linux {}, load {} at the end.",
        word("processors"),
        word("processor"),
        word("kernel"),
        word("load")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTES: &str = "## What limits it\n\nBy hand.\n\n### Memory\n\nMuch.\n";

    fn headings(document: &str) -> Vec<&str> {
        document.lines().filter_map(|line| line.strip_prefix("## ")).collect()
    }

    #[test]
    fn a_section_takes_its_place_and_leaves_the_others_as_they_are() {
        let document = spliced("", "Streams\n\nslow", NOTES);
        assert_eq!(headings(&document), ["Streams", "What limits it"]);
        let document = spliced(&document, "Latency\n\nlong", NOTES);
        let document = spliced(&document, "Nanoseconds of a packet\n\nmany\n\n### Apart\n\nyes", NOTES);
        let document = spliced(&document, "Streams\n\nfast", NOTES);
        assert_eq!(headings(&document), ["Nanoseconds of a packet", "Streams", "Latency", "What limits it"]);
        let expected = "## Nanoseconds of a packet\n\nmany\n\n### Apart\n\nyes\n\n## Streams\n\nfast\n\n## Latency\n\nlong\n\n";
        assert_eq!(document, format!("{INTRODUCTION}\n{expected}{NOTES}"));
    }

    #[test]
    fn the_same_section_again_changes_nothing() {
        let once = spliced("", "Streams\n\nfast", NOTES);
        assert_eq!(spliced(&once, "Streams\n\nfast", NOTES), once);
    }

    #[test]
    fn notes_are_those_of_today_once_and_last() {
        let old = spliced("", "Streams\n\nfast", "## What once limited it\n\nLess.\n\n## And more\n\nOld.\n");
        let document = spliced(&old, "Thousands of port forwards\n\nall", NOTES);
        assert_eq!(headings(&document), ["Streams", "Thousands of port forwards", "What limits it"]);
        assert!(document.ends_with(&format!("\n\n{NOTES}")), "{document}");
        // Without a heading they are still the end, and without any there is none.
        assert!(spliced("", "Streams\n\nfast", "By hand.").ends_with("\nfast\n\nBy hand.\n"));
        assert!(spliced("", "Streams\n\nfast", "").ends_with("\nfast\n"));
    }

    #[test]
    fn every_title_of_a_section_has_its_place() {
        let sources = [
            include_str!("packet.rs"),
            include_str!("flows.rs"),
            include_str!("stream.rs"),
            include_str!("connect.rs"),
            include_str!("latency.rs"),
            include_str!("guest.rs"),
            include_str!("programs.rs"),
            include_str!("ranges.rs"),
            include_str!("dnat.rs"),
        ];
        for (source, title) in sources.iter().zip(ORDER) {
            assert!(source.contains(&format!("\"{title}\"")), "no bench calls its section \"{title}\"");
        }
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!([0, 999, 1_000, 1_000_000].map(thousands), ["0", "999", "1,000", "1,000,000"]);
    }
}
