//! Access lists: the two banks of ranges, and the prefixes that lead to them.
//!
//! New ranges are written where no prefix leads to: there is room for two sets. Then the prefixes are turned over to them one by
//! one, each in one store, and those that are no more go last: every call is judged by the old lists or by the new ones.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use vmnat_common::access::{AccessKey, AccessList, AccessRange, BANK};

use super::Tables;

impl Tables {
    /// The access lists, by their prefixes.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn access(&self) -> Result<BTreeMap<AccessKey, Vec<AccessRange>>> {
        let mut lists = BTreeMap::new();
        for (key, AccessList { first, count }) in self.access.entries().context("read the access lists")? {
            let indices = first..first.saturating_add(count);
            let ranges: std::io::Result<Vec<_>> =
                indices.map(|index| Ok(self.access_range.get(&index)?.unwrap_or_default())).collect();
            lists.insert(key, ranges.context("read the access lists")?);
        }
        Ok(lists)
    }

    /// The prefixes that have a list.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn access_prefixes(&self) -> Result<Vec<AccessKey>> {
        let entries = self.access.entries().context("read the access lists")?;
        Ok(entries.into_iter().map(|(key, _)| key).collect())
    }

    /// How many prefixes may have a list.
    #[must_use]
    pub const fn most_access_prefixes(&self) -> u32 {
        self.access.capacity()
    }

    /// Replaces the access lists.
    ///
    /// # Errors
    /// What the kernel answers; the lists then are partly the old ones.
    pub fn set_access(&self, lists: &BTreeMap<AccessKey, Vec<AccessRange>>) -> Result<()> {
        let present = self.access.entries().context("read the access lists")?;
        let taken = present.iter().map(|(_, list)| (list.first, list.count)).collect();
        let mut next = first_gap(taken, lists.values().map(Vec::len).sum());
        let (mut indices, mut ranges, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for (key, list) in lists {
            let first = next;
            for range in list {
                indices.push(next);
                ranges.push(*range);
                next = next.saturating_add(1);
            }
            places.push((*key, AccessList { first, count: next.saturating_sub(first) }));
        }
        if !indices.is_empty() {
            self.access_range.set_all(&indices, &ranges).context("write the access lists")?;
        }
        for (key, list) in &places {
            self.access.set(key, list).context("write an access list")?;
        }
        for (key, _) in present.iter().filter(|(key, _)| !lists.contains_key(key)) {
            self.access.remove(key).context("remove an access list")?;
        }
        Ok(())
    }
}

/// Where so many ranges have room beside those that some prefix leads to. That is the other bank, or what is left of both where a
/// change was broken off between two prefixes; nowhere, and then the second bank is written over.
fn first_gap(mut taken: Vec<(u32, u32)>, wanted: usize) -> u32 {
    let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
    taken.retain(|(_, count)| *count > 0);
    taken.sort_unstable();
    let mut free = 0;
    for (first, count) in taken {
        if first.saturating_sub(free) >= wanted {
            return free;
        }
        free = free.max(first.saturating_add(count));
    }
    if (2 * BANK).saturating_sub(free) >= wanted { free } else { BANK }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_in_use_are_not_written_over() {
        assert_eq!(first_gap(vec![], 5), 0);
        assert_eq!(first_gap(vec![(0, 4), (4, 0), (4, 2)], 5), 6);
        assert_eq!(first_gap(vec![(9, 2), (0, 4)], 5), 4);
        assert_eq!(first_gap(vec![(9, 2), (0, 4)], 6), 11);
        assert_eq!(first_gap(vec![(3, BANK)], usize::try_from(BANK).unwrap()), BANK);
    }
}
