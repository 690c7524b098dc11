//! The table of the hosts tier: `hosts FOLDER PAGE` prints what the runs have noted in the folder. A whole table is compared with the page
//! in docs/, or written there when `VMNAT_WRITE_DOCS` is set.

#![expect(clippy::print_stdout, reason = "printing the table is what it is for")]

use std::{env, fs, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, ensure};
use vmnat_tests::hosts::matrix;

fn main() -> ExitCode {
    match report() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hosts: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn report() -> Result<()> {
    let mut arguments = env::args_os().skip(1).map(PathBuf::from);
    let (folder, page) = arguments.next().zip(arguments.next()).context("usage: hosts FOLDER PAGE")?;
    let rows = matrix::rows(&folder)?;
    ensure!(!rows.is_empty(), "no host has noted anything in {}", folder.display());
    println!("\n{}", matrix::table(&rows));
    print!("{}", matrix::remains(&rows));
    print!("{}", matrix::silences(&rows));
    let (tried, before, after) = matrix::totals(&rows);
    println!("{} hosts, {tried} checks: {before} failed without vmnat, {after} with it", rows.len());

    let text = matrix::page(&rows);
    let written = fs::read_to_string(&page).unwrap_or_default();
    if env::var_os("VMNAT_WRITE_DOCS").is_some() {
        fs::write(&page, text).with_context(|| page.display().to_string())?;
        println!("{} is written", page.display());
        return Ok(());
    }
    // Each row is compared, so that a part of the hosts may be played alone.
    for line in matrix::table(&rows).lines().skip(2) {
        ensure!(
            written.contains(line),
            "{} says otherwise than this run:\n{line}\nWrite it with VMNAT_WRITE_DOCS=1 ./dev test hosts",
            page.display()
        );
    }
    Ok(())
}
