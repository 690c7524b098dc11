//! Entries of maps whose layout is another version's, as bytes.

use std::{io, os::fd::BorrowedFd};

use aya_obj::generated::bpf_cmd;

use super::{Cursor, MapShape, NOEXIST, call, descriptor, empty_attr};

/// Key and value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// Entries read at a time.
const BATCH: u32 = 4096;

/// Every entry of a hash of this shape. Entries that come or go meanwhile may be missed or seen twice.
///
/// # Errors
/// What `BPF_MAP_LOOKUP_BATCH` answers.
pub fn entries_as_bytes(map: BorrowedFd<'_>, shape: &MapShape) -> io::Result<Vec<Entry>> {
    let size = |bytes: u32| usize::try_from(bytes).map_err(io::Error::other);
    let (key_size, value_size) = (size(shape.key_size)?, size(shape.value_size)?);
    let mut all = Vec::new();
    let (mut cursor, mut batch) = (None::<Cursor>, BATCH.min(shape.max_entries.max(1)));
    loop {
        let room = size(batch)?;
        let mut keys = vec![0_u8; room.saturating_mul(key_size)];
        let mut values = vec![0_u8; room.saturating_mul(value_size)];
        let mut next = Cursor([0; 4]);
        let mut attr = empty_attr();
        attr.batch.in_batch = cursor.as_ref().map_or(0, |cursor| cursor.0.as_ptr() as u64);
        attr.batch.out_batch = next.0.as_mut_ptr() as u64;
        attr.batch.keys = keys.as_mut_ptr() as u64;
        attr.batch.values = values.as_mut_ptr() as u64;
        attr.batch.count = batch;
        attr.batch.map_fd = descriptor(map);
        // SAFETY: both buffers have room for that many of the map's keys and values; of a hash's cursor the kernel uses
        // 4 bytes.
        let more = match unsafe { call(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) } {
            Ok(_) => true,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => false,
            // One bucket holds more than the buffers.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && batch < u32::MAX / 2 => {
                batch = batch.saturating_mul(2);
                continue;
            }
            Err(error) => return Err(error),
        };
        // SAFETY: the kernel has written the count, an integer.
        let count = size(unsafe { attr.batch.count })?;
        let pairs = keys.chunks_exact(key_size).zip(values.chunks_exact(value_size)).take(count);
        all.extend(pairs.map(|(key, value)| (key.to_vec(), value.to_vec())));
        if !more {
            return Ok(all);
        }
        cursor = Some(next);
    }
}

/// Stores a value where there is none; false when there is.
///
/// # Errors
/// What `BPF_MAP_UPDATE_ELEM` answers, and `InvalidInput` where an entry is not of this shape.
pub fn insert_bytes(map: BorrowedFd<'_>, shape: &MapShape, (key, value): &Entry) -> io::Result<bool> {
    let fits = |bytes: &[u8], size: u32| u32::try_from(bytes.len()).is_ok_and(|length| length == size);
    if !fits(key, shape.key_size) || !fits(value, shape.value_size) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut attr = empty_attr();
    attr.__bindgen_anon_2.map_fd = descriptor(map);
    attr.__bindgen_anon_2.key = key.as_ptr() as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = value.as_ptr() as u64;
    attr.__bindgen_anon_2.flags = NOEXIST;
    // SAFETY: key and value are live, and as large as the map's.
    match unsafe { call(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr) } {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}
