//! The socket at a bridge: sees frames before INPUT does, and those that the host sends; sends past OUTPUT. Needs `CAP_NET_RAW`.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use tokio::io::{Interest, unix::AsyncFd};

/// The largest frame that is looked at.
const LARGEST: usize = 2048;

/// A frame that was seen.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its bytes.
    pub frame: Vec<u8>,
    /// The host itself has sent it.
    pub is_hosts: bool,
}

/// The socket.
#[derive(Debug)]
pub struct Socket(AsyncFd<OwnedFd>);

impl Socket {
    /// Opens it at an interface; what it sends itself it does not see.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn open(index: u32) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: the call takes numbers only. Protocol 0: nothing arrives before the filter stands.
        let socket = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor has just been made, and nobody else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        attach(&socket)?;
        bind(&socket, index)?;
        // SAFETY: the descriptor is this socket's own, which `OwnedFd` keeps open and never replaces.
        let registered = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
        Ok(Self(registered.map_err(io::Error::from)?))
    }

    /// Waits for a frame. Dropping the future loses nothing.
    ///
    /// # Errors
    /// What the kernel answers, for example when the interface is down.
    pub async fn receive(&self) -> io::Result<Seen> {
        loop {
            let mut guard = self.0.readable().await?;
            if let Ok(seen) = guard.try_io(|socket| receive(socket.get_ref())) {
                return seen;
            }
        }
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: pointer and length are the slice's.
        let sent = unsafe { libc::send(self.0.get_ref().as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

fn receive(socket: &OwnedFd) -> io::Result<Seen> {
    let mut frame = vec![0; LARGEST];
    // SAFETY: `sockaddr_ll` is plain numbers, of which zero is a value.
    let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or(0);
    // SAFETY: pointers and lengths are those of the two values.
    let received = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            frame.as_mut_ptr().cast(),
            frame.len(),
            0,
            (&raw mut from).cast(),
            &raw mut length,
        )
    };
    let Ok(received) = usize::try_from(received) else { return Err(io::Error::last_os_error()) };
    frame.truncate(received);
    Ok(Seen { frame, is_hosts: from.sll_pkttype == libc::PACKET_OUTGOING })
}

fn bind(socket: &OwnedFd, index: u32) -> io::Result<()> {
    // SAFETY: as in `receive`.
    let mut at: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    at.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or_default();
    // Every protocol: what the host sends is shown to no other sockets.
    at.sll_protocol = u16::try_from(libc::ETH_P_ALL).unwrap_or_default().to_be();
    at.sll_ifindex = index.cast_signed();
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or(0);
    // SAFETY: pointer and length are the value's.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const at).cast(), length) };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Lets in untagged IPv4 with UDP to port 67 or 68 that is no later fragment, and ARP; so all else costs the agent nothing.
fn attach(socket: &OwnedFd) -> io::Result<()> {
    // Offset of ancillary data, from linux/filter.h: SKF_AD_OFF plus VLAN_TAG_PRESENT.
    const VLAN_PRESENT: u32 = (-0x1000_i32 + 48).cast_unsigned();
    let code = |code: u16, jt: u8, jf: u8, k: u32| libc::sock_filter { code, jt, jf, k };
    let (half, byte, jump, set) = (0x28, 0x30, 0x15, 0x45);
    let mut filter = [
        code(byte, 0, 0, VLAN_PRESENT),
        code(jump, 0, 11, 0),
        code(half, 0, 0, 12),
        code(jump, 8, 0, 0x0806),
        code(jump, 0, 8, 0x0800),
        code(byte, 0, 0, 23),
        code(jump, 0, 6, 17),
        code(half, 0, 0, 20),
        code(set, 4, 0, 0x1fff),
        // The length of the IPv4 header into X, and the destination port behind it.
        code(0xb1, 0, 0, 14),
        code(0x48, 0, 0, 16),
        code(jump, 0, 2, 67),
        code(0x06, 0, 0, 0xffff),
        code(0x06, 0, 0, 0),
        code(jump, 0, 1, 68),
        code(0x06, 0, 0, 0xffff),
        code(0x06, 0, 0, 0),
    ];
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).unwrap_or_default(),
        filter: filter.as_mut_ptr(),
    };
    let length = libc::socklen_t::try_from(size_of::<libc::sock_fprog>()).unwrap_or(0);
    // SAFETY: the program and its instructions outlive the call, which copies them.
    let attached = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            length,
        )
    };
    if attached < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
