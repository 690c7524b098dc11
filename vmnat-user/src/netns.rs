//! The network namespace that a thread is in.

use std::{
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd},
        unix::net::UnixDatagram,
    },
};

/// `SO_NETNS_COOKIE` of `asm-generic/socket.h`.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The kernel's cookie of the calling thread's network namespace, by which BPF programs know it.
///
/// # Errors
/// What `socket(2)` or `getsockopt(2)` answers.
pub fn cookie() -> io::Result<u64> {
    // A socket of any family tells; this one needs no port, and a sandbox allows it.
    let socket = UnixDatagram::unbound()?;
    cookie_of(std::os::fd::AsFd::as_fd(&socket))
}

fn cookie_of(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut size = libc::socklen_t::try_from(size_of::<u64>()).map_err(io::Error::other)?;
    // SAFETY: value and size are live, and the size is the value's.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut size,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_one_cookie() {
        let cookie = cookie().unwrap();
        assert_ne!(cookie, 0);
        assert_eq!(super::cookie().unwrap(), cookie);
    }
}
