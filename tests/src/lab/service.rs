//! Servers inside a namespace: an echo that names its caller over TCP and UDP, and files of known content over HTTP.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use nix::sys::socket::{Shutdown, shutdown};
use sha2::{Digest, Sha256};

use super::{namespace::Namespace, patience::patiently};

/// The port of the TCP and UDP echo.
pub const ECHO: u16 = 7000;
/// The port of the HTTP server.
pub const HTTP: u16 = 80;

const PATIENCE: Duration = Duration::from_mins(1);
const STACK: usize = 128 << 10;

/// A server that ends with this value.
#[derive(Debug)]
pub struct Service {
    stop: Arc<AtomicBool>,
    socket: OwnedFd,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread that waits in accept or receive, also where it says "not connected".
        shutdown(self.socket.as_raw_fd(), Shutdown::Both).ok();
    }
}

impl Service {
    /// A TCP server that writes a line with its caller's address, then gives back every byte.
    ///
    /// # Errors
    ///
    /// When the address is taken or not the namespace's.
    pub fn tcp_echo(namespace: &Namespace, at: &str) -> Result<Self> {
        Self::tcp(namespace, at, echo)
    }

    /// An HTTP server: `/bytes/N` is `N` bytes of [`content`], anything else the caller's address.
    ///
    /// # Errors
    ///
    /// When the address is taken or not the namespace's.
    pub fn http(namespace: &Namespace, at: &str) -> Result<Self> {
        Self::tcp(namespace, at, answer_http)
    }

    fn tcp(
        namespace: &Namespace,
        at: &str,
        serve: fn(TcpStream, SocketAddr) -> io::Result<()>,
    ) -> Result<Self> {
        let listener = namespace
            .run(|| TcpListener::bind(at))
            .with_context(|| format!("TCP server at {at} in {}", namespace.name()))?;
        let service = Self { stop: Arc::default(), socket: listener.try_clone()?.into() };
        let stop = Arc::clone(&service.stop);
        thread::spawn(move || {
            while let Ok((stream, caller)) = listener.accept() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let session = thread::Builder::new().stack_size(STACK);
                // A caller that goes away ends its own session only.
                session.spawn(move || serve(stream, caller).ok()).ok();
            }
        });
        Ok(service)
    }

    /// A UDP server that answers with its caller's address, a space, and the datagram.
    ///
    /// # Errors
    ///
    /// When the address is taken or not the namespace's.
    pub fn udp_echo(namespace: &Namespace, at: &str) -> Result<Self> {
        Self::udp(namespace, at, |caller, datagram| {
            Some([caller.to_string().as_bytes(), b" ", datagram].concat())
        })
    }

    /// A name server: whatever is asked for, the answer is the caller's address.
    ///
    /// # Errors
    ///
    /// When the address is taken or not the namespace's.
    pub fn names(namespace: &Namespace, at: &str) -> Result<Self> {
        Self::udp(namespace, at, name_answer)
    }

    /// The same over TCP.
    ///
    /// # Errors
    ///
    /// When the address is taken or not the namespace's.
    pub fn names_over_tcp(namespace: &Namespace, at: &str) -> Result<Self> {
        Self::tcp(namespace, at, answer_names)
    }

    fn udp(
        namespace: &Namespace,
        at: &str,
        answer: fn(SocketAddr, &[u8]) -> Option<Vec<u8>>,
    ) -> Result<Self> {
        let socket = namespace
            .run(|| UdpSocket::bind(at))
            .with_context(|| format!("UDP server at {at} in {}", namespace.name()))?;
        let service = Self { stop: Arc::default(), socket: socket.try_clone()?.into() };
        let stop = Arc::clone(&service.stop);
        thread::spawn(move || {
            let mut datagram = vec![0; 1 << 16];
            while !stop.load(Ordering::Relaxed) {
                // An ICMP error of an earlier answer surfaces here and is no reason to end.
                let Ok((length, caller)) = socket.recv_from(&mut datagram) else { continue };
                if let Some(answer) = answer(caller, datagram.get(..length).unwrap_or_default()) {
                    socket.send_to(&answer, caller).ok();
                }
            }
        });
        Ok(service)
    }
}

/// One A record with the caller's address (RFC 1035 section 4), for a query with one question.
fn name_answer(caller: SocketAddr, query: &[u8]) -> Option<Vec<u8>> {
    let IpAddr::V4(address) = caller.ip() else { return None };
    let (head, question) = query.split_at_checked(12)?;
    let name_end = question.iter().position(|&byte| byte == 0)?;
    let question = question.get(..name_end + 5)?;
    let mut answer = head.get(..2)?.to_vec();
    // Response, recursion desired and available; one question, one answer.
    answer.extend([0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    answer.extend(question);
    // The name is a pointer to the question's; type A, class IN, one minute, four bytes.
    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    answer.extend(address.octets());
    Some(answer)
}

fn answer_names(mut stream: TcpStream, caller: SocketAddr) -> io::Result<()> {
    stream.set_read_timeout(Some(patiently(PATIENCE)))?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut query)?;
    let answer = name_answer(caller, &query).unwrap_or_default();
    let length = u16::try_from(answer.len()).unwrap_or(0).to_be_bytes();
    stream.write_all(&[&length[..], &answer].concat())
}

fn echo(mut stream: TcpStream, caller: SocketAddr) -> io::Result<()> {
    stream.set_read_timeout(Some(patiently(PATIENCE)))?;
    stream.set_nodelay(true)?;
    writeln!(stream, "{caller}")?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(buffer.get(..length).unwrap_or_default())?;
    }
}

fn answer_http(mut stream: TcpStream, caller: SocketAddr) -> io::Result<()> {
    stream.set_read_timeout(Some(patiently(PATIENCE)))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let path = request.split(' ').nth(1).unwrap_or_default();
    let size = path.strip_prefix("/bytes/").and_then(|size| size.parse().ok());
    let body = size.map_or_else(|| caller.to_string().into_bytes(), content);
    write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len())?;
    stream.write_all(&body)
}

/// Bytes that look random and are the same each time.
#[must_use]
pub fn content(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// SHA-256 in hexadecimal, as `sha256sum` prints it.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}
