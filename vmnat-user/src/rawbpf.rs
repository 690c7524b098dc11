//! Raw `bpf(2)` calls: typed map access, batches, test runs, and what aya does not offer.
//!
//! aya 0.14 has no batch operations and no test run with data for classifiers, and its query of tcx programs
//! needs more privilege than the kernel asks for. Every pointer that goes into a `bpf_attr` here is to a live
//! Rust object whose size the kernel was told, or follows from the map's own key and value sizes, which callers
//! compare before use (`tables`).

mod bytes;

use std::{
    ffi::CString,
    io,
    mem::{self, MaybeUninit},
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_link_info, bpf_map_info, bpf_prog_info};
use bytemuck::Pod;

pub use self::bytes::{Entry, entries_as_bytes, insert_bytes};

/// `BPF_ANY`: create or replace.
pub const ANY: u64 = 0;

/// `BPF_NOEXIST`: create only.
pub const NOEXIST: u64 = 1;

/// `BPF_EXIST`: replace only.
pub const EXIST: u64 = 2;

/// Where tcx runs a program.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TcxPoint {
    /// `BPF_TCX_INGRESS`.
    Ingress = 46,
    /// `BPF_TCX_EGRESS`.
    Egress = 47,
}

/// What the kernel says of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapShape {
    /// `enum bpf_map_type`.
    pub kind: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Most entries.
    pub max_entries: u32,
    /// `BPF_F_*` with which it was made.
    pub flags: u32,
    /// The kernel's number of it.
    pub id: u32,
}

impl MapShape {
    /// What differs in another map's layout, in words; how many entries it has is no part of that.
    #[must_use]
    pub fn difference(&self, found: &Self) -> Option<String> {
        let pairs = [
            ("type", self.kind, found.kind),
            ("key size", self.key_size, found.key_size),
            ("value size", self.value_size, found.value_size),
            ("set of flags", self.flags, found.flags),
        ];
        let differs = pairs.into_iter().find(|(_, expected, found)| expected != found);
        differs.map(|(what, expected, found)| format!("its {what} is {found} instead of {expected}"))
    }
}

/// What the kernel says of a tcx link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcxLink {
    /// The kernel's number of the link.
    pub id: u32,
    /// The kernel's number of its program.
    pub program: u32,
    /// Its interface; 0 once that has gone (the link is severed).
    pub ifindex: u32,
    /// `enum bpf_attach_type`.
    pub attach_type: u32,
}

/// A program at a tcx hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcxEntry {
    /// The kernel's number of the program.
    pub program: u32,
    /// The kernel's number of the link that holds it; 0 without one.
    pub link: u32,
}

/// Opens a pinned object.
///
/// # Errors
/// What `BPF_OBJ_GET` answers; `NotFound` where nothing is pinned.
pub fn object_get(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = empty_attr();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    // SAFETY: the path is a live, terminated string.
    let fd = unsafe { call(bpf_cmd::BPF_OBJ_GET, &mut attr) }?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins an object.
///
/// # Errors
/// What `BPF_OBJ_PIN` answers; `AlreadyExists` where something is pinned.
pub fn object_pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = empty_attr();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attr.__bindgen_anon_4.bpf_fd = descriptor(object);
    // SAFETY: the path is a live, terminated string.
    unsafe { call(bpf_cmd::BPF_OBJ_PIN, &mut attr) }.map(drop)
}

/// What a map looks like.
///
/// # Errors
/// What `BPF_OBJ_GET_INFO_BY_FD` answers.
pub fn map_shape(map: BorrowedFd<'_>) -> io::Result<MapShape> {
    // SAFETY: `bpf_map_info` is a plain C structure, for which zero is a value.
    let info: bpf_map_info = unsafe { object_info(map) }?;
    Ok(MapShape {
        kind: info.type_,
        key_size: info.key_size,
        value_size: info.value_size,
        max_entries: info.max_entries,
        flags: info.map_flags,
        id: info.id,
    })
}

/// Where a tcx link stands.
///
/// # Errors
/// What `BPF_OBJ_GET_INFO_BY_FD` answers.
pub fn tcx_link(link: BorrowedFd<'_>) -> io::Result<TcxLink> {
    // SAFETY: `bpf_link_info` is a plain C structure, for which zero is a value.
    let info: bpf_link_info = unsafe { object_info(link) }?;
    // SAFETY: every bit pattern is valid for the two integers of this arm of the union.
    let tcx = unsafe { info.__bindgen_anon_1.tcx };
    Ok(TcxLink { id: info.id, program: info.prog_id, ifindex: tcx.ifindex, attach_type: tcx.attach_type })
}

/// The kernel's number of the program that a link holds.
///
/// # Errors
/// What `BPF_OBJ_GET_INFO_BY_FD` answers.
pub fn link_program(link: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: `bpf_link_info` is a plain C structure, for which zero is a value.
    let info: bpf_link_info = unsafe { object_info(link) }?;
    Ok(info.prog_id)
}

/// The kernel's number of a program.
///
/// # Errors
/// What `BPF_OBJ_GET_INFO_BY_FD` answers.
pub fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: `bpf_prog_info` is a plain C structure, for which zero (no buffers) is a value.
    let info: bpf_prog_info = unsafe { object_info(program) }?;
    Ok(info.id)
}

/// The name of a program that the kernel knows by this number.
///
/// # Errors
/// What the kernel answers; looking up programs of others needs `CAP_SYS_ADMIN`.
pub fn program_name(id: u32) -> io::Result<String> {
    let mut attr = empty_attr();
    attr.__bindgen_anon_6.__bindgen_anon_1.prog_id = id;
    // SAFETY: the attribute holds no pointer.
    let fd = unsafe { call(bpf_cmd::BPF_PROG_GET_FD_BY_ID, &mut attr) }?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: `bpf_prog_info` is a plain C structure, for which zero (no buffers) is a value.
    let info: bpf_prog_info = unsafe { object_info(std::os::fd::AsFd::as_fd(&fd)) }?;
    let name = info.name.iter().take_while(|c| **c != 0).map(|c| char::from(c.to_ne_bytes()[0]));
    Ok(name.collect())
}

/// The value of a key.
///
/// # Errors
/// What `BPF_MAP_LOOKUP_ELEM` answers, except that a missing key is `None`.
pub fn lookup<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = V::zeroed();
    let mut attr = element_attr(map, key);
    attr.__bindgen_anon_2.__bindgen_anon_1.value = (&raw mut value) as u64;
    // SAFETY: key and value are live and as large as the map's.
    match unsafe { call(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr) } {
        Ok(_) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Copies an array's value, of `size` bytes.
///
/// # Errors
/// What `BPF_MAP_LOOKUP_ELEM` answers; `InvalidInput` where the value does not fit.
pub fn lookup_bytes(map: BorrowedFd<'_>, index: u32, size: usize, value: &mut [u8]) -> io::Result<()> {
    if value.len() < size {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut attr = element_attr(map, &index);
    attr.__bindgen_anon_2.__bindgen_anon_1.value = value.as_mut_ptr() as u64;
    // SAFETY: the key is an array's, and the value has room, as was looked.
    unsafe { call(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr) }?;
    Ok(())
}

/// The values of a key of a per-CPU map, one for each possible CPU.
///
/// # Errors
/// What `BPF_MAP_LOOKUP_ELEM` answers.
pub fn lookup_per_cpu(map: BorrowedFd<'_>, key: u32, cpus: usize) -> io::Result<Vec<u64>> {
    let mut values = vec![0_u64; cpus];
    let mut attr = element_attr(map, &key);
    attr.__bindgen_anon_2.__bindgen_anon_1.value = values.as_mut_ptr() as u64;
    // SAFETY: the kernel writes one eight-byte value for each possible CPU, and so many were allocated.
    unsafe { call(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr) }?;
    Ok(values)
}

/// Stores a value.
///
/// # Errors
/// What `BPF_MAP_UPDATE_ELEM` answers.
pub fn update<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &V, flags: u64) -> io::Result<()> {
    let mut attr = element_attr(map, key);
    attr.__bindgen_anon_2.__bindgen_anon_1.value = (&raw const *value) as u64;
    attr.__bindgen_anon_2.flags = flags;
    // SAFETY: key and value are live and as large as the map's.
    unsafe { call(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr) }.map(drop)
}

/// Removes a key; false when there was none.
///
/// # Errors
/// What `BPF_MAP_DELETE_ELEM` answers.
pub fn delete<K: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    let mut attr = element_attr(map, key);
    // SAFETY: the key is live and as large as the map's.
    match unsafe { call(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr) } {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Where the next batch begins. A hash map wants 4 bytes of it, other maps a key.
#[derive(Clone, Copy, Debug)]
pub struct Cursor([u64; 4]);

/// A batch of entries, and where the next one begins; `None` after the last.
pub type Batch<K, V> = (Vec<(K, V)>, Option<Cursor>);

/// Reads up to `size` entries from `cursor` on (`None`: from the start).
///
/// # Errors
/// What `BPF_MAP_LOOKUP_BATCH` answers; `ENOSPC` when one bucket of a hash holds more than `size`.
pub fn lookup_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    cursor: Option<Cursor>,
    size: u32,
) -> io::Result<Batch<K, V>> {
    const { assert!(size_of::<K>() <= size_of::<Cursor>()) };
    let mut next = Cursor([0; 4]);
    let room = usize::try_from(size).map_err(io::Error::other)?;
    let mut keys = vec![K::zeroed(); room];
    let mut values = vec![V::zeroed(); room];
    let mut attr = empty_attr();
    attr.batch.in_batch = cursor.as_ref().map_or(0, |cursor| cursor.0.as_ptr() as u64);
    attr.batch.out_batch = next.0.as_mut_ptr() as u64;
    attr.batch.keys = keys.as_mut_ptr() as u64;
    attr.batch.values = values.as_mut_ptr() as u64;
    attr.batch.count = size;
    attr.batch.map_fd = descriptor(map);
    // SAFETY: both arrays have room for `size` elements of the map's key and value sizes, and the cursors are at
    // least as large as a key.
    let result = unsafe { call(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) };
    let more = match result {
        Ok(_) => true,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => false,
        Err(error) => return Err(error),
    };
    // SAFETY: the kernel has written the count, an integer.
    let count = usize::try_from(unsafe { attr.batch.count }).map_err(io::Error::other)?;
    Ok((keys.into_iter().zip(values).take(count).collect(), more.then_some(next)))
}

/// Stores many values; stops at the first that the kernel refuses.
///
/// # Errors
/// What `BPF_MAP_UPDATE_BATCH` answers, and `InvalidInput` when there are not as many values as keys.
pub fn update_batch<K: Pod, V: Pod>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> io::Result<()> {
    if keys.len() != values.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    if keys.is_empty() {
        return Ok(());
    }
    let mut attr = empty_attr();
    attr.batch.keys = keys.as_ptr() as u64;
    attr.batch.values = values.as_ptr() as u64;
    attr.batch.count = u32::try_from(keys.len()).map_err(io::Error::other)?;
    attr.batch.map_fd = descriptor(map);
    // SAFETY: both arrays hold `count` elements of the map's key and value sizes.
    unsafe { call(bpf_cmd::BPF_MAP_UPDATE_BATCH, &mut attr) }.map(drop)
}

/// Runs a program once over a frame, which it may change; returns what the program returned.
///
/// # Errors
/// What `BPF_PROG_TEST_RUN` answers.
pub fn test_run(program: BorrowedFd<'_>, frame: &mut [u8]) -> io::Result<u32> {
    let input = frame.to_vec();
    let size = u32::try_from(frame.len()).map_err(io::Error::other)?;
    let mut attr = empty_attr();
    attr.test.prog_fd = descriptor(program);
    attr.test.data_in = input.as_ptr() as u64;
    attr.test.data_size_in = size;
    attr.test.data_out = frame.as_mut_ptr() as u64;
    attr.test.data_size_out = size;
    attr.test.repeat = 1;
    // SAFETY: both buffers are live and as large as stated.
    unsafe { call(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr) }?;
    // SAFETY: the kernel has written the return value, an integer.
    Ok(unsafe { attr.test.retval })
}

/// The programs at a tcx hook, in the order in which they run.
///
/// # Errors
/// What `BPF_PROG_QUERY` answers; `InvalidInput` on kernels without tcx.
pub fn query_tcx(ifindex: u32, point: TcxPoint) -> io::Result<Vec<TcxEntry>> {
    // BPF_MPROG_MAX of kernel/bpf/mprog.c: a hook holds no more.
    const MOST: u32 = 64;
    let mut programs = [0_u32; MOST as usize];
    let mut links = [0_u32; MOST as usize];
    let mut attr = empty_attr();
    attr.query.__bindgen_anon_1.target_ifindex = ifindex;
    attr.query.attach_type = point as u32;
    attr.query.prog_ids = programs.as_mut_ptr() as u64;
    attr.query.link_ids = links.as_mut_ptr() as u64;
    attr.query.__bindgen_anon_2.count = MOST;
    // SAFETY: both arrays are live and have room for the stated number.
    match unsafe { call(bpf_cmd::BPF_PROG_QUERY, &mut attr) } {
        // No program has ever stood there.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Vec::new()),
        other => other?,
    };
    // SAFETY: the kernel has written the count, an integer.
    let count = usize::try_from(unsafe { attr.query.__bindgen_anon_2.count }).map_err(io::Error::other)?;
    let entries = programs.iter().zip(links).take(count);
    Ok(entries.map(|(program, link)| TcxEntry { program: *program, link }).collect())
}

/// # Safety
/// `T` must be the information structure of the object's kind, for which zero bytes are a value.
unsafe fn object_info<T>(object: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = MaybeUninit::<T>::zeroed();
    let mut attr = empty_attr();
    attr.info.bpf_fd = descriptor(object);
    attr.info.info_len = u32::try_from(size_of::<T>()).map_err(io::Error::other)?;
    attr.info.info = info.as_mut_ptr() as u64;
    // SAFETY: the buffer is live and as large as stated.
    unsafe { call(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    // SAFETY: zero bytes are a value by this function's contract, and the kernel overwrites whole fields.
    Ok(unsafe { info.assume_init() })
}

fn element_attr<K: Pod>(map: BorrowedFd<'_>, key: &K) -> bpf_attr {
    let mut attr = empty_attr();
    attr.__bindgen_anon_2.map_fd = descriptor(map);
    attr.__bindgen_anon_2.key = (&raw const *key) as u64;
    attr
}

fn empty_attr() -> bpf_attr {
    // SAFETY: a union of plain C structures, for which zero is a value; the kernel wants unused bytes to be zero.
    unsafe { mem::zeroed() }
}

fn descriptor(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// # Safety
/// Every pointer that `command` reads from `attr` must be to live memory of the size that the command implies.
unsafe fn call(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: the attribute is live and as large as stated; what it points to is the caller's contract.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_no_pin_is_an_error() {
        assert!(object_get(Path::new("/nonexistent/pin")).is_err());
    }

    #[test]
    fn each_part_of_a_layout_counts() {
        let shape = MapShape { kind: 1, key_size: 16, value_size: 64, max_entries: 8, flags: 0, id: 0 };
        assert_eq!(shape.difference(&MapShape { id: 7, max_entries: 9, ..shape }), None);
        for (other, why) in [
            (MapShape { kind: 9, ..shape }, "its type is 9 instead of 1"),
            (MapShape { key_size: 12, ..shape }, "its key size is 12 instead of 16"),
            (MapShape { value_size: 16, ..shape }, "its value size is 16 instead of 64"),
            (MapShape { flags: 1, ..shape }, "its set of flags is 1 instead of 0"),
        ] {
            assert_eq!(shape.difference(&other).as_deref(), Some(why));
        }
    }
}
