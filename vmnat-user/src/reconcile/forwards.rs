//! Port forwards: the set as a whole, in one step.
//!
//! What the set needs (counters, source lists) is there before it is turned over, and what it needs no more goes after. A
//! number is never used again for another forward, so lists and counters of old and new forwards do not meet.

use std::collections::{BTreeMap, HashSet};

use anyhow::{Context as _, Result};
use vmnat_common::{
    Endpoint, Port, Protocol,
    forward::{Forward, ForwardCount},
};

use crate::{plan::Plan, tables::Tables};

/// Changes that are told one by one.
const TOLD: usize = 24;

/// Makes the port forwards those of the plan; a line for each that came or went.
pub(super) fn settle(tables: &Tables, plan: &Plan) -> Result<Vec<String>> {
    let present = tables.forwards()?;
    let ids: HashSet<u32> = plan.forward.iter().map(|forward| forward.id).collect();
    for id in &ids {
        tables.forward_count.insert(id, &ForwardCount::default()).context("count for a port forward")?;
    }
    for source in &plan.forward_source {
        tables.forward_source.set(source, &1).context("write the sources of a port forward")?;
    }
    if present != plan.forward {
        tables.set_forwards(&plan.forward)?;
    }
    let sources: HashSet<_> = plan.forward_source.iter().collect();
    for (source, _) in tables.forward_source.entries()? {
        if !sources.contains(&source) {
            tables.forward_source.remove(&source)?;
        }
    }
    for (id, _) in tables.forward_count.entries()? {
        if !ids.contains(&id) {
            tables.forward_count.remove(&id)?;
        }
    }
    Ok(changes(&present, &plan.forward))
}

/// A line for each change, or one with their numbers.
fn changes(present: &[Forward], wanted: &[Forward]) -> Vec<String> {
    let lines = lines(present, wanted);
    if lines.len() <= TOLD {
        return lines;
    }
    let count = |verb: &str| lines.iter().filter(|line| line.starts_with(verb)).count();
    let verbs = ["removed", "added", "changed"].map(|verb| (verb, count(verb)));
    let verbs: Vec<String> =
        verbs.iter().filter(|(_, count)| *count > 0).map(|(verb, count)| format!("{verb} {count}")).collect();
    vec![format!("{} entries of port forwards", verbs.join(", "))]
}

fn lines(present: &[Forward], wanted: &[Forward]) -> Vec<String> {
    let by_place = |forwards: &[Forward]| -> BTreeMap<u64, Forward> {
        forwards.iter().map(|forward| (forward.first, *forward)).collect()
    };
    let (present, wanted) = (by_place(present), by_place(wanted));
    let gone = present.iter().filter(|(first, _)| !wanted.contains_key(first));
    let mut lines: Vec<String> = gone.map(|(_, forward)| format!("removed {}", label(forward))).collect();
    for (first, forward) in &wanted {
        match present.get(first) {
            None => lines.push(format!("added {}", label(forward))),
            Some(before) if before != forward => lines.push(format!("changed {}", label(forward))),
            Some(_) => {}
        }
    }
    lines
}

/// A forward in words: its external endpoints, and where they lead.
fn label(forward: &Forward) -> String {
    let (protocol, external) = forward.external();
    let end = |port: Port| match forward.span {
        0 => String::new(),
        span => format!("-{}", port.number().saturating_add(span)),
    };
    let protocol = Protocol::from_number(protocol).map_or("?", Protocol::name);
    let target = Endpoint::new(forward.address, forward.port);
    format!(
        "port forward {}: {external}{}/{protocol} to {target}{}",
        forward.id,
        end(external.port),
        end(target.port)
    )
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;
    use vmnat_common::{Address, forward::place};

    use super::*;

    fn forward(port: u16, span: u16) -> Forward {
        let external = Endpoint::new(Address::new([192, 0, 2, 1]), Port::new(port));
        let (address, first) = (Address::new([10, 0, 0, 2]), place(6, external));
        Forward { first, address, port: Port::new(80), span, id: 3, ..Forward::zeroed() }
    }

    #[test]
    fn forwards_are_told_as_people_write_them() {
        assert_eq!(label(&forward(8080, 0)), "port forward 3: 192.0.2.1:8080/tcp to 10.0.0.2:80");
        assert_eq!(label(&forward(8080, 9)), "port forward 3: 192.0.2.1:8080-8089/tcp to 10.0.0.2:80-89");
    }

    #[test]
    fn what_came_went_and_changed_is_told() {
        let (one, two) = (forward(1, 0), forward(2, 0));
        let other = Forward { span: 1, ..two };
        assert!(changes(&[one], &[one]).is_empty());
        let lines = changes(&[one, two], &[other, forward(9, 0)]);
        let verbs: Vec<&str> = lines.iter().filter_map(|line| line.split(' ').next()).collect();
        assert_eq!(verbs, ["removed", "changed", "added"]);
        let many: Vec<Forward> = (1..100).map(|port| forward(port, 0)).collect();
        assert_eq!(changes(&[forward(200, 0)], &many), ["removed 1, added 99 entries of port forwards"]);
    }
}
