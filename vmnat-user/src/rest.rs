//! A freed port rests (RFC 6888 REQ-8), also after the maps that knew of it were lost.
//!
//! The mappings are written to `/var/lib` by `down` and, while the agent runs, at intervals. A start with fresh maps puts
//! them back without flows: each internal endpoint finds its external one again, nobody else gets it, and it is released
//! like any other once it has rested. The pool's secret is kept beside them, so a port that is chosen by it returns too.
//!
//! What was claimed between the last writing and a loss without `down` is not known.

use std::{fs, io, time::Duration};

use anyhow::{Context as _, Result};
use bytemuck::{Pod, Zeroable};
use tracing::warn;
use vmnat_common::{
    Endpoint, Port, SCHEMA_VERSION,
    mapping::{End, Mapping, MappingKey},
    port_range::pool_bit,
};

use crate::{forwards::now, paths::Instance, tables::Tables, whole_file::Staged};

/// What the file begins with.
const MAGIC: [u8; 8] = *b"vmnatmap";

/// Mappings that are written every [`OFTEN`]; more of them every [`SELDOM`].
const FEW: usize = 4_096;
const OFTEN: Duration = Duration::from_secs(10);
const SELDOM: Duration = Duration::from_mins(1);

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
struct Header {
    magic: [u8; 8],
    /// Second since 1970.
    written: u64,
    secret: [u32; 2],
    schema: u32,
    /// One where the maps ended with this writing, by `down`.
    is_last: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
struct Record {
    /// The internal endpoint, the external address, the protocol: as the key's bytes.
    key: [u8; size_of::<MappingKey>()],
    /// The external port.
    port: u16,
    reserved: u16,
}

/// The mappings at one moment, and the pool's secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// See [`vmnat_common::settings::Settings::secret`].
    pub secret: [u32; 2],
    records: Vec<Record>,
}

impl Snapshot {
    /// Reads the maps.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn take(tables: &Tables) -> Result<Self> {
        let entries = tables.mapping.entries().context("read the mappings")?;
        let inner = entries.iter().filter(|(key, _)| key.end == End::Internal as u8);
        let mut records: Vec<_> = inner.map(|(key, mapping)| record(key, mapping)).collect();
        records.sort_unstable();
        records.dedup();
        Ok(Self { secret: tables.settings()?.secret, records })
    }

    /// Puts the mappings back, without flows, for the time that a freed port rests; returns how many. A mapping whose port the host or
    /// a port forward has is left out: nobody gets it anyway.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn restore(&self, tables: &Tables) -> Result<usize> {
        let last_used = tables.clock()?.stamp();
        let mut restored = 0_usize;
        for record in &self.records {
            let inner: MappingKey = bytemuck::pod_read_unaligned(&record.key);
            let external = Endpoint::new(inner.on, Port::new(record.port));
            let end =
                |to: Endpoint| Mapping { address: to.address, port: to.port, flags: 0, flows: 0, last_used };
            let outer = MappingKey::external(inner.protocol, external);
            let owner = end(Endpoint::new(inner.address, inner.port));
            if !is_free(tables, &inner, external)? || !tables.mapping.insert(&outer, &owner)? {
                continue;
            }
            if tables.mapping.insert(&inner, &end(external))? {
                tables.note_owner(inner.protocol, owner.other(), external)?;
                restored = restored.saturating_add(1);
            } else {
                tables.mapping.remove(&outer)?;
            }
        }
        Ok(restored)
    }

    /// Reads what was written; none where there is nothing that serves: no file, one of another version, or one that `down`
    /// wrote so long ago that every port has rested.
    #[must_use]
    pub fn load(instance: &Instance, rest: Duration) -> Option<Self> {
        let path = instance.mappings();
        match fs::read(&path) {
            Ok(bytes) => Self::parse(&bytes, now(), rest),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                warn!("cannot read {}, so freed ports do not rest: {error}", path.display());
                None
            }
        }
    }

    fn parse(bytes: &[u8], now: u64, rest: Duration) -> Option<Self> {
        let (header, records) = bytes.split_at_checked(size_of::<Header>())?;
        let header: Header = bytemuck::try_pod_read_unaligned(header).ok()?;
        if header.magic != MAGIC || header.schema != SCHEMA_VERSION {
            return None;
        }
        let has_rested = header.is_last != 0 && now.saturating_sub(header.written) > rest.as_secs();
        let chunks = records.chunks_exact(size_of::<Record>()).map(bytemuck::pod_read_unaligned);
        let records = if has_rested { Vec::new() } else { chunks.collect() };
        Some(Self { secret: header.secret, records })
    }

    fn bytes(&self, now: u64, is_last: bool) -> Vec<u8> {
        let header = Header {
            magic: MAGIC,
            written: now,
            secret: self.secret,
            schema: SCHEMA_VERSION,
            is_last: u32::from(is_last),
        };
        [bytemuck::bytes_of(&header), bytemuck::cast_slice(&self.records)].concat()
    }

    /// Writes the file: to a temporary one, synced, renamed. `is_last` where the maps end now. None is made for no mappings.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn save(&self, instance: &Instance, is_last: bool) -> Result<()> {
        let path = instance.mappings();
        if self.records.is_empty() && !path.exists() {
            return Ok(());
        }
        let staged = Staged::bytes(&path, &self.bytes(now(), is_last));
        staged.with_context(|| format!("write {}", path.display()))?.commit()
    }

    /// How long the next writing may wait.
    #[must_use]
    pub const fn interval(&self) -> Duration {
        if self.records.len() > FEW { SELDOM } else { OFTEN }
    }
}

fn record(key: &MappingKey, mapping: &Mapping) -> Record {
    let mut bytes = [0; size_of::<MappingKey>()];
    bytes.copy_from_slice(bytemuck::bytes_of(key));
    Record { key: bytes, port: mapping.port.number(), reserved: 0 }
}

/// True when the pool may hand the port out; where a protocol has no pool, always.
fn is_free(tables: &Tables, inner: &MappingKey, external: Endpoint) -> Result<bool> {
    let place = inner.protocol().and_then(|protocol| pool_bit(protocol, external.port.number()));
    let Some((index, bit)) = place else { return Ok(true) };
    Ok(tables.port_pool.get(&index)?.is_some_and(|word| word & bit != 0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vmnat_common::Address;

    use super::*;

    const REST: Duration = Duration::from_mins(2);

    fn snapshot() -> Snapshot {
        let inner = Endpoint::new(Address::new([192, 168, 122, 10]), Port::new(5000));
        let key = MappingKey::internal(17, inner, Address::new([203, 0, 113, 2]));
        let mapping = Mapping { port: Port::new(5002), ..Mapping::zeroed() };
        Snapshot { secret: [3, 4], records: vec![record(&key, &mapping)] }
    }

    #[test]
    fn what_is_written_is_read() {
        let written = snapshot();
        assert_eq!(Snapshot::parse(&written.bytes(1000, false), 1000, REST), Some(written.clone()));
        assert_eq!(Snapshot::parse(&written.bytes(1000, true), 1120, REST), Some(written));
    }

    #[test]
    fn what_ended_long_ago_has_rested_but_when_a_loss_was_nobody_knows() {
        let written = snapshot();
        let rested = Snapshot { records: Vec::new(), ..written.clone() };
        assert_eq!(Snapshot::parse(&written.bytes(1000, true), 1121, REST), Some(rested));
        assert_eq!(Snapshot::parse(&written.bytes(1000, false), 9999, REST), Some(written.clone()));
        // A clock that was put back says nothing.
        assert_eq!(Snapshot::parse(&written.bytes(1000, true), 10, REST), Some(written));
    }

    #[test]
    fn another_version_is_not_read() {
        let mut bytes = snapshot().bytes(1000, false);
        bytes[0] = b'V';
        assert_eq!(Snapshot::parse(&bytes, 1000, REST), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), valid in any::<bool>()) {
            let bytes = if valid { [snapshot().bytes(7, false), bytes].concat() } else { bytes };
            let _ = Snapshot::parse(&bytes, 1000, REST);
        }
    }
}
