//! `packet`: nanoseconds of one packet, from the receive path of one interface to the sink behind another.
//!
//! Live frames enter as from a driver, 64 at a time. Every way of forwarding has a rig of its own; they take turns,
//! round by round, each round beginning with another one, so that what disturbs the machine disturbs them alike.

use std::{path::Path, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use vmnat_tests::lab::{Lab, Setup};

use crate::{
    count::Count,
    forwarding::{Direction, Forwarding},
    goal::{Bound, Goal},
    report::{self, Section, table},
    rig::{Lane, PROOF, Rig},
    statistics::Series,
};

/// Frames that warm caches before each measurement.
pub const WARM_UP: u32 = 4_096;

/// After so long, connection tracking takes an answered UDP flow for assured (`nf_conntrack_proto_udp.c`).
const ASSURING: Duration = Duration::from_millis(2_200);

const RIGS: [(Forwarding, bool); 11] = [
    (Forwarding::Floor, false),
    (Forwarding::Redirect, false),
    (Forwarding::Port, false),
    (Forwarding::Port, true),
    (Forwarding::Bridge, false),
    (Forwarding::Bridge, true),
    (Forwarding::BridgeHook, false),
    (Forwarding::BridgeHook, true),
    (Forwarding::Route, false),
    (Forwarding::Masquerade, false),
    (Forwarding::Masquerade, true),
];

/// Parts of vmnat's way outbound, for those who want to know where its nanoseconds go.
const PARTS: [(Forwarding, bool); 2] =
    [(Forwarding::RedirectToNeighbour, false), (Forwarding::Unguarded, false)];

/// What counts as no slower than another build: medians of whole runs of one build beside itself differ by so much here.
const NO_SLOWER: f64 = 1.03;

/// How much to measure.
#[derive(Clone, Copy, Debug)]
pub struct Extent<'a> {
    /// Rounds.
    pub rounds: usize,
    /// Packets of each rig in each round.
    pub packets: u32,
    /// Frame sizes, bytes.
    pub sizes: &'a [usize],
    /// Also measure parts of vmnat's way.
    pub parts: bool,
    /// Also measure the `vmnat` of another build.
    pub against: Option<&'a Path>,
}

/// What was measured of one rig in one direction.
#[derive(Debug)]
struct Measured<'a> {
    rig: &'a Rig,
    lane: Lane,
    size: usize,
    nanoseconds: Series,
    sent: u64,
}

/// Measures, and describes what came of it.
pub fn run(extent: Extent<'_>) -> Result<Section> {
    // A lab without guests: its mounts keep vmnat's pins and state from the machine's.
    let mut shelter = Lab::with(Setup { guests: 0, ..Setup::default() })?;
    shelter.keep_quiet();
    let rigs = rigs(extent)?;
    let mut all = Vec::new();
    for size in extent.sizes {
        for direction in [Direction::Outbound, Direction::Inbound] {
            println!("packet: {} frames of {size} bytes", direction.name());
            all.push(measure(&rigs, direction, *size, extent)?);
        }
    }
    let section = describe(&all, extent);
    for rig in &rigs {
        rig.stop()?;
    }
    Ok(section)
}

fn rigs(extent: Extent<'_>) -> Result<Vec<Rig>> {
    let mut rigs = Vec::new();
    let parts = if extent.parts { &PARTS[..] } else { &[] };
    let other = extent.against.map(|_| (Forwarding::Against, false));
    for (forwarding, br_netfilter) in RIGS.iter().chain(parts).copied().chain(other) {
        let mut rig = Rig::new(forwarding, br_netfilter)?;
        if forwarding == Forwarding::Against {
            rig.program = extent.against.map(Path::to_owned);
        }
        rig.start().with_context(|| rig.name())?;
        rig.converse()?;
        rigs.push(rig);
    }
    thread::sleep(ASSURING);
    for rig in &mut rigs {
        rig.converse()?;
        rig.close()?;
    }
    Ok(rigs)
}

/// Where `br_netfilter` and the way back make no difference, a rig is measured once.
fn is_measured(rig: &Rig, direction: Direction) -> bool {
    match direction {
        Direction::Outbound => true,
        Direction::Inbound if PARTS.contains(&(rig.forwarding, rig.br_netfilter)) => false,
        Direction::Inbound => !rig.br_netfilter || rig.forwarding == Forwarding::Masquerade,
    }
}

fn measure<'a>(
    rigs: &'a [Rig],
    direction: Direction,
    size: usize,
    extent: Extent<'_>,
) -> Result<Vec<Measured<'a>>> {
    let mut measured = Vec::new();
    for rig in rigs.iter().filter(|rig| is_measured(rig, direction)) {
        let lane = rig.lane(direction, size)?;
        let before = rig.outcomes()?;
        rig.prove(&lane)?;
        agree(rig, direction, &before, u64::from(PROOF))?;
        measured.push(Measured { rig, lane, size, nanoseconds: Series::default(), sent: 0 });
    }
    let before: Vec<Vec<Count>> = measured.iter().map(|one| one.rig.outcomes()).collect::<Result<_>>()?;
    for round in 0..extent.rounds {
        let first = round % measured.len().max(1);
        let (front, back) = measured.split_at_mut(first);
        for one in back.iter_mut().chain(front) {
            one.rig.send(&one.lane, WARM_UP)?;
            one.nanoseconds.0.push(f64::from(one.rig.send(&one.lane, extent.packets)?));
            one.sent += u64::from(WARM_UP) + u64::from(extent.packets);
        }
    }
    for (one, before) in measured.iter().zip(&before) {
        agree(one.rig, direction, before, one.sent)?;
    }
    Ok(measured)
}

/// vmnat's counters must tell of exactly what was sent, and of nothing dropped.
fn agree(rig: &Rig, direction: Direction, before: &[Count], sent: u64) -> Result<()> {
    let translated = match direction {
        Direction::Outbound => "translated_outbound",
        Direction::Inbound => "translated_inbound",
    };
    let after = rig.outcomes()?;
    let was = |name: &str| before.iter().find(|count| count.name == name).map_or(0, |count| count.packets);
    for Count { name, kind, packets } in &after {
        let moved = packets.wrapping_sub(was(name));
        let expected = if name == translated { sent } else { 0 };
        let matters = name == translated || kind == "dropped" || kind == "forwarded";
        ensure!(
            !matters || moved == expected,
            "{}, {}: `{name}` moved by {moved} instead of {expected}",
            rig.name(),
            direction.name()
        );
    }
    ensure!(
        !rig.forwarding.is_vmnat() || after.iter().any(|count| count.name == translated),
        "{}: vmnat has counted nothing",
        rig.name()
    );
    Ok(())
}

fn series(measured: &[Measured<'_>], forwarding: Forwarding) -> Option<Series> {
    let found = measured.iter().find(|one| one.rig.forwarding == forwarding && !one.rig.br_netfilter)?;
    Some(found.nanoseconds.clone())
}

fn ratio(own: &Series, reference: Option<&Series>) -> Series {
    reference.map_or_else(Series::default, |reference| own.with(reference, |own, other| own / other))
}

fn describe(all: &[Vec<Measured<'_>>], extent: Extent<'_>) -> Section {
    let Extent { rounds, packets, sizes, parts: _, against: _ } = extent;
    let how = format!(
        "How: `BPF_PROG_TEST_RUN` with live frames, 64 at a time, `XDP_PASS` into the receive path of the bridge's port\n\
         (outbound) or of the uplink (inbound); a tc program drops them behind the other interface. The kernel's own\n\
         clock, on one CPU held by SCHED_FIFO. {rounds} rounds of {packets} UDP packets for each row, by turns. Cells are\n\
         medians with quartiles. `net` is less the floor of the same round; ratios are of raw figures, round by round.\n\
         Every frame of a first {PROOF} was looked at behind the other interface, all later ones were counted there, and\n\
         vmnat's counters agree with what was sent. Connection tracking did not verify UDP checksums, as with a guest's\n\
         virtio or a network card that has done so."
    );
    let (mut paragraphs, mut rows_json, mut goals) = (vec![how], Vec::new(), Vec::new());
    for measured in all {
        let Some(Measured { lane, size, .. }) = measured.first() else { continue };
        let floor = series(measured, Forwarding::Floor);
        let bridge = series(measured, Forwarding::Bridge);
        let masquerade = series(measured, Forwarding::Masquerade);
        let mut rows = Vec::new();
        for Measured { rig, nanoseconds, sent, .. } in measured {
            let of_masquerade = ratio(nanoseconds, masquerade.as_ref());
            let of_bridge = ratio(nanoseconds, bridge.as_ref());
            let net =
                floor.as_ref().map_or_else(Series::default, |floor| nanoseconds.with(floor, |a, b| a - b));
            rows.push([
                rig.name(),
                nanoseconds.written(0),
                net.written(0),
                of_masquerade.written(2),
                of_bridge.written(2),
            ]);
            rows_json.push(json!({
                "direction": lane.direction.name(), "frame_bytes": size, "forwarding": rig.forwarding.name(),
                "br_netfilter": rig.br_netfilter, "sent": sent, "nanoseconds": nanoseconds.json(),
                "net_nanoseconds": net.json(), "of_masquerade": of_masquerade.json(), "of_bridge": of_bridge.json(),
            }));
        }
        let heading = format!("{}, {size}-byte frames", lane.direction.name());
        let columns = [&heading[..], "ns", "net ns", "× nft masquerade", "× L2 bridge"];
        paragraphs.push(table(&columns, &rows));
        if sizes.first() == Some(size) {
            goals.extend(goals_of(measured, lane.direction));
        }
    }
    let rows: Vec<_> = goals.iter().map(Goal::cells).collect();
    paragraphs.push(table(&["goal, median of raw ratios", "bound", "measured", ""], &rows));
    let data = json!({
        "schema": 1, "machine": report::machine(), "rounds": rounds, "packets": packets, "rows": rows_json,
    });
    Section {
        name: "packet",
        title: "Nanoseconds of a packet",
        text: paragraphs.join("\n\n"),
        data,
        goals,
        plots: Vec::new(),
    }
}

fn goals_of(measured: &[Measured<'_>], direction: Direction) -> Vec<Goal> {
    let own = series(measured, Forwarding::Port).unwrap_or_default();
    let against = |reference: Forwarding, most: f64| Goal {
        what: format!("{}: vmnat's port hook of {}", direction.name(), reference.name()),
        ratio: ratio(&own, series(measured, reference).as_ref()).median(),
        bound: Bound::AtMost(most),
    };
    let mut goals = match direction {
        Direction::Outbound => {
            vec![against(Forwarding::Masquerade, 0.45), against(Forwarding::Bridge, 1.0)]
        }
        Direction::Inbound => vec![against(Forwarding::Masquerade, 0.60)],
    };
    if series(measured, Forwarding::Against).is_some() {
        goals.push(against(Forwarding::Against, NO_SLOWER));
    }
    goals
}
