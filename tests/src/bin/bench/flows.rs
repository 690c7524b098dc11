//! `flows`: what many flows cost. A packet's nanoseconds by the number of live flows, flows a second, and what keeping a
//! million takes.

mod cost;
mod creation;
mod crowd;
mod keeping;

pub use self::crowd::flush_conntrack;

use anyhow::Result;
use serde_json::json;
use vmnat_tests::lab::{Lab, Setup};

use crate::{
    forwarding::Direction,
    goal,
    plot::{self, Line},
    report::{self, Section, thousands},
    rig::PROOF,
};

/// How much to measure.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Rounds.
    pub rounds: usize,
    /// Packets of each row in each round.
    pub packets: u32,
    /// The most live flows.
    pub most: u32,
    /// The most flows that a round of creation opens.
    pub creations: u32,
}

/// Rounds of what takes a million flows each time.
const FEW: usize = 3;

/// Measures, and describes what came of it.
pub fn run(extent: Extent) -> Result<Section> {
    // A lab without guests: its mounts keep vmnat's pins and state from the machine's.
    let mut shelter = Lab::with(Setup { guests: 0, ..Setup::default() })?;
    shelter.keep_quiet();
    let mut crowds = cost::Crowds::new(extent.most)?;
    let mut rows = Vec::new();
    let steps = [1, 1_000, 10_000, 100_000, 1_000_000];
    for flows in steps.into_iter().filter(|flows| *flows <= extent.most) {
        rows.extend(crowds.measure(flows, extent)?);
    }
    let filled = steps.into_iter().filter(|flows| *flows <= extent.most).max().unwrap_or(1);
    crowds.masquerade.clear()?;
    let kept = keeping::measure(&crowds.vmnat, filled, extent.rounds.min(FEW))?;
    crowds.stop()?;
    let openings = creation::measure(extent)?;
    Ok(describe(extent, &rows, &openings, &kept))
}

fn describe(extent: Extent, rows: &[cost::Row], openings: &[creation::Row], kept: &keeping::Kept) -> Section {
    let (tables, costs, mut goals) = cost::describe(rows);
    let (opening, rates, rate_goals) = creation::describe(openings);
    let ([memory, calls], keeping, memory_goals) = keeping::describe(kept);
    goals.extend(rate_goals);
    goals.extend(memory_goals);
    let plots: Vec<_> = Direction::BOTH.into_iter().map(|direction| plot(rows, direction)).collect();
    let mut paragraphs = vec![method(extent)];
    paragraphs.extend(plots.iter().map(plot::Plot::reference));
    paragraphs.extend(tables);
    paragraphs.extend([opening, memory, calls, goal::table_of(&goals, "goal, median ratio")]);
    let data = json!({
        "schema": 1, "machine": report::machine(), "rounds": extent.rounds, "packets": extent.packets,
        "cost": costs, "creation": rates, "keeping": keeping,
    });
    Section { name: "flows", title: "Many flows", text: paragraphs.join("\n\n"), data, goals, plots }
}

fn plot(rows: &[cost::Row], direction: Direction) -> plot::Plot {
    let mut lines: Vec<Line> = Vec::new();
    for (way, forwarding, flows, nanoseconds) in rows.iter().filter_map(cost::Row::point) {
        if way != direction {
            continue;
        }
        let point = (f64::from(flows), nanoseconds);
        match lines.iter_mut().find(|line| line.name == forwarding.name()) {
            Some(line) => line.points.push(point),
            None => lines.push(Line { name: forwarding.name().to_owned(), points: vec![point] }),
        }
    }
    plot::lines(
        &format!("flows-{}", direction.name()),
        &format!("{}: a packet's cost by the number of live flows", direction.name()),
        ["live flows", "nanoseconds less the floor, median"],
        &lines,
    )
}

fn method(extent: Extent) -> String {
    let Extent { rounds, packets, most, creations } = extent;
    format!(
        "How: live frames of {} bytes as for \"Nanoseconds of a packet\". Flows are of 4,096 ports of one guest towards as many\n\
         remotes as it takes. Every flow was opened by a live frame of its own and answered by one, none was written into a table; the\n\
         agent was ended, so that none expires. Each frame is of a random flow, whose ends the generator writes with right\n\
         checksums; the floor has the same generator. Before each measurement every flow has one packet, as in a crowd that\n\
         talks; with that one vmnat's flows look their way up, as they do every four seconds, and its cost stands in the last column (in the order in which the flows were opened). {rounds} rounds of {packets} packets for each row, by turns, {} flows at most. `net` is less the floor of the same round, `raw`\n\
         is with it; ratios are to a second vmnat with 1,000 flows that takes turns with the others, and the goal is for the larger one. Of each\n\
         row {PROOF} frames were looked at behind the other interface first, all others were counted there. nft's rows end where the\n\
         machine's `nf_conntrack_max` does, which all its namespaces share and a benchmark does not change;\n\
         `sysctl -w net.netfilter.nf_conntrack_max=1100000` lets it go on.\n\n\
         Opening: live frames, each of a new flow, at most {} of a kind in a round, on one CPU or on two at once, each held by\n\
         SCHED_FIFO; all frames arrived behind the uplink, and the table then has as many flows. Memory: of vmnat the kernel's own\n\
         account of the flow table, of nft the growth of the slabs and the hash table. Calls: the process from start to end, its\n\
         output to /dev/null; above 10,000 flows a listing is printed as it is read. Expiry: what the agent does on its round, in one go, until every flow is removed.",
        crowd::FRAME,
        thousands(most),
        thousands(creations),
    )
}
