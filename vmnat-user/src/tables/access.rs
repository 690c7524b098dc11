//! Access lists: the two banks of ranges, and the prefixes that lead to them.
//!
//! New ranges are written to the bank that no prefix leads to. Then the prefixes are turned over to it one by one, each in one
//! store, and those that are no more go last: every call is judged by the old lists or by the new ones.

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

    /// Replaces the access lists.
    ///
    /// # Errors
    /// What the kernel answers; the lists then are partly the old ones.
    pub fn set_access(&self, lists: &BTreeMap<AccessKey, Vec<AccessRange>>) -> Result<()> {
        let present = self.access.entries().context("read the access lists")?;
        let in_second = present.iter().any(|(_, list)| list.count > 0 && list.first >= BANK);
        let mut next = if in_second { 0 } else { BANK };
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
