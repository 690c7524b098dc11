//! What another version has pinned: taken over where its layout is known, and left alone where it is not.
//!
//! The pins of a version lie in a directory of its schema. A load compares every map in it, and in those of other schemas,
//! before it touches anything; what it does not know it refuses, and then nothing has changed. Maps of the same layout are
//! pinned once more at the new place: they are the same maps, so nothing has to be copied. Of the others each is made
//! anew beside the old one, and its entries are copied. Links are moved and get their new programs by reconcile, one by
//! one; until then the old programs forward with the old maps. What was opened meanwhile is copied by [`finish`], which
//! then removes the old pins. A load that was killed is done once more by the next one.

use std::{
    collections::HashMap,
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use bytemuck::{Pod, Zeroable};
use vmnat_common::{
    Address, Mac, SCHEMA_VERSION,
    session::{Carry, Session, Traffic},
};

use super::{OBJECT, map, map::Kind};
use crate::{
    error::Error,
    flow_table::FlowTable,
    paths::Instance,
    rawbpf::{self, Entry, MapShape},
    tables::not_a_map,
};

/// A kernel half, and how it takes over what earlier ones have pinned.
#[derive(Clone, Copy, Debug)]
pub struct Edition<'a> {
    /// The object.
    pub object: &'a [u8],
    /// Its schema.
    pub schema: u32,
    /// The ways from earlier schemas, one schema each.
    pub steps: &'a [Step<'a>],
}

impl Edition<'static> {
    /// This version's. A change of a map's layout raises [`SCHEMA_VERSION`] and adds the step that leads there.
    #[must_use]
    pub fn this() -> Self {
        // Not a constant: each part of the program that names it would hold the whole object.
        Self { object: OBJECT, schema: SCHEMA_VERSION, steps: &STEPS }
    }
}

/// 1: flows were in a hash. 2: a session had whole counters and differences of checksums, and an entry of the table two lines.
static STEPS: [Step<'static>; 2] = [
    Step {
        from: 1,
        changed: &[(
            map::FLOW,
            Heir::Entries { kind: Kind::Hash, key_size: 16, value_size: 64, rewrite: unchanged },
        )],
    },
    Step {
        from: 2,
        changed: &[(
            map::FLOW,
            Heir::Entries { kind: Kind::MappedArray, key_size: 16, value_size: 64, rewrite: halved },
        )],
    },
];

#[expect(clippy::unnecessary_wraps, reason = "the type of `Heir::Entries`")]
fn unchanged(key: &[u8], value: &[u8]) -> Option<Entry> {
    Some((key.to_vec(), value.to_vec()))
}

/// A session of schema 1 and 2.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct WholeSession {
    address: [u8; 4],
    port: [u8; 2],
    tcp_seen: u8,
    flags: u8,
    out_if: u32,
    in_if: u32,
    next_hop: [u8; 4],
    macs: [u8; 12],
    diffs: [u16; 2],
    mtu: u16,
    epoch: u16,
    last_seen: u32,
    tag: u32,
    packets: u64,
    bytes: u64,
}

/// Counters in halves: the lower ones are the session's, the upper ones follow it.
fn halved(key: &[u8], value: &[u8]) -> Option<Entry> {
    let former: WholeSession = bytemuck::try_pod_read_unaligned(value).ok()?;
    let traffic = Traffic { packets: former.packets, bytes: former.bytes };
    let (carry, [packets, bytes]) = traffic.split();
    let carries = if carry == Carry::default() { 0 } else { Session::CARRIES };
    let [to @ .., _, _, _, _, _, _] = former.macs;
    let [_, _, _, _, _, _, from @ ..] = former.macs;
    let session = Session {
        address: Address::new(former.address),
        port: bytemuck::cast(former.port),
        tcp_seen: former.tcp_seen | carries,
        flags: former.flags,
        out_if: former.out_if,
        in_if: former.in_if,
        next_hop: Address::new(former.next_hop),
        destination_mac: Mac::new(to),
        source_mac: Mac::new(from),
        mtu: former.mtu,
        epoch: former.epoch,
        last_seen: former.last_seen,
        packets,
        bytes,
    };
    Some((key.to_vec(), [bytemuck::bytes_of(&session), bytemuck::bytes_of(&carry)].concat()))
}

/// From one schema to the next one.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// The schema that it begins with.
    pub from: u32,
    /// The maps whose layout changes, by name; all others are taken over as they are.
    pub changed: &'a [(&'a str, Heir)],
}

/// What becomes of a map whose layout changes.
#[derive(Clone, Copy, Debug)]
pub enum Heir {
    /// It begins empty: reconcile fills it, or packets do.
    Anew,
    /// Its entries are rewritten.
    Entries {
        /// What it was: a hash, or [`Kind::MappedArray`] for a flow table.
        kind: Kind,
        /// Bytes of an old key.
        key_size: u32,
        /// Bytes of an old value.
        value_size: u32,
        /// Old key and value to new ones; none for an entry that ends. Of a flow of schema 3 and later the value is the session, and behind
        /// it the [`Carry`] of its counters, which has to stay behind it.
        rewrite: fn(&[u8], &[u8]) -> Option<Entry>,
    },
}

/// Another version's pins.
#[derive(Clone, Debug)]
struct Former {
    path: PathBuf,
    schema: u32,
}

impl Former {
    fn map(&self, name: &str) -> PathBuf {
        self.path.join("maps").join(name)
    }
}

/// What a load does with what is pinned.
#[derive(Debug)]
pub(super) struct Heritage {
    formers: Vec<Former>,
    /// Pins of this very schema, whose maps have another number of entries.
    is_resized: bool,
}

/// The directories that hold pins of this instance, but for that of its own schema: the latest first.
///
/// # Errors
/// What the file system answers.
pub fn others(instance: &Instance) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(instance.pins()) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    let own = instance.schema_pins();
    let mut others: Vec<_> = paths.into_iter().filter(|path| *path != own).collect();
    others.sort_unstable_by(|one, other| other.cmp(one));
    Ok(others)
}

/// The error for pins of another schema, where nothing of this one's is there.
#[must_use]
pub fn unknown(instance: &Instance) -> Option<Error> {
    let path = others(instance).ok()?.into_iter().next()?;
    Some(unknown_schema(&path, instance.schema()))
}

fn unknown_schema(path: &Path, own: u32) -> Error {
    let why = match schema_of(path) {
        Some(schema) => format!("its maps are of schema {schema}, and this program's of schema {own}"),
        None => "its name is no schema's".to_owned(),
    };
    Error::UnknownLayout { path: path.to_owned(), why }
}

/// The number in `v1` and `v1-former2`.
fn schema_of(path: &Path) -> Option<u32> {
    let name = path.file_name()?.to_str()?.strip_prefix('v')?;
    name.split_once("-former").map_or(name, |(schema, _)| schema).parse().ok()
}

impl Edition<'_> {
    /// What becomes of the maps that have another layout than those of an earlier schema; none where no way leads from there.
    fn changes(&self, from: u32) -> Option<HashMap<&str, Vec<Heir>>> {
        let mut changes = HashMap::<&str, Vec<Heir>>::new();
        if from > self.schema {
            return None;
        }
        for schema in from..self.schema {
            let step = self.steps.iter().find(|step| step.from == schema)?;
            for (name, heir) in step.changed {
                changes.entry(name).or_default().push(*heir);
            }
        }
        // What lies beside the flow table is by its slots, and those are others in another table.
        if changes.contains_key(map::FLOW) {
            for beside in [map::FLOW_GROUP, map::FLOW_CARRY] {
                changes.entry(beside).or_default().push(Heir::Anew);
            }
        }
        Some(changes)
    }
}

impl Heritage {
    /// Compares all that is pinned with what the edition's maps are to be; touches nothing.
    ///
    /// # Errors
    /// [`Error::UnknownLayout`].
    pub(super) fn survey(
        instance: &Instance,
        edition: &Edition<'_>,
        wanted: &[(&str, MapShape)],
    ) -> Result<Self> {
        let mut is_resized = false;
        for (name, expected) in wanted {
            if let Some((_, found)) = open(&instance.map(name))? {
                refuse_difference(&instance.map(name), expected, &found)?;
                is_resized |= found.max_entries != expected.max_entries;
            }
        }
        let others = others(instance).with_context(|| format!("read {}", instance.pins().display()))?;
        let mut formers = Vec::new();
        for path in others {
            let schema = schema_of(&path).filter(|schema| edition.changes(*schema).is_some());
            let schema = schema.ok_or_else(|| unknown_schema(&path, edition.schema))?;
            formers.push(Former { path, schema });
        }
        for former in &formers {
            for (name, expected) in wanted {
                let pin = former.map(name);
                let Some((_, found)) = open(&pin)? else { continue };
                match edition.first_heir(former, name) {
                    None => refuse_difference(&pin, expected, &found)?,
                    Some(Heir::Anew) => {}
                    Some(Heir::Entries { kind, key_size, value_size, .. }) => {
                        let (key_size, value_size) = match kind {
                            // Of a flow table, a value is an entry.
                            Kind::MappedArray => (4, key_size.saturating_add(value_size)),
                            _ => (key_size, value_size),
                        };
                        let (kind, flags) = (kind.number(), kind.flags());
                        let former = MapShape { kind, key_size, value_size, flags, ..*expected };
                        refuse_difference(&pin, &former, &found)?;
                    }
                }
            }
        }
        Ok(Self { formers, is_resized })
    }

    /// Sets pins of this schema aside whose maps have another number of entries, and pins what stays the same at its new
    /// place.
    pub(super) fn take_over(
        &mut self,
        instance: &Instance,
        edition: &Edition<'_>,
        wanted: &[(&str, MapShape)],
    ) -> Result<()> {
        if self.is_resized {
            let aside = (1..=u8::MAX)
                .map(|number| instance.pins().join(format!("v{}-former{number:03}", edition.schema)));
            let path = aside.into_iter().find(|path| !path.exists()).context("too many former pins")?;
            fs::rename(instance.schema_pins(), &path)
                .with_context(|| format!("rename {}", instance.schema_pins().display()))?;
            self.formers.insert(0, Former { path, schema: edition.schema });
            self.is_resized = false;
        }
        super::make_directories(instance)?;
        for (name, expected) in wanted {
            for former in &self.formers {
                if instance.map(name).exists() || edition.first_heir(former, name).is_some() {
                    continue;
                }
                let Some((fd, found)) = open(&former.map(name))? else { continue };
                if found.max_entries == expected.max_entries {
                    rawbpf::object_pin(fd.as_fd(), &instance.map(name))
                        .with_context(|| format!("pin {}", instance.map(name).display()))?;
                }
            }
        }
        Ok(())
    }

    /// Copies the entries of maps that are others than before; what is there already stays. Tells how many did not fit.
    pub(super) fn copy(
        &self,
        instance: &Instance,
        edition: &Edition<'_>,
        maps: &[(&str, Kind)],
    ) -> Result<usize> {
        let mut left_out = 0_usize;
        for former in &self.formers {
            for (name, kind) in maps {
                let rewrites = edition.changes(former.schema).and_then(|mut all| all.remove(name));
                let rewrites = rewrites.unwrap_or_default();
                let anew = rewrites.iter().any(|heir| matches!(heir, Heir::Anew));
                let is_flows = *name == map::FLOW;
                if !(*kind == Kind::Hash || is_flows) || anew {
                    continue;
                }
                let (Some(from), Some(to)) = (open(&former.map(name))?, open(&instance.map(name))?) else {
                    continue;
                };
                if from.1.id != to.1.id {
                    let copied = if is_flows {
                        copy_flows(former, instance, &rewrites)
                    } else {
                        copy(&from, &to, &rewrites)
                    };
                    left_out = left_out.saturating_add(copied.with_context(|| format!("copy {name}"))?);
                }
            }
        }
        Ok(left_out)
    }
}

impl Edition<'_> {
    fn first_heir(&self, former: &Former, name: &str) -> Option<Heir> {
        self.changes(former.schema)?.get(name)?.first().copied()
    }
}

/// Ends a take-over once the new programs stand at every hook: copies what the old ones have opened meanwhile, and removes
/// their pins. True when there was something to end.
///
/// # Errors
/// What the kernel answers.
pub fn finish(instance: &Instance, edition: &Edition<'_>) -> Result<bool> {
    let others = others(instance).with_context(|| format!("read {}", instance.pins().display()))?;
    if others.is_empty() {
        return Ok(false);
    }
    let known = |path: PathBuf| {
        let schema = schema_of(&path).filter(|schema| edition.changes(*schema).is_some())?;
        Some(Former { path, schema })
    };
    let formers: Vec<Former> = others.into_iter().filter_map(known).collect();
    let heritage = Heritage { formers, is_resized: false };
    // What only fills while packets pass; reconcile has seen to the others, and must have the last word there.
    let left_out =
        heritage.copy(instance, edition, &[(map::FLOW, Kind::MappedArray), (map::MAPPING, Kind::Hash)])?;
    if left_out > 0 {
        tracing::warn!("{left_out} entries of the former maps have no room in the new ones");
    }
    for former in &heritage.formers {
        fs::remove_dir_all(&former.path).with_context(|| format!("remove {}", former.path.display()))?;
    }
    Ok(!heritage.formers.is_empty())
}

/// A pinned map and its shape; none where nothing is pinned.
fn open(pin: &Path) -> Result<Option<(OwnedFd, MapShape)>> {
    let fd = match rawbpf::object_get(pin) {
        Ok(fd) => fd,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("open {}", pin.display())),
    };
    let shape = rawbpf::map_shape(fd.as_fd()).map_err(|error| not_a_map(pin, &error))?;
    Ok(Some((fd, shape)))
}

fn refuse_difference(pin: &Path, expected: &MapShape, found: &MapShape) -> Result<()> {
    match expected.difference(found) {
        Some(why) => Err(Error::UnknownLayout { path: pin.to_owned(), why }.into()),
        None => Ok(()),
    }
}

fn rewritten(entry: Entry, rewrites: &[Heir]) -> Option<Entry> {
    rewrites.iter().try_fold(entry, |(key, value), heir| match heir {
        Heir::Anew => None,
        Heir::Entries { rewrite, .. } => rewrite(&key, &value),
    })
}

/// The flow table whose maps are pinned in a directory; none where nothing is.
///
/// # Errors
/// What the kernel answers.
pub(super) fn flow_table(maps: &Path) -> Result<Option<FlowTable>> {
    let (slot, group) = (open(&maps.join(map::FLOW))?, open(&maps.join(map::FLOW_GROUP))?);
    let (Some(slot), Some(group)) = (slot, group) else { return Ok(None) };
    let carry = open(&maps.join(map::FLOW_CARRY))?.map(|(fd, _)| fd);
    FlowTable::over(slot, &group, carry).context("map the flow table").map(Some)
}

/// Copies the flows of a hash or of another flow table; tells how many did not fit.
fn copy_flows(former: &Former, instance: &Instance, rewrites: &[Heir]) -> Result<usize> {
    let maps = former.path.join("maps");
    let entries: Vec<Entry> = match (flow_table(&maps)?, open(&maps.join(map::FLOW))?) {
        (Some(table), _) => {
            let entries = table.entries_as_bytes()?.into_iter();
            entries.map(|(key, session)| (bytemuck::bytes_of(&key).to_vec(), session)).collect()
        }
        (None, Some(hash)) => rawbpf::entries_as_bytes(hash.0.as_fd(), &hash.1)?,
        (None, None) => Vec::new(),
    };
    let Some(mut to) = flow_table(&instance.maps())? else { return Ok(0) };
    to.bring_near()?;
    let mut left_out = 0_usize;
    for entry in entries {
        let Some((key, session)) = rewritten(entry, rewrites) else { continue };
        let key = bytemuck::try_pod_read_unaligned(&key);
        let key = key.map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        match to.insert_bytes(&key, &session) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::E2BIG) => left_out = left_out.saturating_add(1),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(left_out)
}

/// Copies a hash into another one; tells how many entries did not fit.
fn copy(from: &(OwnedFd, MapShape), to: &(OwnedFd, MapShape), rewrites: &[Heir]) -> Result<usize> {
    let mut left_out = 0_usize;
    for entry in rawbpf::entries_as_bytes(from.0.as_fd(), &from.1)? {
        let Some(entry) = rewritten(entry, rewrites) else { continue };
        match rawbpf::insert_bytes(to.0.as_fd(), &to.1, &entry) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::E2BIG) => left_out = left_out.saturating_add(1),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(left_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::unnecessary_wraps, reason = "the type of `Heir::Entries`")]
    fn doubled(key: &[u8], value: &[u8]) -> Option<Entry> {
        Some((key.to_vec(), [value, value].concat()))
    }

    const DOUBLED: Heir = Heir::Entries { kind: Kind::Hash, key_size: 4, value_size: 4, rewrite: doubled };

    #[test]
    fn ways_lead_over_every_schema_between_or_nowhere() {
        let steps = [
            Step { from: 2, changed: &[("FLOW", DOUBLED)] },
            Step { from: 3, changed: &[("FLOW", DOUBLED), ("LEASE", Heir::Anew)] },
        ];
        let edition = Edition { object: &[], schema: 4, steps: &steps };
        assert!(edition.changes(4).is_some_and(|changes| changes.is_empty()));
        let changes = edition.changes(2).unwrap();
        assert_eq!((changes["FLOW"].len(), changes["LEASE"].len()), (2, 1));
        assert!(
            ["FLOW_GROUP", "FLOW_CARRY"].iter().all(|beside| matches!(changes[beside][..], [Heir::Anew]))
        );
        assert!(edition.changes(1).is_none(), "no step begins there");
        assert!(edition.changes(5).is_none(), "a later version's");
    }

    #[test]
    fn schemas_are_read_off_directories() {
        let schema = |name: &str| schema_of(Path::new(name));
        assert_eq!((schema("/a/v7"), schema("/a/v1-former002")), (Some(7), Some(1)));
        assert_eq!((schema("/a/7"), schema("/a/vx"), schema("/a/v")), (None, None, None));
    }

    #[test]
    fn this_version_has_a_way_from_every_earlier_schema() {
        for schema in 1..=SCHEMA_VERSION {
            assert!(Edition::this().changes(schema).is_some(), "from schema {schema}");
        }
    }
}
