//! Flows a second: live frames of which each opens a flow, from one CPU and from two.

use anyhow::Result;
use serde_json::{Value, json};

use super::{
    Extent,
    crowd::{Crowd, FRAME, MOST_OWN_PORTS, OWN_PORTS, SHARED_PORTS, SPARE, conntrack_limit},
};
use crate::{
    cpu,
    forwarding::{Direction, Forwarding},
    goal::{Bound, Goal},
    program::spread::Numbering,
    report::{table, thousands},
    statistics::Series,
};

/// What is opened.
#[derive(Debug)]
struct Kind {
    name: &'static str,
    numbering: Numbering,
    flows: u32,
}

/// A kind of flows, opened from so many CPUs.
#[derive(Debug)]
pub struct Row {
    kind: &'static str,
    flows: u32,
    cpus: u32,
    vmnat: Series,
    masquerade: Series,
}

/// Measures.
pub fn measure(extent: Extent) -> Result<Vec<Row>> {
    let limit = u32::try_from(conntrack_limit()?).unwrap_or(u32::MAX).saturating_sub(1_000);
    // A round's share of each CPU is whole.
    let even = |flows: u32| flows.min(limit).min(extent.creations) / 2 * 2;
    let kinds = [
        Kind { name: "a port of its own each", numbering: OWN_PORTS, flows: even(MOST_OWN_PORTS) },
        Kind { name: "from 4,096 ports", numbering: SHARED_PORTS, flows: even(240_000) },
    ];
    let most = kinds.iter().map(|kind| kind.flows).max().unwrap_or_default();
    let (vmnat, masquerade) =
        (Crowd::new(Forwarding::Port, most + SPARE)?, Crowd::new(Forwarding::Masquerade, 0)?);
    let mut rows = Vec::new();
    let cpus: &[u32] = if cpu::count()? > 1 { &[1, 2] } else { &[1] };
    for (kind, cpus) in kinds.iter().flat_map(|kind| cpus.iter().map(move |cpus| (kind, *cpus))) {
        println!("flows: opening {} {}, {cpus} CPUs", thousands(kind.flows), kind.name);
        let mut row = Row {
            kind: kind.name,
            flows: kind.flows,
            cpus,
            vmnat: Series::default(),
            masquerade: Series::default(),
        };
        for round in 0..extent.rounds {
            let mut turns = [(&vmnat, &mut row.vmnat), (&masquerade, &mut row.masquerade)];
            if round % 2 != 0 {
                turns.reverse();
            }
            for (crowd, series) in turns {
                series.0.push(rate(crowd, kind, cpus)?);
            }
        }
        rows.push(row);
    }
    vmnat.rig.stop()?;
    Ok(rows)
}

/// Flows a second.
fn rate(crowd: &Crowd, kind: &Kind, cpus: u32) -> Result<f64> {
    crowd.clear()?;
    let share = kind.flows / cpus;
    let mut lanes = Vec::new();
    for cpu in 0..cpus {
        lanes.push(crowd.rig.ascending_lane(
            Direction::Outbound,
            FRAME,
            kind.numbering,
            u64::from(cpu * share),
        )?);
    }
    let seconds = match &lanes[..] {
        [lane] => f64::from(crowd.rig.send(lane, share)?) * f64::from(share) / 1e9,
        lanes => crowd.rig.send_at_once(lanes, share)?,
    };
    crowd.expect(u64::from(share * cpus))?;
    Ok(f64::from(share * cpus) / seconds)
}

/// What came of it, for people, for programs, and as goals.
pub fn describe(rows: &[Row]) -> (String, Vec<Value>, Vec<Goal>) {
    let million = |series: &Series| Series(series.0.iter().map(|rate| rate / 1e6).collect());
    let (mut cells, mut values, mut goals) = (Vec::new(), Vec::new(), Vec::new());
    for Row { kind, flows, cpus, vmnat, masquerade } in rows {
        let ratio = vmnat.with(masquerade, |own, other| own / other);
        let what =
            format!("{} flows {kind}, {cpus} CPU{}", thousands(*flows), if *cpus == 1 { "" } else { "s" });
        cells.push([
            what.clone(),
            million(vmnat).written(2),
            million(masquerade).written(2),
            ratio.written(2),
        ]);
        values.push(json!({
            "kind": kind, "flows": flows, "cpus": cpus, "vmnat": vmnat.json(), "masquerade": masquerade.json(),
            "ratio": ratio.json(),
        }));
        goals.push(Goal {
            what: format!("{what}: rate of vmnat of nft masquerade"),
            ratio: ratio.median(),
            bound: Bound::AtLeast(2.0),
        });
    }
    let columns = ["opening, million flows a second", "vmnat", "nft masquerade", "ratio"];
    (table(&columns, &cells), values, goals)
}
