//! `packet`: nanoseconds of one packet, from the receive path of one interface to the sink behind another.
//!
//! Live frames enter as from a driver, 64 at a time. Every way of forwarding has a rig of its own; they take turns,
//! round by round, each round beginning with another one, so that what disturbs the machine disturbs them alike.

use std::{path::Path, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use vmnat_tests::lab::{Lab, Setup};

use crate::{
    count::Count,
    forwarding::{Direction, Forwarding},
    goal::{self, Bound, Goal},
    plot,
    report::{self, Section, table},
    rig::{Lane, PROOF, Rig},
    statistics::Series,
};

/// Frames that warm caches before each measurement.
pub const WARM_UP: u32 = 4_096;

/// After so long, connection tracking takes an answered UDP flow for assured (`nf_conntrack_proto_udp.c`).
const ASSURING: Duration = Duration::from_millis(2_200);

/// What is measured without `br_netfilter` alone: nothing of it is bridged, and no rule would see it.
const BARE: [Forwarding; 2] = [Forwarding::Floor, Forwarding::Redirect];

/// What is measured with `br_netfilter` off and on.
const MODES: [Forwarding; 6] = [
    Forwarding::Port,
    Forwarding::BridgeHook,
    Forwarding::Bridge,
    Forwarding::Route,
    Forwarding::Masquerade,
    Forwarding::Libvirt,
];

/// Parts of vmnat's way outbound, for those who want to know where its nanoseconds go.
const PARTS: [Forwarding; 2] = [Forwarding::RedirectToNeighbour, Forwarding::Unguarded];

/// What counts as no slower than another build: medians of whole runs of one build beside itself differ by so much here, the floor subtracted.
const NO_SLOWER: f64 = 1.05;

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
    /// Other NATs, which operators' scripts set up.
    pub hooked: &'a [Forwarding],
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
    let bare = BARE.iter().chain(parts).map(|forwarding| (*forwarding, false));
    let modes = MODES.iter().chain(extent.hooked);
    let modes = modes.flat_map(|forwarding| [(*forwarding, false), (*forwarding, true)]);
    for (forwarding, br_netfilter) in bare.chain(modes).chain(other) {
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

/// Parts of vmnat's way out are no way in.
fn is_measured(rig: &Rig, direction: Direction) -> bool {
    direction == Direction::Outbound || !PARTS.contains(&rig.forwarding)
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

fn series(measured: &[Measured<'_>], forwarding: Forwarding, br_netfilter: bool) -> Option<Series> {
    let is_it = |rig: &Rig| rig.forwarding == forwarding && rig.br_netfilter == br_netfilter;
    measured.iter().find(|one| is_it(one.rig)).map(|one| one.nanoseconds.clone())
}

/// Less the floor of the same round.
fn net(measured: &[Measured<'_>], own: &Series) -> Series {
    let floor = series(measured, Forwarding::Floor, false);
    floor.map_or_else(Series::default, |floor| own.with(&floor, |own, floor| own - floor))
}

fn ratio(own: &Series, reference: Option<&Series>) -> Series {
    reference.map_or_else(Series::default, |reference| own.with(reference, |own, other| own / other))
}

fn describe(all: &[Vec<Measured<'_>>], extent: Extent<'_>) -> Section {
    let Extent { rounds, packets, sizes, .. } = extent;
    let how = format!(
        "How: `BPF_PROG_TEST_RUN` with live frames, 64 at a time, `XDP_PASS` into the receive path of the bridge's port\n\
         (outbound) or of the uplink (inbound); a tc program drops them behind the other interface. The kernel's own\n\
         clock, on one CPU held by SCHED_FIFO. {rounds} rounds of {packets} UDP packets for each row, by turns. Cells are\n\
         medians with quartiles. `net` is less the floor of the same round; ratios are of net figures, round by round.\n\
         Every frame of a first {PROOF} was looked at behind the other interface, all later ones were counted there, and\n\
         vmnat's counters agree with what was sent. Connection tracking did not verify UDP checksums, as with a guest's\n\
         virtio or a network card that has done so."
    );
    let (mut tables, mut rows_json, mut goals, mut plots) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for measured in all {
        let Some(Measured { lane, size, .. }) = measured.first() else { continue };
        tables.push(table_of(measured, lane.direction, *size));
        rows_json.extend(measured.iter().map(|one| one.json(measured)));
        if sizes.first() == Some(size) {
            goals.extend(goals_of(measured, lane.direction));
            plots.push(plot_of(measured, lane.direction, *size));
        }
    }
    let mut paragraphs = vec![how];
    paragraphs.extend(plots.iter().map(plot::Plot::reference));
    paragraphs.extend(tables);
    paragraphs.push(goal::table_of(&goals, "goal, median of the ratios"));
    let data = json!({
        "schema": 2, "machine": report::machine(), "rounds": rounds, "packets": packets, "rows": rows_json,
    });
    let text = paragraphs.join("\n\n");
    Section { name: "packet", title: "Nanoseconds of a packet", text, data, goals, plots }
}

fn table_of(measured: &[Measured<'_>], direction: Direction, size: usize) -> String {
    let masquerade = series(measured, Forwarding::Masquerade, false).map(|own| net(measured, &own));
    let bridge = series(measured, Forwarding::Bridge, false).map(|own| net(measured, &own));
    let rows: Vec<_> = measured
        .iter()
        .map(|Measured { rig, nanoseconds, .. }| {
            let net = net(measured, nanoseconds);
            let (of_masquerade, of_bridge) = (ratio(&net, masquerade.as_ref()), ratio(&net, bridge.as_ref()));
            [
                rig.name(),
                nanoseconds.written(0),
                net.written(0),
                of_masquerade.written(2),
                of_bridge.written(2),
            ]
        })
        .collect();
    let heading = format!("{}, {size}-byte frames", direction.name());
    table(&[&heading[..], "ns", "net ns", "net × nft masquerade", "net × L2 bridge"], &rows)
}

fn plot_of(measured: &[Measured<'_>], direction: Direction, size: usize) -> plot::Plot {
    let bars: Vec<_> = measured
        .iter()
        .filter(|one| one.rig.forwarding != Forwarding::Floor)
        .map(|one| {
            plot::Bar::of(one.rig.name(), &net(measured, &one.nanoseconds), one.rig.forwarding.is_vmnat())
        })
        .collect();
    let name = direction.name();
    plot::bars(
        &format!("packet-{name}"),
        &format!("{name}, {size}-byte frames: cost of a packet"),
        "nanoseconds less the floor, median and quartiles",
        &bars,
    )
}

impl Measured<'_> {
    fn json(&self, all: &[Measured<'_>]) -> Value {
        let Self { rig, lane, size, nanoseconds, sent } = self;
        let own = net(all, nanoseconds);
        let of = |reference| {
            let reference = series(all, reference, false).map(|reference| net(all, &reference));
            ratio(&own, reference.as_ref()).json()
        };
        json!({
            "direction": lane.direction.name(), "frame_bytes": size, "forwarding": rig.forwarding.name(),
            "br_netfilter": rig.br_netfilter, "sent": sent, "nanoseconds": nanoseconds.json(),
            "net_nanoseconds": own.json(), "net_of_masquerade": of(Forwarding::Masquerade),
            "net_of_bridge": of(Forwarding::Bridge),
        })
    }
}

fn goals_of(measured: &[Measured<'_>], direction: Direction) -> Vec<Goal> {
    let of = |forwarding: Forwarding, br_netfilter: bool| {
        series(measured, forwarding, br_netfilter).map(|own| net(measured, &own)).unwrap_or_default()
    };
    let against = |reference: Forwarding, br_netfilter: bool, most: f64| Goal {
        what: format!(
            "{}{}: vmnat's port hook of {}, net",
            direction.name(),
            if br_netfilter { ", br_netfilter on" } else { "" },
            reference.name()
        ),
        ratio: ratio(&of(Forwarding::Port, br_netfilter), Some(&of(reference, br_netfilter))).median(),
        bound: Bound::AtMost(most),
    };
    let mut goals = match direction {
        Direction::Outbound => vec![
            against(Forwarding::Masquerade, false, 0.30),
            against(Forwarding::Bridge, false, 0.80),
            against(Forwarding::Masquerade, true, 0.25),
        ],
        Direction::Inbound => vec![against(Forwarding::Masquerade, false, 0.40)],
    };
    if series(measured, Forwarding::Against, false).is_some() {
        goals.push(against(Forwarding::Against, false, NO_SLOWER));
    }
    goals
}
