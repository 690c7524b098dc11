//! Raw frames: what no ordinary socket sends, and what no ordinary socket shows.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{namespace::Namespace, patience::patiently};

/// A packet socket on one interface.
#[derive(Debug)]
pub struct Tap {
    socket: OwnedFd,
}

/// `ETH_P_ALL` in network order.
const EVERY_PROTOCOL: u16 = 3_u16.to_be();
/// `AF_PACKET` as the address structure wants it.
const PACKET_FAMILY: u16 = 17;

impl Tap {
    /// Opens a packet socket that sees every frame of `interface` in `namespace`.
    ///
    /// # Errors
    ///
    /// When the interface does not exist.
    pub fn open(namespace: &Namespace, interface: &str) -> Result<Self> {
        Self::open_filtered(namespace, interface, &[])
    }

    /// Opens a packet socket that sees what the classic BPF `filter` accepts; an empty one accepts everything.
    ///
    /// # Errors
    ///
    /// When the interface does not exist or the filter is invalid.
    pub fn open_filtered(
        namespace: &Namespace,
        interface: &str,
        filter: &[libc::sock_filter],
    ) -> Result<Self> {
        let index = namespace.interface(interface)?;
        namespace
            .run(|| Self::bind(index, filter))
            .with_context(|| format!("packet socket on {interface} in {}", namespace.name()))
    }

    fn bind(index: u32, filter: &[libc::sock_filter]) -> io::Result<Self> {
        // Protocol 0 receives nothing, so no frame slips in between socket and filter.
        // SAFETY: socket has no memory arguments.
        let descriptor = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor has just been made and nobody else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
        if !filter.is_empty() {
            let program = libc::sock_fprog {
                len: u16::try_from(filter.len()).unwrap_or(u16::MAX),
                filter: filter.as_ptr().cast_mut(),
            };
            set_option(&socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
        }
        set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &(8_i32 << 20))?;
        // SAFETY: all-zero is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = PACKET_FAMILY;
        address.sll_protocol = EVERY_PROTOCOL;
        address.sll_ifindex = index.cast_signed();
        // SAFETY: the pointer and length describe `address`, which lives through the call.
        let bound =
            unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of_u32(&address)) };
        if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(Self { socket }) }
    }

    /// Sends a whole frame.
    ///
    /// # Errors
    ///
    /// When the interface is down or the frame too long.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        // SAFETY: the pointer and length describe `frame`.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()).context("sending a raw frame") } else { Ok(()) }
    }

    /// The next frame, or none when there is none within `patience`.
    #[must_use]
    pub fn receive(&self, patience: Duration) -> Option<Vec<u8>> {
        if !wait_readable(&self.socket, patience) {
            return None;
        }
        let mut frame = vec![0; 1 << 16];
        // SAFETY: the pointer and length describe `frame`.
        let length = unsafe {
            libc::recv(self.socket.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), libc::MSG_DONTWAIT)
        };
        frame.truncate(usize::try_from(length).ok()?);
        Some(frame)
    }

    /// Every frame that waits in the socket.
    #[must_use]
    pub fn drain(&self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.receive(Duration::ZERO)).collect()
    }

    /// Frames that found no room in the socket since this was last asked.
    ///
    /// # Errors
    ///
    /// Never on a packet socket.
    pub fn overflow(&self) -> Result<u32> {
        // SAFETY: all-zero is a valid tpacket_stats.
        let mut statistics: libc::tpacket_stats = unsafe { std::mem::zeroed() };
        let mut length = size_of_u32(&statistics);
        // SAFETY: the pointers name `statistics` and its length.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut statistics).cast(),
                &raw mut length,
            )
        };
        if result < 0 { Err(io::Error::last_os_error().into()) } else { Ok(statistics.tp_drops) }
    }

    /// Waits for a frame that satisfies `wanted`.
    ///
    /// # Errors
    ///
    /// When none comes within `patience`.
    pub fn expect(
        &self,
        what: &str,
        patience: Duration,
        mut wanted: impl FnMut(&Ipv4) -> bool,
    ) -> Result<Ipv4> {
        let patience = patiently(patience);
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(frame) = self.receive(left) else { bail!("no {what} within {patience:?}") };
            if let Some(packet) = Ipv4::parse(&frame)
                && wanted(&packet)
            {
                return Ok(packet);
            }
        }
    }

    /// The IPv4 packets that arrive in the next `patience` and satisfy `wanted`.
    #[must_use]
    pub fn collect(&self, patience: Duration, mut wanted: impl FnMut(&Ipv4) -> bool) -> Vec<Ipv4> {
        let deadline = Instant::now() + patiently(patience);
        let frames = std::iter::from_fn(|| self.receive(deadline.saturating_duration_since(Instant::now())));
        frames.filter_map(|frame| Ipv4::parse(&frame)).filter(|packet| wanted(packet)).collect()
    }
}

/// Waits until a socket has something to read; false when nothing comes within `patience`.
pub(super) fn wait_readable(socket: &OwnedFd, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: the pointer names one pollfd.
        let ready =
            unsafe { libc::poll(&raw mut poll, 1, i32::try_from(left.as_millis()).unwrap_or(i32::MAX)) };
        // Interrupted: poll is never resumed by the kernel (signal(7)).
        if ready >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return ready > 0;
        }
    }
}

fn size_of_u32<T>(_: &T) -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0)
}

fn set_option<T>(socket: &OwnedFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    // SAFETY: the pointer and length describe `value`; the kernel copies it.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const *value).cast(), size_of_u32(value))
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A MAC address.
pub type Mac = [u8; 6];
/// An IPv4 address in network order.
pub type Address = [u8; 4];

/// What a raw test packet consists of. Each part may be changed before it is written out.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Ethernet destination.
    pub to_mac: Mac,
    /// Ethernet source.
    pub from_mac: Mac,
    /// VLAN tag, if any.
    pub vlan: Option<u16>,
    /// IPv4 source.
    pub source: Address,
    /// IPv4 destination.
    pub destination: Address,
    /// Time to live.
    pub ttl: u8,
    /// Fragment flags and offset as the header holds them; 0x4000 is "do not fragment".
    pub fragment: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// What follows the IPv4 header, its checksum field zero; see [`Packet::checksum_at`].
    pub body: Vec<u8>,
    /// Where in the body the transport's checksum goes.
    pub checksum_at: Option<usize>,
}

/// Ends of a raw packet: MAC and address of the sender and the receiver.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// Ethernet source.
    pub from_mac: Mac,
    /// Ethernet destination.
    pub to_mac: Mac,
    /// IPv4 source.
    pub source: Address,
    /// IPv4 destination.
    pub destination: Address,
}

impl Packet {
    /// A UDP datagram.
    #[must_use]
    pub fn udp(ends: Ends, source_port: u16, destination_port: u16, payload: &[u8]) -> Self {
        let length = u16::try_from(payload.len() + 8).unwrap_or(u16::MAX);
        let head = [source_port.to_be_bytes(), destination_port.to_be_bytes(), length.to_be_bytes(), [0; 2]];
        Self::new(ends, 17, [head.as_flattened(), payload].concat(), Some(6))
    }

    /// A TCP segment without options.
    #[must_use]
    pub fn tcp(ends: Ends, source_port: u16, destination_port: u16, sequence: u32, flags: u8) -> Self {
        let mut body = [source_port.to_be_bytes(), destination_port.to_be_bytes()].as_flattened().to_vec();
        body.extend(sequence.to_be_bytes());
        body.extend([0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        Self::new(ends, 6, body, Some(16))
    }

    /// An ICMP echo request.
    #[must_use]
    pub fn echo(ends: Ends, identifier: u16, sequence: u16, payload: &[u8]) -> Self {
        let head = [[8, 0], [0, 0], identifier.to_be_bytes(), sequence.to_be_bytes()];
        Self::new(ends, 1, [head.as_flattened(), payload].concat(), Some(2))
    }

    /// A packet of any protocol.
    #[must_use]
    pub fn new(ends: Ends, protocol: u8, body: Vec<u8>, checksum_at: Option<usize>) -> Self {
        let Ends { from_mac, to_mac, source, destination } = ends;
        Self {
            to_mac,
            from_mac,
            vlan: None,
            source,
            destination,
            ttl: 64,
            fragment: 0x4000,
            protocol,
            body,
            checksum_at,
        }
    }

    /// The frame, with every checksum computed.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut frame = [self.to_mac, self.from_mac].as_flattened().to_vec();
        if let Some(tag) = self.vlan {
            frame.extend([0x81, 0x00]);
            frame.extend(tag.to_be_bytes());
        }
        frame.extend([0x08, 0x00]);
        frame.extend(self.ip_header());
        frame.extend(self.checked_body());
        frame
    }

    fn ip_header(&self) -> Vec<u8> {
        let length = u16::try_from(self.body.len() + 20).unwrap_or(u16::MAX).to_be_bytes();
        let [flags, offset] = self.fragment.to_be_bytes();
        let mut header =
            vec![0x45, 0, length[0], length[1], 0x12, 0x34, flags, offset, self.ttl, self.protocol, 0, 0];
        header.extend(self.source);
        header.extend(self.destination);
        let sum = checksum(&[&header]);
        header.splice(10..12, sum.to_be_bytes());
        header
    }

    fn checked_body(&self) -> Vec<u8> {
        let mut body = self.body.clone();
        let Some(at) = self.checksum_at else { return body };
        let length = u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes();
        let pseudo = [&self.source[..], &self.destination, &[0, self.protocol], &length].concat();
        let sum = if self.protocol == 1 { checksum(&[&body]) } else { checksum(&[&pseudo, &body]) };
        body.splice(at..at + 2, sum.to_be_bytes());
        body
    }
}

/// The Internet checksum of all parts, each of an even length but the last (RFC 1071).
#[must_use]
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u32 = words.map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(0)
}

/// An IPv4 packet as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ipv4 {
    /// Ethernet source.
    pub from_mac: Mac,
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Time to live.
    pub ttl: u8,
    /// Fragment flags and offset as the header holds them.
    pub fragment: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// What follows the header.
    pub body: Vec<u8>,
    /// Whether the header's checksum is right.
    pub header_is_sound: bool,
    /// Whether the transport's checksum is right; veths leave it to be computed later, so only then it says much.
    pub body_is_sound: bool,
}

impl Ipv4 {
    /// Reads a frame; none when it is not IPv4.
    #[must_use]
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let packet = frame.get(14..)?;
        if frame.get(12..14)? != [0x08, 0x00] || packet.first()? >> 4 != 4 {
            return None;
        }
        let header_length = usize::from(packet.first()? & 0xf) * 4;
        let total = usize::from(u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?));
        let (header, body) = packet.get(..total)?.split_at_checked(header_length)?;
        let length = u16::try_from(body.len()).ok()?.to_be_bytes();
        let pseudo = [header.get(12..20)?, &[0, *header.get(9)?], &length].concat();
        let sound = match header.get(9)? {
            1 => checksum(&[body]) == 0,
            6 => checksum(&[&pseudo, body]) == 0,
            17 => body.get(6..8)? == [0, 0] || checksum(&[&pseudo, body]) == 0,
            _ => true,
        };
        Some(Self {
            from_mac: frame.get(6..12)?.try_into().ok()?,
            source: header.get(12..16)?.try_into().ok()?,
            destination: header.get(16..20)?.try_into().ok()?,
            ttl: *header.get(8)?,
            fragment: u16::from_be_bytes(header.get(6..8)?.try_into().ok()?),
            protocol: *header.get(9)?,
            body: body.to_vec(),
            header_is_sound: checksum(&[header]) == 0,
            body_is_sound: sound,
        })
    }

    /// Source and destination port of TCP and UDP.
    #[must_use]
    pub fn ports(&self) -> Option<(u16, u16)> {
        let source = self.body.get(0..2)?.try_into().ok()?;
        let destination = self.body.get(2..4)?.try_into().ok()?;
        Some((u16::from_be_bytes(source), u16::from_be_bytes(destination)))
    }

    /// Type and code of ICMP.
    #[must_use]
    pub fn icmp(&self) -> Option<(u8, u8)> {
        (self.protocol == 1).then_some((*self.body.first()?, *self.body.get(1)?))
    }
}
