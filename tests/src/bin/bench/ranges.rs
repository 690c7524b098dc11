//! `ranges`: what a forward of 10,000 ports costs beside one of a single port, in entries and in nanoseconds.
//!
//! Live frames enter by the uplink, as for `packet`. The sets of forwards take turns on one host, round by round, each
//! round beginning with another one.

mod set;
mod stage;
mod traffic;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use vmnat_tests::lab::{Lab, Setup};

use crate::{
    goal::{Bound, Goal},
    report::{self, Section, table},
    rig::PROOF,
    statistics::Series,
};
use set::Set;
use stage::{Gate, Lane, Stage};
use traffic::{FRAME, Traffic};

/// What one kind of packets cost.
#[derive(Debug)]
struct Measured {
    traffic: Traffic,
    packets: u32,
    floor: Series,
    rows: Vec<Row>,
}

/// What it cost with one set of forwards.
#[derive(Debug)]
struct Row {
    set: Set,
    entries: usize,
    nanoseconds: Series,
}

/// Measures, and describes what came of it.
pub fn run(rounds: usize, packets: u32) -> Result<Section> {
    // A lab without guests: its mounts keep vmnat's pins and state from the machine's.
    let mut shelter = Lab::with(Setup { guests: 0, ..Setup::default() })?;
    shelter.keep_quiet();
    let (floor, stage) = (Gate::floor()?, Stage::new()?);
    let mut all = Vec::new();
    for traffic in Traffic::ALL {
        println!("ranges: {}", traffic.name());
        all.push(measure(&floor, &stage, traffic, rounds, traffic.packets(packets))?);
    }
    stage.stop()?;
    Ok(describe(&all, rounds))
}

fn measure(floor: &Gate, stage: &Stage, traffic: Traffic, rounds: usize, packets: u32) -> Result<Measured> {
    let lane = Lane::new(traffic).with_context(|| traffic.name())?;
    let row = |set: &Set| {
        let entries = stage.prove(&lane, *set)?;
        Ok(Row { set: *set, entries, nanoseconds: Series::default() })
    };
    let rows: Vec<Row> = traffic.sets().iter().map(row).collect::<Result<_>>()?;
    let mut measured = Measured { traffic, packets, floor: Series::default(), rows };
    for round in 0..rounds {
        measured.floor.0.push(f64::from(floor.turn(&lane, packets)?));
        let first = round % measured.rows.len().max(1);
        let (front, back) = measured.rows.split_at_mut(first);
        let mut turns: Vec<&mut Row> = back.iter_mut().chain(front).collect();
        // Backwards half of the time: a turn also bears what the one before it left in the caches.
        if round % 2 != 0 {
            turns.reverse();
        }
        for Row { set, entries: _, nanoseconds } in turns {
            nanoseconds.0.push(f64::from(stage.turn(&lane, *set, packets)?));
        }
    }
    Ok(measured)
}

impl Measured {
    fn of(&self, set: Set) -> Series {
        let row = self.rows.iter().find(|row| row.set == set);
        row.map_or_else(Series::default, |row| row.nanoseconds.clone())
    }

    fn ratio(&self, own: &Series) -> Series {
        own.with(&self.of(Set::One), |own, one| own / one)
    }

    fn net(&self, own: &Series) -> Series {
        own.with(&self.floor, |own, floor| own - floor)
    }

    fn goal(&self) -> Goal {
        let most = match self.traffic {
            Traffic::Established => 1.03,
            Traffic::Opening | Traffic::Own => 1.05,
        };
        Goal {
            what: format!("{}: a forward of 10,000 ports of one port", self.traffic.name()),
            ratio: self.ratio(&self.of(Set::Range)).median(),
            bound: Bound::AtMost(most),
        }
    }

    /// The rows for people.
    fn table(&self) -> String {
        let series = |name: &str, entries: String, series: &Series| {
            let net = self.net(series);
            [name.to_owned(), entries, series.written(0), net.written(0), self.ratio(series).written(3)]
        };
        let mut rows = vec![series("floor: generator, receive, sink", String::new(), &self.floor)];
        for Row { set, entries, nanoseconds } in &self.rows {
            rows.push(series(set.name(), entries.to_string(), nanoseconds));
        }
        table(&[self.traffic.name(), "entries", "ns", "net ns", "× one port"], &rows)
    }

    /// The rows for programs.
    fn json(&self) -> Vec<Value> {
        let row = |Row { set, entries, nanoseconds }: &Row| {
            json!({
                "traffic": self.traffic.name(), "forwards": set.name(), "entries": entries, "packets": self.packets,
                "nanoseconds": nanoseconds.json(), "net_nanoseconds": self.net(nanoseconds).json(),
                "of_one_port": self.ratio(nanoseconds).json(), "floor_nanoseconds": self.floor.json(),
            })
        };
        self.rows.iter().map(row).collect()
    }
}

fn describe(all: &[Measured], rounds: usize) -> Section {
    let what = "What is compared: a port forward is one entry of a sorted array, whether it has one port or 10,000, because an entry\n\
         holds its first port and how many follow. The array has two banks, one in use and one to be filled, so that a set is\n\
         replaced in one step. A packet of no flow is looked up by halving: one step among one forward, up to 13 among 5,000;\n\
         the host's own packets pay for the search too, and find nothing. Packets of a flow do not search.";
    let goals: Vec<Goal> = all.iter().map(Measured::goal).collect();
    let mut paragraphs = vec![what.to_owned(), method(all, rounds)];
    paragraphs.extend(all.iter().map(Measured::table));
    let cells: Vec<_> = goals.iter().map(Goal::cells).collect();
    paragraphs.push(table(&["goal, median of raw ratios", "bound", "measured", ""], &cells));
    let rows: Vec<Value> = all.iter().flat_map(Measured::json).collect();
    let data = json!({ "schema": 1, "machine": report::machine(), "rounds": rounds, "rows": rows });
    Section {
        name: "ranges",
        title: "Ranges of ports",
        text: paragraphs.join("\n\n"),
        data,
        goals,
        plots: Vec::new(),
    }
}

fn method(all: &[Measured], rounds: usize) -> String {
    let of = |traffic: Traffic| all.iter().find(|one| one.traffic == traffic).map_or(0, |one| one.packets);
    let (packets, openings) = (of(Traffic::Established), of(Traffic::Opening));
    format!(
        "How: live frames of {FRAME} bytes into the uplink's receive path, as for \"Nanoseconds of a packet\"; a tc program drops\n\
         them in the guest, and another one behind vmnat at the uplink, where the host's own packets end. {rounds} rounds for each\n\
         row of {packets} packets, or of {openings} where each opens a conversation, from a random source of 10.0.0.0/8. The rows\n\
         take turns on one host: before each, the forwards are replaced and all flows removed. The port asked for is in the\n\
         middle of its set. Cells are medians with quartiles; `net` is less the floor of the same round; ratios are of raw\n\
         figures, round by round; entries are those in the kernel for one external address. In every turn both sinks, vmnat's\n\
         outcomes, the flow table and the forward's own count of conversations agreed with what was sent; {PROOF} frames of each\n\
         row were looked at in the guest first, where none of the host's own may come. The entry of the range was compared\n\
         with what `vmnat dnat add` makes of it; to take turns, sets are written to the kernel's map directly, while no agent\n\
         runs. The bounds are a range's cost, which should be none, and room for the noise of a machine that has other work."
    )
}
