//! `stream`: bulk traffic of iperf3 between a guest and the world: one stream of TCP and eight, whole and cut to size, and UDP,
//! each way.

use anyhow::{Context as _, Result};
use serde_json::json;
use vmnat_tests::lab::{SERVER, iperf::Way};

use crate::{
    cpu,
    forwarding::Forwarding,
    goal::{self, Bound, Goal},
    inhabited::{Inhabited, Segments},
    load::{self, Load},
    plot,
    report::{self, Section, table},
    statistics::Series,
};

/// What runs, and how large its packets are.
#[derive(Clone, Copy, Debug)]
struct Kind {
    segments: Segments,
    is_udp: bool,
    streams: u32,
}

const KINDS: [Kind; 5] = [
    Kind { segments: Segments::Whole, is_udp: false, streams: 1 },
    Kind { segments: Segments::Whole, is_udp: false, streams: 8 },
    Kind { segments: Segments::Wire, is_udp: false, streams: 1 },
    Kind { segments: Segments::Wire, is_udp: false, streams: 8 },
    Kind { segments: Segments::Wire, is_udp: true, streams: 1 },
];

const WAYS: [(Way, &str); 2] = [(Way::Up, "guest to world"), (Way::Down, "world to guest")];

impl Kind {
    fn name(self) -> String {
        let Self { segments, is_udp, streams } = self;
        if is_udp {
            return "UDP, 1,400 bytes".to_owned();
        }
        let plural = if streams == 1 { "" } else { "s" };
        format!("TCP, {streams} stream{plural}, {}", segments.name())
    }
}

/// What was measured of one kind in one way: bits a second of each rig.
#[derive(Debug)]
struct Measured {
    kind: Kind,
    way: &'static str,
    rates: Vec<Series>,
}

/// Measures, and describes what came of it.
pub fn run(forwardings: &[Forwarding], rounds: usize, seconds: u32) -> Result<Section> {
    cpu::prefer_children()?;
    let mut all = Vec::new();
    for segments in [Segments::Whole, Segments::Wire] {
        let inhabited = Inhabited::new(forwardings, segments)?;
        for kind in KINDS.iter().filter(|kind| kind.segments == segments) {
            let mut ways = WAYS.map(|(_, way)| Measured {
                kind: *kind,
                way,
                rates: vec![Series::default(); inhabited.rigs.len()],
            });
            for round in 0..rounds {
                println!("stream: {}, round {} of {rounds}", kind.name(), round + 1);
                for ((way, _), measured) in WAYS.into_iter().zip(&mut ways) {
                    let Kind { is_udp, streams, .. } = *kind;
                    let load = Load { is_udp, streams, way, seconds };
                    for at in inhabited.order(round) {
                        let rig = inhabited.rigs.get(at).zip(measured.rates.get_mut(at));
                        let (rig, rates) = rig.context("no such rig")?;
                        let rate =
                            load::run(&rig.guest, &rig.peer, SERVER, load).with_context(|| rig.name())?;
                        rates.0.push(rate);
                    }
                }
            }
            all.extend(ways);
        }
        inhabited.stop()?;
    }
    Ok(describe(forwardings, &all, rounds, seconds))
}

fn describe(forwardings: &[Forwarding], all: &[Measured], rounds: usize, seconds: u32) -> Section {
    let how = format!(
        "How: iperf3 between a guest and a host behind the uplink, {rounds} rounds of {seconds} s for each row, by turns. \"GSO\": veths with their\n\
         offloads, so that packets of up to 64 KiB are forwarded; \"MSS-sized\": both ends cut their segments themselves and put none\n\
         together, so that each packet is forwarded alone. UDP is sent as fast as it goes; what arrives counts. Gbit/s, medians with\n\
         quartiles; ratios are of each round's runs. Both ends share the processors with what is measured and cost far more than it does:\n\
         the spread of the ratios is the noise of these figures."
    );
    let (mut rows, mut values, mut goals, mut bars) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for measured in all {
        let Measured { kind, way, rates } = measured;
        let of = |wanted: Forwarding| {
            let found = forwardings.iter().zip(rates).find(|(forwarding, _)| **forwarding == wanted);
            found.map_or_else(Series::default, |(_, rates)| rates.clone())
        };
        let ratio = |own: &Series, other: &Series| own.with(other, |own, other| own / other);
        let giga = |series: &Series| Series(series.0.iter().map(|rate| rate / 1e9).collect());
        let (masquerade, route) = (of(Forwarding::Masquerade), of(Forwarding::Route));
        let what = format!("{}, {way}", kind.name());
        for (forwarding, rates) in forwardings.iter().zip(rates) {
            let (of_masquerade, of_route) = (ratio(rates, &masquerade), ratio(rates, &route));
            rows.push([
                what.clone(),
                forwarding.name().to_owned(),
                giga(rates).written(2),
                of_masquerade.written(2),
                of_route.written(2),
            ]);
            values.push(json!({
                "kind": kind.name(), "way": way, "forwarding": forwarding.name(), "bits_a_second": rates.json(),
                "of_masquerade": of_masquerade.json(), "of_route": of_route.json(),
            }));
            if !kind.is_udp && kind.streams == 1 && *way == WAYS[0].1 {
                let name = format!("{}, {}", forwarding.name(), kind.segments.name());
                bars.push(plot::Bar::of(name, &giga(rates), forwarding.is_vmnat()));
            }
        }
        if !kind.is_udp && kind.streams == 1 {
            let own = of(Forwarding::Port);
            let goal = |other: &str, ratio: &Series, least: f64| Goal {
                what: format!("{what}: vmnat of {other}"),
                ratio: ratio.median(),
                bound: Bound::AtLeast(least),
            };
            goals.push(goal("nft masquerade", &ratio(&own, &masquerade), 1.05));
            goals.push(goal("L3 forward", &ratio(&own, &route), 1.0));
        }
    }
    let title = "One TCP stream, guest to world";
    let plots = vec![plot::bars("stream", title, "Gbit/s, median and quartiles", &bars)];
    let columns = ["iperf3", "forwarding", "Gbit/s", "× nft masquerade", "× L3 forward"];
    let mut paragraphs = vec![how];
    paragraphs.extend(plots.iter().map(plot::Plot::reference));
    paragraphs.extend([table(&columns, &rows), goal::table_of(&goals, "goal, median ratio")]);
    let data = json!({
        "schema": 2, "machine": report::machine(), "rounds": rounds, "seconds": seconds, "rows": values,
    });
    Section { name: "stream", title: "Streams", text: paragraphs.join("\n\n"), data, goals, plots }
}
