//! More than the maps hold is refused as a whole, before anything is touched.

use std::{collections::HashSet, hash::Hash};

use anyhow::{Context as _, Result};
use bytemuck::Pod;
use vmnat_common::{access, forward};

use crate::{
    error::Error,
    plan::Plan,
    tables::{Table, Tables},
};

/// Refuses a plan that does not fit.
///
/// # Errors
/// [`Error::TooMany`], and what the kernel answers.
pub(super) fn check(tables: &Tables, plan: &Plan) -> Result<()> {
    let lists = &plan.access.lists;
    let ranges = lists.values().map(Vec::len).sum();
    let prefixes = together(&tables.access_prefixes()?, lists.keys().copied());
    let present: Vec<_> = tables.forward_source.entries().context("read the sources of port forwards")?;
    let present: Vec<_> = present.into_iter().map(|(source, _)| source).collect();
    let sources = together(&present, plan.forward_source.iter().copied());
    let fewer = "name fewer";
    fits("networks", plan.network.len(), capacity(&tables.network), "name larger ones, or fewer")?;
    let untranslated = capacity(&tables.untranslated);
    fits(
        "networks without translation",
        plan.untranslated.len(),
        untranslated,
        "name larger ones, or fewer",
    )?;
    fits("uplinks", plan.uplink.len(), capacity(&tables.uplink), fewer)?;
    fits("bridges and ports", plan.bridge_port.len(), capacity(&tables.bridge_port), "name fewer bridges")?;
    fits("services of gateways", plan.service.len(), capacity(&tables.service), fewer)?;
    let merge = "use wider networks and ranges of ports";
    fits("ranges of access lists", ranges, access::BANK, merge)?;
    let twice = "what is removed stays until what is new is there: remove some first, or use wider networks";
    fits("prefixes of access lists, old and new,", prefixes, tables.most_access_prefixes(), twice)?;
    let each = "an entry is taken for each external address and protocol, so name ranges of ports, or fewer forwards";
    fits("entries of port forwards", plan.forward.len(), forward::BANK, each)?;
    fits("sources of port forwards, old and new,", sources, capacity(&tables.forward_source), twice)
}

const fn capacity<K: Pod, V: Pod>(table: &Table<K, V>) -> u32 {
    table.capacity()
}

/// How many entries there are while the new ones come and before the old ones go.
fn together<K: Eq + Hash + Copy>(present: &[K], wanted: impl Iterator<Item = K>) -> usize {
    present.iter().copied().chain(wanted).collect::<HashSet<K>>().len()
}

fn fits(what: &'static str, count: usize, most: u32, hint: &'static str) -> Result<()> {
    if u32::try_from(count).is_ok_and(|count| count <= most) {
        return Ok(());
    }
    Err(Error::TooMany { what, count, most, hint }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_fit_are_not_too_many() {
        assert!(fits("networks", 256, 256, "name fewer").is_ok());
        let error = fits("networks", 257, 256, "name fewer").unwrap_err().to_string();
        assert_eq!(
            error,
            "257 networks do not fit, and nothing was changed: vmnat holds 256 of them; name fewer"
        );
    }

    #[test]
    fn what_stays_counts_once() {
        assert_eq!(together(&[1, 2, 3], [3, 4].into_iter()), 4);
    }
}
