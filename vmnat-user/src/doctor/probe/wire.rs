//! What the synthetic guest sends: DHCP, ARP, pings and TCP. All of it runs in the guest's namespace, and waits no longer
//! than it is told.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use super::guest::INSIDE;

/// How long an answer may take; what is lost is sent once more.
pub(super) const PATIENCE: Duration = Duration::from_millis(1_500);

/// Options of DHCP (RFC 2132).
const MASK: u8 = 1;
const ROUTER: u8 = 3;
const RESOLVERS: u8 = 6;
const WANTED: u8 = 50;
const KIND: u8 = 53;
const SERVER: u8 = 54;
const LIST: u8 = 55;
const END: u8 = 255;

/// Kinds of messages.
const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;
const RELEASE: u8 = 7;

/// Bytes of a message before its options, with the magic number.
const HEAD: usize = 240;

/// What a DHCP server gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) address: [u8; 4],
    pub(super) prefix: u8,
    pub(super) router: Option<[u8; 4]>,
    pub(super) resolvers: Vec<[u8; 4]>,
    pub(super) server: [u8; 4],
}

/// Asks for an address; none where nobody offers one.
pub(super) fn dhcp(mac: [u8; 6], attempts: u8) -> io::Result<Option<Lease>> {
    let socket = UdpSocket::bind(("0.0.0.0", 68))?;
    bind_to_device(&socket)?;
    socket.set_broadcast(true)?;
    let Some(offer) = exchange(&socket, &message(mac, DISCOVER, [0; 4], &[]), mac, OFFER, attempts)? else {
        return Ok(None);
    };
    let chosen = [(WANTED, offer.address), (SERVER, offer.server)];
    let Some(lease) = exchange(&socket, &message(mac, REQUEST, [0; 4], &chosen), mac, ACK, 2)? else {
        return Ok(None);
    };
    Ok(Some(lease))
}

/// Gives an address back.
pub(super) fn release(mac: [u8; 6], lease: &Lease) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::from(lease.address), 68))?;
    let message = message(mac, RELEASE, lease.address, &[(SERVER, lease.server)]);
    socket.send_to(&message, (Ipv4Addr::from(lease.server), 67)).map(drop)
}

fn bind_to_device(socket: &UdpSocket) -> io::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt::BindToDevice};
    setsockopt(socket, BindToDevice, &INSIDE.into()).map_err(Into::into)
}

/// A message of RFC 2131, to be answered by broadcast.
fn message(mac: [u8; 6], kind: u8, own: [u8; 4], options: &[(u8, [u8; 4])]) -> Vec<u8> {
    let mut message = vec![1, 1, 6, 0];
    message.extend(xid(mac));
    message.extend([0, 0, 0x80, 0]);
    message.extend(own);
    message.extend([0; 12]);
    message.extend(mac);
    // The rest of the hardware address, server's name, file.
    message.resize(HEAD.saturating_sub(4), 0);
    message.extend([99, 130, 83, 99, KIND, 1, kind]);
    for (option, value) in options {
        message.extend([*option, 4]);
        message.extend(value);
    }
    message.extend([LIST, 3, MASK, ROUTER, RESOLVERS, END]);
    message.resize(message.len().max(300), 0);
    message
}

fn xid(mac: [u8; 6]) -> [u8; 4] {
    [mac[2], mac[3], mac[4], mac[5]]
}

fn exchange(
    socket: &UdpSocket,
    message: &[u8],
    mac: [u8; 6],
    wanted: u8,
    attempts: u8,
) -> io::Result<Option<Lease>> {
    for _ in 0..attempts {
        socket.send_to(message, ("255.255.255.255", 67))?;
        let since = Instant::now();
        // A server may look whether an address is free before it offers it, for up to three seconds.
        while let Some(left) =
            Duration::from_secs(4).checked_sub(since.elapsed()).filter(|left| !left.is_zero())
        {
            socket.set_read_timeout(Some(left))?;
            let mut buffer = [0; 1500];
            match socket.recv(&mut buffer) {
                Ok(length) => {
                    if let Some(lease) = read(buffer.get(..length).unwrap_or_default(), mac, wanted) {
                        return Ok(Some(lease));
                    }
                }
                Err(error) if is_late(&error) => break,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(None)
}

/// Reads an offer or an acknowledgement.
pub(super) fn read(message: &[u8], mac: [u8; 6], wanted: u8) -> Option<Lease> {
    let word = |at: usize| -> Option<[u8; 4]> { message.get(at..at.checked_add(4)?)?.try_into().ok() };
    if message.first() != Some(&2) || word(4)? != xid(mac) || message.get(28..34)? != mac {
        return None;
    }
    let mut lease =
        Lease { address: word(16)?, prefix: 24, router: None, resolvers: Vec::new(), server: word(20)? };
    let mut kind = 0;
    let mut rest = message.get(HEAD..)?;
    while let [option, tail @ ..] = rest {
        match *option {
            END => break,
            0 => rest = tail,
            option => {
                let (length, tail) = tail.split_first()?;
                let (value, tail) = tail.split_at_checked(usize::from(*length))?;
                let first: Option<[u8; 4]> = value.first_chunk().copied();
                match (option, first) {
                    (KIND, _) => kind = *value.first()?,
                    (MASK, Some(mask)) => {
                        lease.prefix = u8::try_from(u32::from_be_bytes(mask).leading_ones()).ok()?;
                    }
                    (ROUTER, router) => lease.router = router,
                    (SERVER, Some(server)) => lease.server = server,
                    (RESOLVERS, _) => lease.resolvers = value.as_chunks::<4>().0.to_vec(),
                    _ => {}
                }
                rest = tail;
            }
        }
    }
    (kind == wanted).then_some(lease)
}

fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// True when somebody answers for an address (RFC 5227's probe: it claims nothing).
pub(super) fn is_taken(mac: [u8; 6], address: [u8; 4]) -> io::Result<bool> {
    const ARP: u16 = 0x0806;
    let socket = socket(libc::AF_PACKET, libc::SOCK_DGRAM, i32::from(ARP.to_be()))?;
    // SAFETY: all zero is a valid `sockaddr_ll`.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or(0);
    to.sll_protocol = ARP.to_be();
    to.sll_ifindex = nix::net::if_::if_nametoindex(INSIDE)?.cast_signed();
    to.sll_halen = 6;
    to.sll_addr = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0];
    let mut question = vec![0, 1, 8, 0, 6, 4, 0, 1];
    question.extend(mac);
    question.extend([0; 10]);
    question.extend(address);
    let size = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or(0);
    for _ in 0..2 {
        // SAFETY: both pointers are live, with the lengths that are given.
        let sent = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                question.as_ptr().cast(),
                question.len(),
                0,
                (&raw const to).cast(),
                size,
            )
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = UdpSocket::from(socket.try_clone()?);
        let since = Instant::now();
        while let Some(left) =
            Duration::from_millis(200).checked_sub(since.elapsed()).filter(|left| !left.is_zero())
        {
            socket.set_read_timeout(Some(left))?;
            let mut buffer = [0; 64];
            match socket.recv(&mut buffer) {
                Ok(_) if buffer.get(14..18) == Some(&address) => return Ok(true),
                Ok(_) => {}
                Err(error) if is_late(&error) => break,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(false)
}

fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only.
    let descriptor = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// A ping with so many bytes; with `whole`, never in fragments. False when no answer comes.
pub(super) fn ping(to: Ipv4Addr, bytes: usize, whole: bool) -> io::Result<bool> {
    let socket = UdpSocket::from(socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)?);
    let mode: libc::c_int = if whole { libc::IP_PMTUDISC_DO } else { libc::IP_PMTUDISC_DONT };
    // SAFETY: the value is live, and as long as is said.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            (&raw const mode).cast(),
            libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(0),
        )
    };
    if set < 0 {
        return Err(io::Error::last_os_error());
    }
    for sequence in 0..2_u8 {
        let echo = echo(sequence, bytes);
        socket.send_to(&echo, (to, 0))?;
        let since = Instant::now();
        while let Some(left) = PATIENCE.checked_sub(since.elapsed()).filter(|left| !left.is_zero()) {
            socket.set_read_timeout(Some(left))?;
            let mut buffer = vec![0; bytes.saturating_add(128)];
            match socket.recv(&mut buffer) {
                Ok(length) => {
                    let packet = buffer.get(..length).unwrap_or_default();
                    let header = usize::from(packet.first().copied().unwrap_or(0) & 15).saturating_mul(4);
                    let answer = packet.get(header..).unwrap_or_default();
                    if answer.first() == Some(&0) && answer.get(4..) == echo.get(4..) {
                        return Ok(true);
                    }
                }
                Err(error) if is_late(&error) => break,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(false)
}

fn echo(sequence: u8, bytes: usize) -> Vec<u8> {
    let mut echo = vec![8, 0, 0, 0, 0x76, 0x6d, 0, sequence];
    echo.extend((0..=u8::MAX).cycle().take(bytes));
    let sum: u32 = echo.chunks(2).fold(0, |sum, pair| {
        let word = [pair.first().copied().unwrap_or(0), pair.get(1).copied().unwrap_or(0)];
        sum.wrapping_add(u16::from_be_bytes(word).into())
    });
    let folded = sum.wrapping_shr(16).wrapping_add(sum & 0xffff);
    let folded = folded.wrapping_shr(16).wrapping_add(folded & 0xffff);
    let checksum = u16::try_from(!folded & 0xffff).unwrap_or(0).to_be_bytes();
    echo.iter_mut().skip(2).zip(checksum).for_each(|(place, byte)| *place = byte);
    echo
}

/// Connects by TCP. A refusal is an answer, too.
pub(super) fn tcp(to: SocketAddrV4) -> io::Result<()> {
    match TcpStream::connect_timeout(&SocketAddr::V4(to), Duration::from_secs(3)) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(error),
    }
}

/// What the kernel has learned about the largest packet of a path.
pub(super) fn path_mtu(to: Ipv4Addr) -> io::Result<u32> {
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.connect((to, 9))?;
    let mut value: libc::c_int = 0;
    let mut size = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(0);
    // SAFETY: value and size are live, and the size is the value's.
    let got = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU,
            (&raw mut value).cast(),
            &raw mut size,
        )
    };
    if got < 0 { Err(io::Error::last_os_error()) } else { Ok(value.cast_unsigned()) }
}

/// The addresses that have answered ARP.
pub(super) fn arp() -> Vec<Ipv4Addr> {
    let table = std::fs::read_to_string("/proc/thread-self/net/arp").unwrap_or_default();
    let rows = table.lines().skip(1).filter_map(|line| {
        let mut words = line.split_whitespace();
        let address = words.next()?.parse().ok()?;
        // Flags: complete is 2.
        (words.nth(1)? != "0x0").then_some(address)
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: [u8; 6] = [2, 0x76, 0x6d, 1, 2, 3];

    fn offer() -> Vec<u8> {
        let mut offer = message(
            GUEST,
            OFFER,
            [0; 4],
            &[(SERVER, [10, 0, 0, 1]), (ROUTER, [10, 0, 0, 2]), (MASK, [255, 255, 0, 0])],
        );
        offer[0] = 2;
        offer[16..20].copy_from_slice(&[10, 0, 0, 77]);
        offer
    }

    #[test]
    fn an_offer_is_read_and_that_of_others_is_not() {
        let lease = read(&offer(), GUEST, OFFER).unwrap();
        assert_eq!((lease.address, lease.prefix, lease.router), ([10, 0, 0, 77], 16, Some([10, 0, 0, 2])));
        assert_eq!(lease.server, [10, 0, 0, 1]);
        assert_eq!(read(&offer(), GUEST, ACK), None);
        assert_eq!(read(&offer(), [2, 0x76, 0x6d, 1, 2, 4], OFFER), None);
        assert_eq!(read(&message(GUEST, OFFER, [0; 4], &[]), GUEST, OFFER), None, "a question");
    }

    #[test]
    fn cut_offers_are_no_trouble() {
        let offer = offer();
        for length in 0..offer.len() {
            let _ = read(&offer[..length], GUEST, OFFER);
        }
    }

    #[test]
    fn an_echos_checksum_is_right() {
        for bytes in [0, 1, 56, 3001] {
            let sum: u32 = echo(1, bytes)
                .chunks(2)
                .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
                .sum();
            let folded = (sum >> 16) + (sum & 0xffff);
            assert_eq!((folded >> 16) + (folded & 0xffff), 0xffff, "{bytes}");
        }
    }
}
