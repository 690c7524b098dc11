//! What vmnat counted.

use serde_json::Value;

/// One of vmnat's counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    /// Its name.
    pub name: String,
    /// `forwarded`, `passed` or `dropped`.
    pub kind: String,
    /// Packets.
    pub packets: u64,
}

impl Count {
    /// Reads a row of the listing.
    pub fn read(row: &Value) -> Option<Self> {
        Some(Self {
            name: row.get("name")?.as_str()?.to_owned(),
            kind: row.get("kind")?.as_str()?.to_owned(),
            packets: row.get("packets")?.as_u64()?,
        })
    }
}
