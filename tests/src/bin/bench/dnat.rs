//! `dnat`: thousands of port forwards in one call, added from a file, and removed again.

use std::{fmt::Write as _, fs, time::Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use vmnat_tests::lab::{EXTERNAL, Lab, client, guest_address, vmnat::Hook};

use crate::{
    goal::{Bound, Goal},
    report::{self, Section, table},
    statistics::Series,
};

/// Port forwards of one call.
const FORWARDS: u16 = 5_000;

/// The first of their ports.
const FIRST: u16 = 10_000;

/// Seconds that the call may take.
const GOAL: f64 = 2.0;

/// In the lab's own `/run`.
const LIST: &str = "/run/forwards.txt";

/// Measures, and describes what came of it.
pub fn run(rounds: usize) -> Result<Section> {
    let mut lab = Lab::new()?;
    lab.keep_quiet();
    lab.up(Hook::Tcx)?;
    let mut list = String::new();
    for port in FIRST..FIRST + FORWARDS {
        writeln!(list, "{port}:{}:80", guest_address(1))?;
    }
    fs::write(LIST, list)?;
    let (mut add, mut again, mut remove) = (Series::default(), Series::default(), Series::default());
    for round in 0..rounds {
        println!("dnat: round {} of {rounds}", round + 1);
        add.0.push(seconds(&lab, &["dnat", "add", "--file", LIST])?);
        again.0.push(seconds(&lab, &["dnat", "add", "--file", LIST])?);
        for port in [FIRST, FIRST + FORWARDS - 1] {
            client::get(&lab.world, &format!("{EXTERNAL}:{port}"), "/")?;
        }
        let rows = lab.rows(&["dnat", "list"])?;
        ensure!(rows.len() == usize::from(FORWARDS), "{} port forwards", rows.len());
        let ids: Vec<String> = rows.iter().map(|row| row["id"].to_string()).collect();
        let ids: Vec<&str> = ["dnat", "rm"].into_iter().chain(ids.iter().map(String::as_str)).collect();
        remove.0.push(seconds(&lab, &ids)?);
    }
    lab.vmnat_ok(&["down"])?;
    Ok(describe(&add, &again, &remove, rounds))
}

/// How long a command takes.
fn seconds(lab: &Lab, command: &[&str]) -> Result<f64> {
    let since = Instant::now();
    lab.vmnat_ok(command)?;
    Ok(since.elapsed().as_secs_f64())
}

fn describe(add: &Series, again: &Series, remove: &Series, rounds: usize) -> Section {
    let how = format!(
        "How: one call of the program with {FORWARDS} port forwards, {rounds} rounds, with the agent running. Seconds from start to\n\
         end of the process, medians with quartiles: every check, the file in `/var/lib`, and the kernel's {} entries (an uplink's\n\
         address and 127.0.0.1) in one swap.",
        u32::from(FORWARDS) * 2
    );
    let calls =
        [("`dnat add --file`", add), ("the same once more: unchanged", again), ("`dnat rm` of all", remove)];
    let rows = calls.map(|(call, series)| [call.to_owned(), series.written(2)]);
    let goal = Goal {
        what: format!("{FORWARDS} port forwards from a file: of {GOAL} s"),
        ratio: add.median() / GOAL,
        bound: Bound::AtMost(1.0),
    };
    let verdict = table(&["goal, median ratio", "bound", "measured", ""], &[goal.cells()]);
    let data = json!({
        "schema": 1, "machine": report::machine(), "rounds": rounds, "forwards": FORWARDS,
        "seconds": { "add": add.json(), "again": again.json(), "remove": remove.json() },
    });
    Section {
        name: "dnat",
        title: "Thousands of port forwards",
        text: [how, table(&["call", "seconds"], &rows), verdict].join("\n\n"),
        data,
        goals: vec![goal],
        plots: Vec::new(),
    }
}
