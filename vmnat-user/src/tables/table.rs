//! Typed access to one pinned map.
//!
//! A table is opened only after the kernel's key and value sizes were found equal to the Rust types'; that makes
//! the raw calls of `rawbpf` sound. A map of another layout is refused, never written.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use anyhow::{Context as _, Result};
use bytemuck::Pod;

use crate::{
    dataplane::map,
    error::Error,
    paths::Instance,
    rawbpf::{self, Cursor, MapShape},
};

/// What is pinned under a map's name and cannot be asked for its shape: a program, or a link.
pub(crate) fn not_a_map(pin: &Path, error: &io::Error) -> anyhow::Error {
    let why = format!("it is no map: {error}");
    Error::UnknownLayout { path: pin.to_owned(), why }.into()
}

/// What storing into a map has come to; none where the map is full.
///
/// # Errors
/// Any other answer of the kernel.
pub fn unless_full<T>(stored: io::Result<T>) -> io::Result<Option<T>> {
    match stored {
        Ok(stored) => Ok(Some(stored)),
        Err(error) if error.raw_os_error() == Some(libc::E2BIG) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Entries read at a time.
const BATCH: u32 = 4096;

/// A pinned map with keys `K` and values `V`.
#[derive(Debug)]
pub struct Table<K, V> {
    pub(super) fd: OwnedFd,
    max_entries: u32,
    types: PhantomData<(K, V)>,
}

impl<K: Pod, V: Pod> Table<K, V> {
    /// Opens a pinned map by its name.
    ///
    /// # Errors
    /// [`Error::MissingMap`] when nothing is pinned there, and [`Error::UnknownLayout`] when it is of another type, has other flags, or
    /// key or value have another size than the types.
    pub fn open(instance: &Instance, name: &str) -> Result<Self> {
        let pin = instance.map(name);
        let fd = rawbpf::object_get(&pin).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                let (path, option) = (pin.clone(), instance.option());
                Error::MissingMap { path, option }.into()
            }
            _ => anyhow::Error::new(error).context(format!("open the map {}", pin.display())),
        })?;
        let found = rawbpf::map_shape(fd.as_fd()).map_err(|error| not_a_map(&pin, &error))?;
        let kind = map::ALL.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind);
        let kind = kind.with_context(|| format!("there is no map {name}"))?;
        let expected = MapShape {
            kind: kind.number(),
            key_size: u32::try_from(size_of::<K>())?,
            value_size: u32::try_from(size_of::<V>())?,
            flags: kind.flags(),
            ..found
        };
        if let Some(why) = expected.difference(&found) {
            return Err(Error::UnknownLayout { path: pin, why }.into());
        }
        Ok(Self { fd, max_entries: found.max_entries, types: PhantomData })
    }

    /// The kernel's map.
    #[must_use]
    pub const fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// The kernel's map alone.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// The most entries that it holds.
    #[must_use]
    pub const fn capacity(&self) -> u32 {
        self.max_entries
    }

    /// The value of a key.
    ///
    /// # Errors
    /// What the kernel answers; a missing key is `None`.
    pub fn get(&self, key: &K) -> io::Result<Option<V>> {
        rawbpf::lookup(self.fd.as_fd(), key)
    }

    /// Stores a value, new or not.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn set(&self, key: &K, value: &V) -> io::Result<()> {
        rawbpf::update(self.fd.as_fd(), key, value, rawbpf::ANY)
    }

    /// Stores a value where there is none; false when there is.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn insert(&self, key: &K, value: &V) -> io::Result<bool> {
        match rawbpf::update(self.fd.as_fd(), key, value, rawbpf::NOEXIST) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Stores many values in one call.
    ///
    /// # Errors
    /// What the kernel answers; some of them may be stored then.
    pub fn set_all(&self, keys: &[K], values: &[V]) -> io::Result<()> {
        rawbpf::update_batch(self.fd.as_fd(), keys, values)
    }

    /// Removes a key; false when there was none.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn remove(&self, key: &K) -> io::Result<bool> {
        rawbpf::delete(self.fd.as_fd(), key)
    }

    /// Every entry, a batch at a time. Entries that come or go meanwhile may be missed or seen twice.
    #[must_use]
    pub fn batches(&self) -> Batches<'_, K, V> {
        Batches { table: self, cursor: None, size: BATCH.min(self.max_entries.max(1)), done: false }
    }

    /// Every entry.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn entries(&self) -> io::Result<Vec<(K, V)>> {
        let mut all = Vec::new();
        for batch in self.batches() {
            all.extend(batch?);
        }
        Ok(all)
    }
}

/// The entries of a [`Table`], a batch at a time.
#[derive(Debug)]
pub struct Batches<'a, K, V> {
    table: &'a Table<K, V>,
    cursor: Option<Cursor>,
    size: u32,
    done: bool,
}

impl<K: Pod, V: Pod> Iterator for Batches<'_, K, V> {
    type Item = io::Result<Vec<(K, V)>>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.done {
            match rawbpf::lookup_batch(self.table.fd.as_fd(), self.cursor, self.size) {
                Ok((entries, next)) => {
                    self.done = next.is_none();
                    self.cursor = next;
                    if !entries.is_empty() {
                        return Some(Ok(entries));
                    }
                }
                // One bucket holds more than the buffer.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && self.size < u32::MAX / 2 => {
                    self.size = self.size.saturating_mul(2);
                }
                Err(error) => {
                    self.done = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}
