//! `stream`: one TCP stream of iperf3 between a guest and the world, each way, through masquerade and through vmnat.

use anyhow::Result;
use serde_json::json;
use vmnat_tests::lab::{
    Lab, SERVER, Setup,
    firewall::NFT_MASQUERADE,
    iperf::{self, Way},
    vmnat::Hook,
};

use crate::{
    goal::{Bound, Goal},
    report::{self, Section, table},
    statistics::Series,
};

/// Bits a second, round by round.
#[derive(Debug, Default)]
struct Rates {
    masquerade: Series,
    vmnat: Series,
}

/// Measures, and describes what came of it.
pub fn run(rounds: usize, seconds: u32) -> Result<Section> {
    let mut lab = Lab::with(Setup { guests: 1, offloads: true, ip_forward: true, ..Setup::default() })?;
    lab.keep_quiet();
    let (mut up, mut down) = (Rates::default(), Rates::default());
    for round in 0..rounds {
        println!("stream, round {} of {rounds}", round + 1);
        // Each second round the other one begins.
        for is_vmnat in [round % 2 == 0, round % 2 != 0] {
            if is_vmnat {
                lab.up(Hook::Tcx)?;
            } else {
                lab.host.nft(NFT_MASQUERADE)?;
            }
            for (way, rates) in [(Way::Up, &mut up), (Way::Down, &mut down)] {
                let rate = iperf::run(lab.guest(1)?, &lab.world, SERVER, way, seconds)?;
                let series = if is_vmnat { &mut rates.vmnat } else { &mut rates.masquerade };
                series.0.push(rate);
            }
            if is_vmnat {
                lab.vmnat_ok(&["down"])?;
            } else {
                lab.host.nft("flush ruleset\n")?;
            }
        }
    }
    Ok(describe(&up, &down, rounds, seconds))
}

fn describe(up: &Rates, down: &Rates, rounds: usize, seconds: u32) -> Section {
    let mut text = format!(
        "How: one TCP stream of iperf3 through the lab (guest, host, router, world), offloads on, {rounds} rounds of\n\
         {seconds} s for each cell, by turns. Gbit/s, medians with quartiles; the ratio is of each round's two runs. The ends\n\
         and the router share the processors with what is measured, and cost more than it does: the spread of the ratio\n\
         is the noise of this figure.\n\n"
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
    text.push_str(&table(&["one TCP stream", "vmnat", "nft masquerade", "ratio"], &rows));
    let cells: Vec<_> = goals.iter().map(Goal::cells).collect();
    text.push_str(&format!("\n\n{}\n", table(&["goal, median ratio", "bound", "measured", ""], &cells)));
    let data = json!({
        "schema": 1, "machine": report::machine(), "rounds": rounds, "seconds": seconds, "rows": rows_json,
    });
    Section { name: "stream", title: "One TCP stream", text, data, goals }
}
