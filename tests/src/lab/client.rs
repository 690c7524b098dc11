//! What a guest, the host or a stranger tries: connect, ask, ping, download.

mod names;

use std::{
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpStream, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    frame::{checksum, wait_readable},
    namespace::Namespace,
    patience::patiently,
    service::{content, sha256},
};

pub use self::names::{Transport, resolve};

/// How long a try may take before it counts as cut off.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// A TCP conversation with an echo server.
#[derive(Debug)]
pub struct Conversation {
    stream: BufReader<TcpStream>,
    /// The caller's address as the server saw it.
    pub seen_as: SocketAddr,
}

impl Conversation {
    /// Connects from `namespace` and reads the server's line.
    ///
    /// # Errors
    ///
    /// When nobody answers within [`PATIENCE`].
    pub fn open(namespace: &Namespace, to: &str) -> Result<Self> {
        Self::open_within(namespace, to, PATIENCE)
    }

    /// Like [`Conversation::open`], with another patience.
    ///
    /// # Errors
    ///
    /// When nobody answers in time.
    pub fn open_within(namespace: &Namespace, to: &str, patience: Duration) -> Result<Self> {
        Self::over(connect(namespace, None, to, patience)?)
    }

    /// Connects from a port of the caller's choice.
    ///
    /// # Errors
    ///
    /// When nobody answers within [`PATIENCE`].
    pub fn open_from(namespace: &Namespace, from: u16, to: &str) -> Result<Self> {
        Self::over(connect(namespace, Some(from), to, PATIENCE)?)
    }

    fn over(stream: TcpStream) -> Result<Self> {
        stream.set_read_timeout(Some(patiently(PATIENCE)))?;
        stream.set_write_timeout(Some(patiently(PATIENCE)))?;
        stream.set_nodelay(true)?;
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).context("connected, but the server's first line did not come")?;
        let seen_as = line.trim().parse().with_context(|| format!("the server's first line was {line:?}"))?;
        Ok(Self { stream, seen_as })
    }

    /// The caller's own address.
    ///
    /// # Errors
    ///
    /// When the socket is closed.
    pub fn local(&self) -> Result<SocketAddr> {
        Ok(self.stream.get_ref().local_addr()?)
    }

    /// Sends `size` bytes while reading them back, and checks that they come back unharmed.
    ///
    /// # Errors
    ///
    /// When the connection stalls, breaks or changes a byte.
    pub fn exchange(&mut self, size: usize) -> Result<()> {
        let sent = content(size);
        let mut writer = self.stream.get_ref().try_clone()?;
        let returned = thread::scope(|scope| -> Result<Vec<u8>> {
            let writing = scope.spawn(|| writer.write_all(&sent));
            let mut returned = vec![0; size];
            self.stream.read_exact(&mut returned).context("reading back what was sent")?;
            writing.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
            Ok(returned)
        })?;
        ensure!(returned == sent, "{size} bytes came back changed");
        Ok(())
    }

    /// Closes the caller's half and waits for the server's.
    ///
    /// # Errors
    ///
    /// When the server's end does not come.
    pub fn close(mut self) -> Result<()> {
        self.stream.get_ref().shutdown(Shutdown::Write)?;
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).context("waiting for the other side to close")?;
        ensure!(rest.is_empty(), "{} bytes that nobody sent", rest.len());
        Ok(())
    }
}

/// Opens a TCP connection from `namespace`.
///
/// # Errors
///
/// When it is refused, or nobody answers within `patience`.
pub fn connect(namespace: &Namespace, from: Option<u16>, to: &str, patience: Duration) -> Result<TcpStream> {
    let to: SocketAddrV4 = to.parse().with_context(|| format!("address {to}"))?;
    let patience = patiently(patience);
    let reach = || -> Result<TcpStream> {
        let Some(from) = from else { return Ok(TcpStream::connect_timeout(&to.into(), patience)?) };
        connect_from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, from), to, patience)
    };
    namespace.run(reach).with_context(|| format!("{} connecting to {to}", namespace.name()))
}

/// Opens a TCP connection from one of the addresses of `namespace`.
///
/// # Errors
///
/// As [`connect`].
pub fn connect_as(namespace: &Namespace, from: &str, to: &str, patience: Duration) -> Result<TcpStream> {
    let (own, to) = (SocketAddrV4::new(from.parse()?, 0), to.parse()?);
    let reached = namespace.run(|| connect_from(own, to, patiently(patience)));
    reached.with_context(|| format!("{from} connecting to {to}"))
}

/// The standard library cannot bind before it connects.
fn connect_from(from: SocketAddrV4, to: SocketAddrV4, patience: Duration) -> Result<TcpStream> {
    use nix::sys::{
        socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt},
        time::{TimeVal, TimeValLike},
    };
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    // The timeout of sending bounds connect too (socket(7)).
    let patience = TimeVal::milliseconds(i64::try_from(patience.as_millis())?);
    setsockopt(&socket, sockopt::SendTimeout, &patience)?;
    bind(socket.as_raw_fd(), &SockaddrIn::from(from))?;
    connect(socket.as_raw_fd(), &SockaddrIn::from(to))?;
    Ok(TcpStream::from(socket))
}

/// A UDP socket that asks an echo server.
#[derive(Debug)]
pub struct Asker {
    socket: UdpSocket,
}

impl Asker {
    /// Binds a socket in `namespace`; port 0 lets the kernel choose.
    ///
    /// # Errors
    ///
    /// When the port is taken.
    pub fn new(namespace: &Namespace, port: u16) -> Result<Self> {
        let socket = namespace
            .run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)))
            .with_context(|| format!("UDP port {port} in {}", namespace.name()))?;
        Ok(Self { socket })
    }

    /// Sends one datagram and does not wait.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to send.
    pub fn send(&self, to: &str, payload: &[u8]) -> Result<()> {
        self.socket.send_to(payload, to).with_context(|| format!("sending to {to}")).map(drop)
    }

    /// True when any datagram comes within `patience`.
    #[must_use]
    pub fn hears(&self, patience: Duration) -> bool {
        let waits = self.socket.set_read_timeout(Some(patiently(patience)));
        waits.is_ok() && self.socket.recv(&mut [0; 1 << 11]).is_ok()
    }

    /// Sends one datagram of `size` bytes and returns the source that the server saw.
    ///
    /// # Errors
    ///
    /// When no answer comes within `patience`, or it comes changed or from somewhere else.
    pub fn ask_within(&self, to: &str, size: usize, patience: Duration) -> Result<SocketAddr> {
        let payload = content(size);
        self.send(to, &payload)?;
        self.socket.set_read_timeout(Some(patiently(patience)))?;
        let mut answer = vec![0; 1 << 16];
        let (length, from) = loop {
            match self.socket.recv_from(&mut answer) {
                // A wait with a time limit is not resumed by the kernel (signal(7)).
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                received => break received.with_context(|| format!("no answer over UDP from {to}"))?,
            }
        };
        ensure!(from == to.parse()?, "asked {to}, answered by {from}");
        answer.truncate(length);
        let space = answer.iter().position(|&byte| byte == b' ').context("an answer without the caller")?;
        let (caller, echoed) = answer.split_at(space);
        ensure!(echoed.get(1..) == Some(&payload), "the answer from {to} was changed on its way");
        Ok(std::str::from_utf8(caller)?.parse()?)
    }

    /// Like [`Asker::ask_within`], with 200 bytes and [`PATIENCE`].
    ///
    /// # Errors
    ///
    /// As [`Asker::ask_within`].
    pub fn ask(&self, to: &str) -> Result<SocketAddr> {
        self.ask_within(to, 200, PATIENCE)
    }
}

/// One UDP question from a port of the kernel's choice; returns the source that the server saw.
///
/// # Errors
///
/// When no answer comes.
pub fn ask(namespace: &Namespace, to: &str) -> Result<SocketAddr> {
    Asker::new(namespace, 0)?.ask(to).with_context(|| format!("{} asking {to}", namespace.name()))
}

/// A whole TCP conversation with an echo server; returns the source that the server saw.
///
/// # Errors
///
/// When any part of it fails.
pub fn converse(namespace: &Namespace, to: &str) -> Result<SocketAddr> {
    let mut conversation = Conversation::open(namespace, to)?;
    conversation.exchange(100_000)?;
    let seen_as = conversation.seen_as;
    conversation.close()?;
    Ok(seen_as)
}

/// Downloads `size` bytes over HTTP and checks their hash.
///
/// # Errors
///
/// When the server is out of reach or the bytes differ.
pub fn download(namespace: &Namespace, from: &str, size: usize) -> Result<()> {
    let body = get(namespace, from, &format!("/bytes/{size}"))?;
    let (got, wanted) = (sha256(&body), sha256(&content(size)));
    ensure!(got == wanted, "{} of {size} bytes, hash {got} instead of {wanted}", body.len());
    Ok(())
}

/// Fetches a path over HTTP.
///
/// # Errors
///
/// When the server is out of reach.
pub fn get(namespace: &Namespace, from: &str, path: &str) -> Result<Vec<u8>> {
    let mut stream = connect(namespace, None, from, PATIENCE)?;
    stream.set_read_timeout(Some(patiently(PATIENCE)))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).with_context(|| format!("GET {path} from {from}"))?;
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").context("an answer without a head")?;
    Ok(answer.split_off(end + 4))
}

/// An echo reply.
#[derive(Clone, Copy, Debug)]
pub struct Pong {
    /// Time to live that was left on arrival.
    pub ttl: u8,
    /// Time from request to reply.
    pub took: Duration,
}

/// Pings `to` with an identifier of the caller's choice.
///
/// # Errors
///
/// When no reply comes within `patience`, or it is not what was sent.
pub fn ping_as(namespace: &Namespace, identifier: u16, to: &str, patience: Duration) -> Result<Pong> {
    let to: Ipv4Addr = to.parse()?;
    namespace
        .run(|| echo_request(identifier, to, patience))
        .with_context(|| format!("{} pinging {to}", namespace.name()))
}

/// Pings `to` once.
///
/// # Errors
///
/// When no reply comes within [`PATIENCE`].
pub fn ping(namespace: &Namespace, to: &str) -> Result<Pong> {
    ping_as(namespace, 0x1234, to, PATIENCE)
}

fn echo_request(identifier: u16, to: Ipv4Addr, patience: Duration) -> Result<Pong> {
    use nix::sys::socket::{MsgFlags, SockaddrIn, sendto};
    // SAFETY: socket has no memory arguments.
    let descriptor =
        unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_ICMP) };
    ensure!(descriptor >= 0, "raw socket: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor has just been made and nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
    let [high, low] = identifier.to_be_bytes();
    let mut request = vec![8, 0, 0, 0, high, low, 0, 1];
    request.extend(content(56));
    let sum = checksum(&[&request]).to_be_bytes();
    request.splice(2..4, sum);
    let (patience, started) = (patiently(patience), Instant::now());
    sendto(socket.as_raw_fd(), &request, &SockaddrIn::from(SocketAddrV4::new(to, 0)), MsgFlags::empty())?;
    loop {
        let left = patience.saturating_sub(started.elapsed());
        if !wait_readable(&socket, left) {
            bail!("no reply within {patience:?}");
        }
        let mut buffer = [0_u8; 2048];
        // SAFETY: the pointer and length describe `buffer`.
        let length = unsafe {
            libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT)
        };
        let packet = buffer.get(..usize::try_from(length).unwrap_or(0)).unwrap_or_default();
        let (Some(head), Some(body)) = (packet.get(..20), packet.get(20..)) else { continue };
        // The socket sees every ICMP message of the namespace.
        if head.get(12..16) == Some(&to.octets())
            && body.first() == Some(&0)
            && body.get(4..6) == request.get(4..6)
        {
            ensure!(body.get(8..) == request.get(8..), "the reply carries other bytes than the request");
            return Ok(Pong { ttl: head.get(8).copied().unwrap_or(0), took: started.elapsed() });
        }
    }
}

/// Asserts that a try was cut off.
///
/// # Errors
///
/// When it succeeded.
pub fn must_fail<T: std::fmt::Debug>(what: &str, result: Result<T>) -> Result<()> {
    match result {
        Ok(value) => bail!("{what} went through although it must not: {value:?}"),
        Err(_) => Ok(()),
    }
}
