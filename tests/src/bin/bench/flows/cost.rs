//! The cost of a packet by the number of live flows.

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::{
    Extent,
    crowd::{Crowd, FRAME, SHARED_PORTS, SPARE, conntrack_limit},
};
use crate::{
    forwarding::{Direction, Forwarding},
    goal::{Bound, Goal},
    packet::WARM_UP,
    report::{table, thousands},
    rig::Lane,
    statistics::Series,
};

/// What the others are compared with.
const REFERENCE: u32 = 1_000;

/// What a packet may cost with many flows, of what it costs with [`REFERENCE`].
const MOST_OF_FEW: f64 = 1.5;

/// How often a measurement may begin anew whose flows have looked their way up in the midst of it.
const ATTEMPTS: usize = 4;

/// One way to forward with one number of flows.
#[derive(Debug)]
pub struct Row {
    direction: Direction,
    flows: u32,
    /// None for the floor.
    forwarding: Forwarding,
    nanoseconds: Series,
    net: Series,
    /// Of the packet by which vmnat's flow looks its way up, less the floor.
    first_net: Series,
    /// Of the same round's vmnat with [`REFERENCE`] flows, both less the floor.
    of_reference: Series,
    /// The same with the floor in both.
    raw_of_reference: Series,
}

/// The rigs: the floor, vmnat with few flows, vmnat and nft with ever more.
#[derive(Debug)]
pub struct Crowds {
    floor: Crowd,
    reference: Crowd,
    /// vmnat, to the brim.
    pub vmnat: Crowd,
    /// nft masquerade.
    pub masquerade: Crowd,
    filled: u32,
    filled_masquerade: u32,
}

impl Crowds {
    /// Builds them for so many flows.
    pub fn new(most: u32) -> Result<Self> {
        let reference = Crowd::new(Forwarding::Port, REFERENCE + SPARE)?;
        reference.fill(SHARED_PORTS, 0, REFERENCE)?;
        Ok(Self {
            floor: Crowd::new(Forwarding::Floor, 0)?,
            reference,
            vmnat: Crowd::new(Forwarding::Port, most + SPARE)?,
            masquerade: Crowd::new(Forwarding::Masquerade, 0)?,
            filled: 0,
            filled_masquerade: 0,
        })
    }

    /// Fills up to so many flows. nft goes as far as the machine's limit lets it, with room for what else is tracked.
    fn fill(&mut self, flows: u32) -> Result<()> {
        self.vmnat.fill(SHARED_PORTS, self.filled, flows)?;
        self.filled = flows;
        if u64::from(flows) + 1_000 <= conntrack_limit()? {
            self.masquerade.fill(SHARED_PORTS, self.filled_masquerade, flows)?;
            self.filled_masquerade = flows;
        }
        Ok(())
    }

    /// Measures one number of flows, both ways.
    pub fn measure(&mut self, flows: u32, extent: Extent) -> Result<Vec<Row>> {
        self.fill(flows)?;
        let mut rows = Vec::new();
        for direction in Direction::BOTH {
            println!("flows: {} with {flows}", direction.name());
            rows.extend(self.measure_way(direction, flows, extent)?);
        }
        Ok(rows)
    }

    /// Ends what runs.
    pub fn stop(&self) -> Result<()> {
        self.reference.rig.stop()?;
        self.vmnat.rig.stop()
    }

    fn measure_way(&self, direction: Direction, flows: u32, extent: Extent) -> Result<Vec<Row>> {
        let lane = |crowd: &Crowd, flows: u32| crowd.rig.random_lane(direction, FRAME, SHARED_PORTS, flows);
        let mut turns = vec![
            (&self.floor, lane(&self.floor, flows)?),
            (&self.reference, lane(&self.reference, REFERENCE)?),
        ];
        turns.push((&self.vmnat, lane(&self.vmnat, flows)?));
        if self.filled_masquerade == flows {
            turns.push((&self.masquerade, lane(&self.masquerade, flows)?));
        }
        let mut series = vec![(Series::default(), Series::default()); turns.len()];
        for (crowd, lane) in &turns {
            crowd.rig.prove(lane)?;
        }
        for round in 0..extent.rounds {
            for step in 0..turns.len() {
                let at = (round + step) % turns.len();
                let ((crowd, lane), series) =
                    turns.get(at).zip(series.get_mut(at)).context("no such turn")?;
                let [first, others] = turn(crowd, lane, extent.packets)?;
                series.0.0.push(first);
                series.1.0.push(others);
            }
        }
        let [(first_floor, floor), (_, reference), rest @ ..] = &series[..] else { return Ok(Vec::new()) };
        let net = |own: &Series| own.with(floor, |own, floor| own - floor);
        let few = net(reference);
        let names = [Forwarding::Port, Forwarding::Masquerade];
        let mut rows = vec![Row {
            direction,
            flows,
            forwarding: Forwarding::Floor,
            nanoseconds: floor.clone(),
            net: Series::default(),
            first_net: Series::default(),
            of_reference: Series::default(),
            raw_of_reference: Series::default(),
        }];
        rows.extend(names.into_iter().zip(rest).map(|(forwarding, (first, own))| Row {
            direction,
            flows,
            forwarding,
            nanoseconds: own.clone(),
            net: net(own),
            first_net: first.with(first_floor, |own, floor| own - floor),
            of_reference: net(own).with(&few, |own, few| own / few),
            raw_of_reference: own.with(reference, |own, few| own / few),
        }));
        Ok(rows)
    }
}

/// A packet's nanoseconds of a crowd that talks: every flow has one packet before, by which those of vmnat look their way up, and
/// all is over before they do so again. First those of that packet, in the order in which the flows were opened; then the others', of
/// flows at random.
fn turn(crowd: &Crowd, lane: &Lane, packets: u32) -> Result<[f64; 2]> {
    for attempt in 0..ATTEMPTS {
        let sweep = crowd.rig.ascending_lane(lane.direction, FRAME, SHARED_PORTS, 0)?;
        let slot = crowd.renew(attempt > 0)?;
        let first = crowd.rig.send(&sweep, lane.flows())?;
        crowd.rig.send(lane, WARM_UP)?;
        let others = crowd.rig.send(lane, packets)?;
        if crowd.slot()? == slot {
            return Ok([first, others].map(f64::from));
        }
    }
    bail!("{}: {} flows and {packets} packets take longer than a slot", crowd.rig.name(), lane.flows())
}

/// What came of it, for people, for programs, and as goals.
pub fn describe(rows: &[Row]) -> (Vec<String>, Vec<Value>, Vec<Goal>) {
    let mut tables = Vec::new();
    for direction in Direction::BOTH {
        let rows: Vec<_> = rows.iter().filter(|row| row.direction == direction).map(Row::cells).collect();
        let heading = format!("{}, spread over live flows", direction.name());
        tables.push(table(
            &[
                "live flows",
                &heading,
                "ns",
                "net ns",
                "net × vmnat at 1,000",
                "raw × the same",
                "first, net ns",
            ],
            &rows,
        ));
    }
    let mut goals = Vec::new();
    for direction in Direction::BOTH {
        let most = |row: &&Row| row.direction == direction && row.forwarding == Forwarding::Port;
        if let Some(row) = rows.iter().filter(most).max_by_key(|row| row.flows) {
            goals.push(flatness(direction, row));
        }
    }
    (tables, rows.iter().map(Row::json).collect(), goals)
}

/// Less the floor a ratio is further from 1, but not where noise moves the floor: the larger one is judged.
fn flatness(direction: Direction, row: &Row) -> Goal {
    let [net, raw] = [&row.of_reference, &row.raw_of_reference].map(Series::median);
    Goal {
        what: format!(
            "{}: a packet with {} flows of one with 1,000, net {net:.3}, raw {raw:.3}",
            direction.name(),
            thousands(row.flows)
        ),
        // A ratio that is no number keeps no bound.
        ratio: if net.is_nan() || raw.is_nan() { f64::NAN } else { net.max(raw) },
        bound: Bound::AtMost(MOST_OF_FEW),
    }
}

impl Row {
    fn cells(&self) -> [String; 7] {
        let is_floor = self.forwarding == Forwarding::Floor;
        let cell =
            |series: &Series, decimals| if is_floor { String::new() } else { series.written(decimals) };
        [
            thousands(self.flows),
            self.forwarding.name().to_owned(),
            self.nanoseconds.written(0),
            cell(&self.net, 0),
            cell(&self.of_reference, 2),
            cell(&self.raw_of_reference, 2),
            cell(&self.first_net, 0),
        ]
    }

    fn json(&self) -> Value {
        json!({
            "direction": self.direction.name(), "flows": self.flows, "forwarding": self.forwarding.name(),
            "nanoseconds": self.nanoseconds.json(), "net_nanoseconds": self.net.json(), "first_net_nanoseconds": self.first_net.json(),
            "net_of_vmnat_at_1000": self.of_reference.json(), "raw_of_vmnat_at_1000": self.raw_of_reference.json(),
        })
    }

    /// What a plot needs: way, forwarding, flows, median of the net nanoseconds; none for the floor.
    pub fn point(&self) -> Option<(Direction, Forwarding, u32, f64)> {
        let is_floor = self.forwarding == Forwarding::Floor;
        (!is_floor).then(|| (self.direction, self.forwarding, self.flows, self.net.median()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(net: f64, raw: f64) -> Row {
        let series = |figure: f64| Series(vec![figure]);
        Row {
            direction: Direction::Inbound,
            flows: 1_000_000,
            forwarding: Forwarding::Port,
            nanoseconds: series(1.0),
            net: series(1.0),
            first_net: series(1.0),
            of_reference: series(net),
            raw_of_reference: series(raw),
        }
    }

    #[test]
    fn many_flows_are_judged_by_the_larger_of_net_and_raw() {
        let is_met = |net, raw| flatness(Direction::Inbound, &row(net, raw)).is_met();
        assert!(is_met(1.5, 1.2) && is_met(1.2, 1.5));
        assert!(!is_met(1.51, 1.2) && !is_met(1.2, 1.51));
        assert!(!is_met(f64::NAN, 1.0) && !is_met(1.0, f64::NAN));
    }

    #[test]
    fn both_ratios_of_many_flows_are_shown() {
        let goal = flatness(Direction::Inbound, &row(1.4, 1.25));
        let said = "inbound: a packet with 1,000,000 flows of one with 1,000, net 1.400, raw 1.250";
        assert_eq!(goal.what, said);
    }
}
