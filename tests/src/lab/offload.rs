//! Frames as virtio hands them over: with checksums that are still to be completed, and larger than any wire.
//!
//! A packet socket takes them with a `virtio_net_hdr` before each (`PACKET_VNET_HDR`, packet(7)), and the kernel makes of them
//! what it makes of a guest's.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result, ensure};

use super::{frame::Packet, namespace::Namespace};

/// `PACKET_VNET_HDR` of `linux/if_packet.h`.
const VNET_HEADER: libc::c_int = 15;
/// Of `linux/virtio_net.h`.
const NEEDS_CHECKSUM: u8 = 1;
const GSO_TCP: u8 = 1;
const GSO_UDP: u8 = 5;

/// A packet socket that sends as a virtio device does. It receives nothing.
#[derive(Debug)]
pub struct OffloadTap {
    socket: OwnedFd,
}

impl OffloadTap {
    /// Opens one on `interface` in `namespace`.
    ///
    /// # Errors
    ///
    /// When the interface does not exist.
    pub fn open(namespace: &Namespace, interface: &str) -> Result<Self> {
        let index = namespace.interface(interface)?;
        namespace
            .run(|| Self::bind(index))
            .with_context(|| format!("offloading packet socket on {interface} in {}", namespace.name()))
    }

    fn bind(index: u32) -> std::io::Result<Self> {
        let failed = |result: libc::c_int| {
            if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(result) }
        };
        // SAFETY: socket has no memory arguments.
        let descriptor =
            failed(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
        // SAFETY: the descriptor has just been made and nobody else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
        let length = |size: usize| libc::socklen_t::try_from(size).unwrap_or(0);
        for (level, name, value) in
            [(libc::SOL_PACKET, VNET_HEADER, 1_i32), (libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 8 << 20)]
        {
            // SAFETY: the pointer and length describe `value`; the kernel copies it.
            failed(unsafe {
                libc::setsockopt(descriptor, level, name, (&raw const value).cast(), length(size_of::<i32>()))
            })?;
        }
        // SAFETY: all-zero is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = 17;
        address.sll_ifindex = index.cast_signed();
        // SAFETY: the pointer and length describe `address`, which lives through the call.
        failed(unsafe {
            libc::bind(descriptor, (&raw const address).cast(), length(size_of_val(&address)))
        })?;
        Ok(Self { socket })
    }

    /// Sends a TCP or UDP packet whose checksum is still to be completed; cut into segments of `gso_size` bytes of
    /// payload where that is not zero.
    ///
    /// # Errors
    ///
    /// When it is neither TCP nor UDP, or the kernel refuses.
    pub fn send(&self, packet: &Packet, gso_size: u16) -> Result<()> {
        let at = packet.checksum_at.context("a packet without a transport checksum")?;
        let (kind, header) = match (packet.protocol, gso_size) {
            (6 | 17, 0) => (0, 0),
            (6, _) => (GSO_TCP, 54_u16),
            (17, _) => (GSO_UDP, 42),
            _ => anyhow::bail!("protocol {} has no offloads", packet.protocol),
        };
        let mut frame = packet.bytes();
        let field = 34 + at;
        frame.splice(field..field + 2, pseudo_sum(&frame).to_be_bytes());
        let mut buffer = vec![NEEDS_CHECKSUM, kind];
        // In the byte order of the machine, as the legacy header is.
        for number in [header, gso_size, 34, u16::try_from(at)?] {
            buffer.extend(number.to_ne_bytes());
        }
        buffer.extend(frame);
        // SAFETY: the pointer and length describe `buffer`.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), buffer.as_ptr().cast(), buffer.len(), 0) };
        ensure!(sent >= 0, "sending an offloaded frame: {}", std::io::Error::last_os_error());
        Ok(())
    }
}

/// What a checksum field holds while it is still to be completed: the sum, not complemented, of the pseudo-header.
fn pseudo_sum(frame: &[u8]) -> u16 {
    let length = u16::from_be_bytes([frame[16], frame[17]]) - 20;
    !super::frame::checksum(&[&frame[26..34], &[0, frame[23]], &length.to_be_bytes()])
}
