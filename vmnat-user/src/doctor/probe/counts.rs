//! What rules and programs have counted, before a step of the probe and after it: who dropped its packets.

use std::collections::HashMap;

use super::super::ruleset::{Place, Raw, Ruleset, Step, Verdict};
use crate::tables::Tables;

/// Counters of one moment.
pub(super) struct Counts {
    rules: Ruleset,
    outcomes: Vec<(&'static str, u64)>,
}

impl Counts {
    /// Reads them.
    pub(super) fn read(tables: Option<&Tables>) -> Self {
        let outcomes = tables.and_then(|tables| tables.outcomes().ok());
        let named = vmnat_common::Outcome::ALL.iter().map(|outcome| outcome.name());
        Self {
            rules: Ruleset::decode(&Raw::read().0),
            outcomes: outcomes.map_or_else(Vec::new, |counts| named.zip(counts).collect()),
        }
    }

    /// Rules that drop and have counted, and vmnat's own drops.
    pub(super) fn lost(&self, after: &Self) -> Vec<String> {
        let old: HashMap<(Place, usize), u64> = self.rules.counts();
        let mut lines = Vec::new();
        for chain in &after.rules.chains {
            for (number, rule) in chain.rules.iter().enumerate() {
                let drops = matches!(rule.steps.last(), Some(Step::End(Verdict::Drop) | Step::Reject));
                let was = old.get(&(chain.place.clone(), number)).copied().unwrap_or(0);
                let more = rule.packets.unwrap_or(0).saturating_sub(was);
                if drops && more > 0 {
                    let text = after.rules.rule(&chain.place, rule);
                    lines.push(format!(
                        "{more} packets were dropped meanwhile by {}, rule {}: {text}",
                        chain.place,
                        number.saturating_add(1)
                    ));
                }
            }
        }
        let was: HashMap<&str, u64> = self.outcomes.iter().copied().collect();
        for (outcome, (name, count)) in vmnat_common::Outcome::ALL.iter().zip(&after.outcomes) {
            let more = count.saturating_sub(was.get(name).copied().unwrap_or(0));
            if more > 0 && outcome.kind() == vmnat_common::outcome::Kind::Dropped {
                lines
                    .push(format!("vmnat dropped {more} packets meanwhile: {name} ({})", outcome.sentence()));
            }
        }
        lines
    }
}
