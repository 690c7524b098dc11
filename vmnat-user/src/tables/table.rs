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
    error::Error,
    rawbpf::{self, Cursor},
};

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
    /// Opens a pinned map.
    ///
    /// # Errors
    /// When nothing is pinned there, or key or value have another size than the types.
    pub fn open(pin: &Path) -> Result<Self> {
        let fd = rawbpf::object_get(pin).with_context(|| format!("open the map {}", pin.display()))?;
        let shape = rawbpf::map_shape(fd.as_fd()).with_context(|| format!("ask for {}", pin.display()))?;
        let sizes = (usize::try_from(shape.key_size)?, usize::try_from(shape.value_size)?);
        if sizes != (size_of::<K>(), size_of::<V>()) {
            let why = format!("{sizes:?} bytes instead of {:?}", (size_of::<K>(), size_of::<V>()));
            return Err(Error::UnknownLayout { path: pin.to_owned(), why }.into());
        }
        Ok(Self { fd, max_entries: shape.max_entries, types: PhantomData })
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
