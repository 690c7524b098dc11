//! `stream`: one TCP stream of iperf3 between a guest and the world, each way, through masquerade and through vmnat.

use anyhow::{Result, ensure};
use serde_json::json;
use vmnat_tests::lab::{
    Lab, SERVER, Setup,
    iperf::{self, Way},
};

use crate::{
    forwarding::Forwarding,
    goal::{Bound, Goal},
    report::{self, Section, table},
    rig::Rig,
    statistics::Series,
};

/// How much both ends of iperf3 are preferred to other work of the machine.
const NICENESS: i32 = -19;

/// Bits a second, round by round.
#[derive(Debug, Default)]
struct Rates {
    masquerade: Series,
    vmnat: Series,
}

/// Measures, and describes what came of it.
pub fn run(rounds: usize, seconds: u32) -> Result<Section> {
    // A lab without guests: its mounts keep vmnat's pins and state from the machine's.
    let mut shelter = Lab::with(Setup { guests: 0, ..Setup::default() })?;
    shelter.keep_quiet();
    let (mut masquerade, mut vmnat) =
        (Rig::new(Forwarding::Masquerade, false)?, Rig::new(Forwarding::Port, false)?);
    masquerade.start()?;
    vmnat.start()?;
    let (through_masquerade, through_vmnat) = (masquerade.inhabit()?, vmnat.inhabit()?);
    prefer_children()?;
    let (mut up, mut down) = (Rates::default(), Rates::default());
    for round in 0..rounds {
        println!("stream: round {} of {rounds}", round + 1);
        for (way, rates) in [(Way::Up, &mut up), (Way::Down, &mut down)] {
            let Rates { masquerade, vmnat } = rates;
            let mut turns = [(through_masquerade, masquerade), (through_vmnat, vmnat)];
            // Each second round the other one begins.
            if round % 2 != 0 {
                turns.reverse();
            }
            for ((guest, world), series) in turns {
                series.0.push(iperf::run(guest, world, SERVER, way, seconds)?);
            }
        }
    }
    vmnat.stop()?;
    Ok(describe(&up, &down, rounds, seconds))
}

/// What this thread starts from here on runs before ordinary processes.
fn prefer_children() -> Result<()> {
    // SAFETY: the call takes numbers only; 0 is the calling thread, whose children inherit its niceness.
    let refused = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) } != 0;
    ensure!(!refused, "setpriority: {}", std::io::Error::last_os_error());
    Ok(())
}

fn describe(up: &Rates, down: &Rates, rounds: usize, seconds: u32) -> Section {
    let how = format!(
        "How: one TCP stream of iperf3 between a guest and the host behind the uplink, veths with their offloads, {rounds} rounds\n\
         of {seconds} s for each cell, by turns. Gbit/s, medians with quartiles; the ratio is of each round's two runs. Both ends\n\
         share the processors with what is measured and cost far more than it does: the spread of the ratio is the noise of\n\
         this figure."
    );
    let (mut rows, mut rows_json, mut goals) = (Vec::new(), Vec::new(), Vec::new());
    for (way, rates) in [("guest to world", up), ("world to guest", down)] {
        let giga = |series: &Series| Series(series.0.iter().map(|rate| rate / 1e9).collect());
        let ratio = rates.vmnat.with(&rates.masquerade, |own, other| own / other);
        rows.push([
            way.to_owned(),
            giga(&rates.vmnat).written(2),
            giga(&rates.masquerade).written(2),
            ratio.written(2),
        ]);
        rows_json.push(json!({
            "way": way, "vmnat": rates.vmnat.json(), "masquerade": rates.masquerade.json(), "ratio": ratio.json(),
        }));
        goals.push(Goal {
            what: format!("one stream, {way}: vmnat of nft masquerade"),
            ratio: ratio.median(),
            bound: Bound::AtLeast(1.0),
        });
    }
    let rates = table(&["one TCP stream", "vmnat", "nft masquerade", "ratio"], &rows);
    let cells: Vec<_> = goals.iter().map(Goal::cells).collect();
    let verdicts = table(&["goal, median ratio", "bound", "measured", ""], &cells);
    let data = json!({
        "schema": 1, "machine": report::machine(), "rounds": rounds, "seconds": seconds, "rows": rows_json,
    });
    Section {
        name: "stream",
        title: "One TCP stream",
        text: [how, rates, verdicts].join("\n\n"),
        data,
        goals,
    }
}
