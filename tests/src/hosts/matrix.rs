//! The table of situations by checks, from what the runs have noted.

use std::{
    collections::BTreeMap,
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{
    checks::{Check, Findings},
    variant::Variant,
};

/// Tells where runs note what they found, a file each.
pub const FOLDER: &str = "VMNAT_HOSTS_RESULTS";

/// What the six situations are called.
pub const SITUATIONS: [&str; 6] = [
    "Docker",
    "firewalld",
    "hand-written nftables",
    "ufw",
    "libvirt's nftables backend",
    "rules and networks that change under traffic",
];

/// One row: a variant of a situation as a run has found it.
#[derive(Debug, PartialEq, Eq)]
pub struct Row {
    /// The situation, counted from 1.
    pub situation: u8,
    /// The variant's name.
    pub name: String,
    /// What an administrator has done.
    pub title: String,
    /// What was tried.
    tried: Vec<Check>,
    before: Vec<Check>,
    after: Vec<Check>,
    /// Why checks still fail.
    reasons: BTreeMap<Check, String>,
    /// What was done to the host while its guests talked, and how long they were silent.
    changes: Vec<(String, String)>,
}

/// Notes what a run has found, where it was told to.
///
/// # Errors
///
/// When the file cannot be written.
pub fn note(
    variant: &Variant,
    before: &Findings,
    after: &Findings,
    silences: &[(&str, String)],
) -> Result<()> {
    let Some(folder) = env::var_os(FOLDER).map(PathBuf::from) else { return Ok(()) };
    let names = |checks: Vec<Check>| checks.into_iter().map(Check::name).collect::<Vec<_>>();
    let reasons: BTreeMap<&str, &str> =
        variant.after.iter().map(|(check, reason)| (check.name(), *reason)).collect();
    let row = json!({
        "situation": variant.situation,
        "name": variant.name,
        "title": variant.title,
        "tried": names(after.tried()),
        "before": names(before.failed()),
        "after": names(after.failed()),
        "reasons": reasons,
        "changes": silences.iter().map(|(title, silences)| json!([title, silences])).collect::<Vec<_>>(),
    });
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let path = folder.join(format!("{}.json", variant.name));
    fs::write(&path, row.to_string()).with_context(|| path.display().to_string())
}

/// All rows in a folder, by situation and name.
///
/// # Errors
///
/// When a file cannot be read as a row.
pub fn rows(folder: &Path) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let text = fs::read(&path).with_context(|| path.display().to_string())?;
        let row = Row::read(&serde_json::from_slice(&text)?);
        rows.push(row.with_context(|| format!("{} is no row of the table", path.display()))?);
    }
    rows.sort_by(|one, other| (one.situation, &one.name).cmp(&(other.situation, &other.name)));
    Ok(rows)
}

impl Row {
    fn read(row: &Value) -> Option<Self> {
        let checks = |name: &str| -> Option<Vec<Check>> {
            row[name].as_array()?.iter().map(|check| Check::named(check.as_str()?)).collect()
        };
        let reasons = row["reasons"].as_object()?.iter();
        let changes = row["changes"].as_array()?.iter();
        Some(Self {
            situation: row["situation"].as_u64()?.try_into().ok()?,
            name: row["name"].as_str()?.to_owned(),
            title: row["title"].as_str()?.to_owned(),
            tried: checks("tried")?,
            before: checks("before")?,
            after: checks("after")?,
            reasons: reasons
                .map(|(check, reason)| Some((Check::named(check)?, reason.as_str()?.to_owned())))
                .collect::<Option<_>>()?,
            changes: changes
                .map(|change| Some((change[0].as_str()?.to_owned(), change[1].as_str()?.to_owned())))
                .collect::<Option<_>>()?,
        })
    }

    fn cell(&self, check: Check) -> &'static str {
        match (self.tried.contains(&check), self.before.contains(&check), self.after.contains(&check)) {
            (false, ..) => "",
            (true, false, false) => "ok",
            (true, true, false) => "✗ ok",
            (true, true, true) => "✗ ✗",
            (true, false, true) => "ok ✗",
        }
    }

    /// Checks that still fail, with their reasons.
    fn remains(&self) -> impl Iterator<Item = (Check, &str)> {
        self.after.iter().map(|check| (*check, self.reasons.get(check).map_or("unknown", String::as_str)))
    }
}

/// How many checks failed without vmnat, and how many with it.
#[must_use]
pub fn totals(rows: &[Row]) -> (usize, usize, usize) {
    let sum = |of: fn(&Row) -> usize| rows.iter().map(of).sum();
    (sum(|row| row.tried.len()), sum(|row| row.before.len()), sum(|row| row.after.len()))
}

/// The table in Markdown, which reads well on a terminal too.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    let names = Check::ALL.map(|check| format!(" {} |", check.name())).concat();
    writeln!(text, "| situation |{names}\n|---|{}", "---|".repeat(Check::ALL.len())).ok();
    for row in rows {
        write!(text, "| {:30} |", format!("{}. {}", row.situation, row.name)).ok();
        for check in Check::ALL {
            write!(text, " {:^width$} |", row.cell(check), width = check.name().len()).ok();
        }
        writeln!(text).ok();
    }
    text
}

/// What still fails, a line each; empty where nothing does.
#[must_use]
pub fn remains(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        for (check, reason) in row.remains() {
            writeln!(text, "* {}, {}: {reason}", row.name, check.name()).ok();
        }
    }
    text
}

/// How long guests were silent while their hosts were changed, a line each; empty where none was.
#[must_use]
pub fn silences(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        for (title, silences) in &row.changes {
            writeln!(text, "* {}, {title}: {silences}", row.name).ok();
        }
    }
    text
}

/// The page of docs/.
#[must_use]
pub fn page(rows: &[Row]) -> String {
    let (tried, before, after) = totals(rows);
    let mut text = format!(
        "# Hosts that cut their guests off\n\n\
         Written by a run: `VMNAT_WRITE_DOCS=1 ./dev test hosts`. Each row is a host with the real software of Debian 12 or 13 in a machine of\n\
         its own (namespaces with an overlay root). It is tried as its administrator left it, which must fail as known; then\n\
         `vmnat up --bridge virbr0 --uplink enp3s0` and `vmnat dnat add 80:GUEST:80`, with no change to the firewall, and it is tried again.\n\
         Where ufw or a zone keeps guests from the DHCP server of a bridge of one's own, `up` also has `--dhcp FIRST-LAST` (libvirt's networks\n\
         need none), and where the host's resolver is dead `--dns ADDRESS`.\n\n\
         {} hosts, {tried} checks: {before} failed without vmnat, {after} with it.\n\n\
         `ok` works without vmnat and with it, `✗ ok` works with it alone, `✗ ✗` with neither; empty: not tried (no container; no\n\
         UDP in the QEMU guest; streams through a change where nothing changes).\n\n{}",
        rows.len(),
        table(rows)
    );
    let remains = remains(rows);
    if !remains.is_empty() {
        write!(text, "\n## What still fails, and why\n\n{remains}").ok();
    }
    let silences = silences(rows);
    if !silences.is_empty() {
        write!(
            text,
            "\n## Changes while guests talk\n\n\
             The longest silence of a UDP flow that was there before, of new UDP flows, of a TCP conversation, of pings, and of calls from the\n\
             world to the forwarded port, each tried every 20 ms on a busy machine of two cores, and what was lost; with vmnat, where it is not said. All checks are then made again.\n\n{silences}"
        )
        .ok();
    }
    text.push_str("\n## The hosts\n");
    for (number, situation) in (1..).zip(SITUATIONS) {
        let own = rows.iter().filter(|row| row.situation == number);
        let lines: Vec<String> = own.map(|row| format!("* **{}**: {}\n", row.name, row.title)).collect();
        if !lines.is_empty() {
            write!(text, "\n### {number}. {situation}\n\n{}", lines.concat()).ok();
        }
    }
    text.push_str("\n## The checks\n\n");
    for check in Check::ALL {
        writeln!(text, "* **{}**: {}", check.name(), check.title()).ok();
    }
    text
}
