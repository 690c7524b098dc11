//! A run inside that shows nothing must not count as a good one.

use anyhow::{Context as _, Result, ensure};
use vmnat_tests::kernels::{Selection, report::Report};

const ONE: Selection = Selection { filters: &["life::"], skips: &[], least: 1 };

fn read(lines: &[&str], end: &str) -> Report {
    let mut report = Report::default();
    lines.iter().for_each(|line| report.take(line));
    report.end = Some(end.to_owned());
    report
}

fn refused(report: &Report, selection: &Selection) -> Result<String> {
    Ok(report.judge(selection).err().context("it counts as good")?.to_string())
}

#[test]
fn a_filter_that_matches_nothing_fails() -> Result<()> {
    let report = read(&["running 1 test", "test life::clsact::up ... ok"], "0");
    report.judge(&ONE)?;
    let why = refused(&report, &Selection { filters: &["life::", "lives::"], ..ONE })?;
    ensure!(why.contains("\"lives::\""), "{why}");
    let why = refused(&report, &Selection { least: 2, ..ONE })?;
    ensure!(why.contains("only 1 tests ran"), "{why}");
    refused(&read(&["running 0 tests"], "0"), &Selection { filters: &[], ..ONE }).map(drop)
}

#[test]
fn a_failure_is_told_with_its_cause() -> Result<()> {
    let report = read(
        &[
            "test life::clsact::down ... FAILED",
            "test life::clsact::up ... ok",
            "",
            "failures:",
            "",
            "---- life::clsact::down stdout ----",
            "Error: the host is not as it was found",
        ],
        "101",
    );
    let why = refused(&report, &ONE)?;
    ensure!(why.contains("1 failed: life::clsact::down") && why.contains("not as it was found"), "{why}");
    Ok(())
}

#[test]
fn a_test_program_that_dies_fails() -> Result<()> {
    refused(&read(&["test life::clsact::up ... ok"], "137"), &ONE).map(drop)
}
