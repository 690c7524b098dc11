//! docs/rfc-compliance.md against the sources: what it names exists, and what must be proven names its proof. Needs no root.

use std::{collections::BTreeSet, fs, path::PathBuf};

use anyhow::{Context, Result, ensure};

/// A row of a table of the page.
struct Row<'a> {
    id: &'a str,
    level: &'a str,
    verdict: &'a str,
    tests: Vec<&'a str>,
}

const VERDICTS: [&str; 4] = ["met", "met with ", "refused: ", "open: "];

/// Scenarios that are about the tests themselves.
const OWN: [&str; 1] = ["netns::rfc::ip::the_lab_can_add"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn rows(page: &str) -> Result<Vec<Row<'_>>> {
    let lines = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| id |"));
    lines
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let [id, level, _, verdict, tests] = cells[..] else { anyhow::bail!("not five cells: {line}") };
            // Every second part of what backquotes divide stands between two of them.
            Ok(Row { id, level, verdict, tests: tests.split('`').skip(1).step_by(2).collect() })
        })
        .collect()
}

/// The source that a test's path leads to.
fn source_of(test: &str) -> Result<String> {
    let (module, _) = test.rsplit_once("::").context("a test without a module")?;
    let inner = module.strip_suffix("::tests");
    let module = inner.unwrap_or(module);
    let (package, within) = module.split_once("::").context("a test without a package")?;
    let folder = match package {
        "netns" | "prog" | "vm" => format!("tests/tests/{package}"),
        _ => format!("{}/src", package.replace('_', "-")),
    };
    let path = root().join(folder).join(within.replace("::", "/"));
    // Tests of a module stand at its end, or in a file of their own.
    let apart = path.join("tests.rs");
    let path = if inner.is_some() && apart.exists() { apart } else { path.with_extension("rs") };
    fs::read_to_string(&path).with_context(|| format!("{test} would be in {}", path.display()))
}

/// The tests in a source: functions behind `#[test]`, and scenarios of `on_both_hooks!`.
fn tests_in(source: &str) -> BTreeSet<String> {
    let mut tests = BTreeSet::new();
    let mut is_test = false;
    for line in source.lines().map(str::trim) {
        if let Some(function) = line.strip_prefix("fn ") {
            let name = function.split('(').next().unwrap_or_default();
            if is_test {
                tests.insert(name.to_owned());
            }
        }
        is_test = line == "#[test]" || (is_test && (line.starts_with("#[") || line.starts_with("//")));
    }
    if let Some((_, list)) = source.split_once("on_both_hooks!(") {
        let list = list.split(')').next().unwrap_or_default();
        tests.extend(list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned));
    }
    tests
}

#[test]
fn every_verdict_is_known_and_every_must_is_proven() -> Result<()> {
    let page = fs::read_to_string(root().join("docs/rfc-compliance.md"))?;
    let rows = rows(&page)?;
    ensure!(rows.len() > 60, "only {} rows were read", rows.len());
    for Row { id, level, verdict, tests } in &rows {
        let is_known =
            *verdict == VERDICTS[0] || VERDICTS[1..].iter().any(|known| verdict.starts_with(known));
        ensure!(is_known, "{id}: a verdict is none of {VERDICTS:?}: {verdict:?}");
        let is_open = verdict.starts_with("open: ");
        ensure!(is_open || *level != "M" || !tests.is_empty(), "{id} is a must, not open, and names no test");
        ensure!(*level != "M" || !verdict.starts_with("refused"), "{id} is a must and refused");
        ensure!(*verdict != "met" || !tests.is_empty(), "{id} is met, and names no test");
    }
    Ok(())
}

#[test]
fn every_test_that_is_named_exists() -> Result<()> {
    let page = fs::read_to_string(root().join("docs/rfc-compliance.md"))?;
    for Row { id, tests, .. } in rows(&page)? {
        for test in tests {
            let name = test.rsplit("::").next().unwrap_or_default();
            ensure!(tests_in(&source_of(test)?).contains(name), "{id} names {test}, which is no test");
        }
    }
    Ok(())
}

#[test]
fn every_scenario_of_the_rfcs_is_named() -> Result<()> {
    let page = fs::read_to_string(root().join("docs/rfc-compliance.md"))?;
    let named: BTreeSet<&str> = rows(&page)?.into_iter().flat_map(|row| row.tests).collect();
    let folder = root().join("tests/tests/netns/rfc");
    for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let module = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
        if module == "compliance" {
            continue;
        }
        for test in tests_in(&fs::read_to_string(&path)?) {
            let test = format!("netns::rfc::{module}::{test}");
            let is_known = named.contains(test.as_str()) || OWN.contains(&test.as_str());
            ensure!(is_known, "docs/rfc-compliance.md does not name {test}");
        }
    }
    Ok(())
}
