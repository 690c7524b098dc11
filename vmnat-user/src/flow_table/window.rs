//! A part of a map's values, as this process sees them.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr::{self, NonNull},
    sync::atomic::AtomicU64,
};

/// Some bytes of the values of an array that was made with `BPF_F_MMAPABLE`, shared with the programs that run meanwhile.
#[derive(Debug)]
pub(super) struct Window {
    pages: NonNull<u8>,
    mapped: usize,
    /// Where the bytes begin that were asked for.
    start: usize,
    length: usize,
}

// SAFETY: a window owns its mapping, which is no thread's; all access to the bytes is volatile or atomic.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    /// `length` bytes from `offset` on.
    ///
    /// # Errors
    /// What `mmap` answers; `InvalidInput` beyond the map's end.
    pub(super) fn open(map: BorrowedFd<'_>, offset: usize, length: usize) -> io::Result<Self> {
        let page = page_size();
        let start = offset.checked_rem(page).unwrap_or(0);
        let first = offset.saturating_sub(start);
        let mapped = start.saturating_add(length).max(1);
        let at = libc::off_t::try_from(first).map_err(io::Error::other)?;
        // SAFETY: a new mapping at an address that the kernel chooses; it outlives the descriptor.
        let pages = unsafe {
            libc::mmap(
                ptr::null_mut(),
                mapped,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                at,
            )
        };
        if pages == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let pages = NonNull::new(pages.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { pages, mapped, start, length })
    }

    /// An aligned word at a place of the window.
    ///
    /// # Errors
    /// `InvalidInput` where it does not lie in the window.
    #[expect(clippy::cast_ptr_alignment, reason = "it is looked at before")]
    pub(super) fn word(&self, offset: usize) -> io::Result<&AtomicU64> {
        let pointer = self.pointer(offset, size_of::<u64>())?;
        if pointer.align_offset(align_of::<AtomicU64>()) != 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: it lies in the mapping, which lives as long as the window, and is aligned; the programs change it by
        // atomic instructions alone.
        Ok(unsafe { &*pointer.cast_const().cast::<AtomicU64>() })
    }

    /// Copies the bytes at a place of the window.
    ///
    /// # Errors
    /// As [`Window::word`].
    pub(super) fn read(&self, offset: usize, bytes: &mut [u8]) -> io::Result<()> {
        let pointer = self.pointer(offset, bytes.len())?;
        // SAFETY: as many bytes lie in the mapping, as was looked. What a program writes meanwhile may be read in part, as by
        // the kernel's own look-ups; no pointer and no length is among it.
        unsafe { ptr::copy_nonoverlapping(pointer, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    /// Writes bytes at a place of the window.
    ///
    /// # Errors
    /// As [`Window::word`].
    pub(super) fn write(&self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        let pointer = self.pointer(offset, bytes.len())?;
        // SAFETY: as in `read`.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), pointer, bytes.len()) };
        Ok(())
    }

    fn pointer(&self, offset: usize, length: usize) -> io::Result<*mut u8> {
        let end = offset.checked_add(length).filter(|end| *end <= self.length);
        if end.is_none() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: start, offset and length lie within the mapping.
        Ok(unsafe { self.pages.as_ptr().add(self.start).add(offset) })
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the mapping is this window's own, and nothing borrows from it any more.
        unsafe { libc::munmap(self.pages.as_ptr().cast(), self.mapped) };
    }
}

fn page_size() -> usize {
    // SAFETY: it takes a number and returns one.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}
