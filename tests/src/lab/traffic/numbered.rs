//! Numbered datagrams, or pings, at a fixed rate to an echo: which were lost, and as whom the echo saw their sender.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::{FromRawFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::{
    super::{client::PATIENCE, namespace::Namespace},
    Baton, PERIOD, PING_PERIOD,
};

/// How long the last answers are waited for.
const LAST_ANSWERS: Duration = Duration::from_millis(700);

/// What came of a sequence.
#[derive(Clone, Debug)]
pub struct SequenceReport {
    /// Its name.
    pub name: String,
    /// Between two of its datagrams.
    pub period: Duration,
    /// How many were sent.
    pub sent: u64,
    /// How many of them were never answered.
    pub lost: u64,
    /// The largest number of datagrams lost one after the other.
    pub longest_loss: u64,
    /// The longest time between two answers, with all that the machine's load adds.
    pub gap: Duration,
    /// As whom the echo saw the sender; empty for pings.
    pub seen_as: BTreeSet<SocketAddr>,
}

impl SequenceReport {
    /// How long datagrams were lost one after the other, by their rate.
    #[must_use]
    pub fn outage(&self) -> Duration {
        self.period.saturating_mul(u32::try_from(self.longest_loss).unwrap_or(u32::MAX))
    }

    /// How long they were lost altogether, by their rate.
    #[must_use]
    pub fn lost_time(&self) -> Duration {
        self.period.saturating_mul(u32::try_from(self.lost).unwrap_or(u32::MAX))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// An echo that names its caller before what it was sent.
    Datagram,
    /// ICMP echo, by a socket whose identifier is the kernel's choice.
    Ping,
}

/// A sequence that goes on in the background.
#[derive(Debug)]
pub(super) struct Sequence {
    name: String,
    period: Duration,
    sender: JoinHandle<()>,
    receiver: JoinHandle<Result<Heard>>,
    sent: Arc<AtomicU64>,
    /// The last answers have been waited for.
    done: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Heard {
    /// By number: answered.
    answered: Vec<bool>,
    gap: Duration,
    seen_as: BTreeSet<SocketAddr>,
}

impl Sequence {
    /// Sends datagrams to an echo.
    pub(super) fn datagrams(name: String, from: &Namespace, to: &str, baton: Baton) -> Result<Self> {
        let socket = from.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
        Self::start(name, Kind::Datagram, PERIOD, socket, to.parse()?, baton)
    }

    /// Pings.
    pub(super) fn pings(name: String, from: &Namespace, to: &str, baton: Baton) -> Result<Self> {
        from.set_sysctl("net/ipv4/ping_group_range", "0 0")?;
        let socket = from.run(ping_socket)?;
        let to = SocketAddr::new(to.parse()?, 0);
        Self::start(name, Kind::Ping, PING_PERIOD, socket, to, baton)
    }

    fn start(
        name: String,
        kind: Kind,
        period: Duration,
        socket: UdpSocket,
        to: SocketAddr,
        baton: Baton,
    ) -> Result<Self> {
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let (sent, done) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (outward, count, over) = (socket.try_clone()?, Arc::clone(&sent), baton.clone());
        let sender = thread::spawn(move || send(kind, &outward, to, period, &count, &over));
        let (count, over) = (Arc::clone(&sent), Arc::clone(&done));
        let receiver = thread::spawn(move || receive(kind, &socket, &count, &over, &baton));
        Ok(Self { name, period, sender, receiver, sent, done })
    }

    /// Waits for the last answers.
    pub(super) fn finish(self) -> Result<SequenceReport> {
        let Self { name, period, sender, receiver, sent, done } = self;
        sender.join().map_err(|_| anyhow!("{name}: the sender panicked"))?;
        thread::sleep(LAST_ANSWERS);
        done.store(true, Ordering::Relaxed);
        let heard = receiver
            .join()
            .map_err(|_| anyhow!("{name}: the receiver panicked"))?
            .with_context(|| name.clone())?;
        let sent = sent.load(Ordering::Relaxed);
        let mut answered = heard.answered;
        answered.resize(usize::try_from(sent)?, false);
        let runs = answered.split(|answered| *answered).map(<[bool]>::len);
        let (lost, longest) = runs.fold((0, 0), |(lost, longest), run| (lost + run, longest.max(run)));
        Ok(SequenceReport {
            name,
            period,
            sent,
            lost: u64::try_from(lost)?,
            longest_loss: u64::try_from(longest)?,
            gap: heard.gap,
            seen_as: heard.seen_as,
        })
    }
}

fn ping_socket() -> Result<UdpSocket> {
    // SAFETY: socket has no memory arguments.
    let descriptor =
        unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, libc::IPPROTO_ICMP) };
    ensure!(descriptor >= 0, "a socket for pings: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor has just been made and nobody else owns it.
    Ok(UdpSocket::from(unsafe { OwnedFd::from_raw_fd(descriptor) }))
}

fn send(kind: Kind, socket: &UdpSocket, to: SocketAddr, period: Duration, sent: &AtomicU64, baton: &Baton) {
    let mut next = Instant::now();
    while !baton.is_over() {
        // Counted before it leaves, since its answer may be quicker than this thread.
        let number = sent.fetch_add(1, Ordering::Relaxed);
        let datagram = match kind {
            Kind::Datagram => number.to_be_bytes().to_vec(),
            // The kernel writes identifier and checksum.
            Kind::Ping => {
                [&[8, 0, 0, 0, 0, 0][..], &number.to_be_bytes()[6..], &number.to_be_bytes()].concat()
            }
        };
        // While there is no route or neighbour the kernel may refuse, or tell an ICMP error: as good as lost.
        socket.send_to(&datagram, to).ok();
        // A sender that was kept waiting does not catch up: its rate is an upper bound.
        next = (next + period).max(Instant::now());
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

fn receive(
    kind: Kind,
    socket: &UdpSocket,
    sent: &AtomicU64,
    done: &AtomicBool,
    baton: &Baton,
) -> Result<Heard> {
    let mut heard = Heard::default();
    let mut last = Instant::now();
    let mut buffer = [0; 256];
    while !done.load(Ordering::Relaxed) {
        // Silence and ICMP errors.
        let Ok((length, _)) = socket.recv_from(&mut buffer) else { continue };
        let answer = buffer.get(..length).unwrap_or_default();
        let (caller, number) = match kind {
            Kind::Datagram => {
                let (caller, number) = split(answer)?;
                (Some(caller), number)
            }
            Kind::Ping => (None, u64::from_be_bytes(answer.get(8..16).context("a short reply")?.try_into()?)),
        };
        ensure!(number < sent.load(Ordering::Relaxed), "an answer to number {number}, which was never sent");
        let place = usize::try_from(number)?;
        if heard.answered.len() <= place {
            heard.answered.resize(place + 1, false);
        }
        ensure!(!std::mem::replace(&mut heard.answered[place], true), "number {number} came back twice");
        heard.seen_as.extend(caller);
        if !baton.is_over() {
            heard.gap = heard.gap.max(last.elapsed());
        }
        last = Instant::now();
        baton.advance();
    }
    Ok(heard)
}

/// An echo's answer: as whom it saw the caller, and the number.
pub(super) fn split(answer: &[u8]) -> Result<(SocketAddr, u64)> {
    let at = answer.iter().position(|byte| *byte == b' ').context("an answer without the caller")?;
    let (caller, number) = answer.split_at(at);
    let number = number.get(1..).and_then(|number| number.try_into().ok()).context("a changed answer")?;
    Ok((std::str::from_utf8(caller)?.parse()?, u64::from_be_bytes(number)))
}

/// One datagram from a socket of its own; whether it was answered within the usual patience.
pub(super) fn ask(to: SocketAddr, number: u64) -> Result<bool> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = [0; 256];
    if socket.send_to(&number.to_be_bytes(), to).is_err() {
        return Ok(false);
    }
    let Ok((length, _)) = socket.recv_from(&mut buffer) else { return Ok(false) };
    let (_, answer) = split(buffer.get(..length).unwrap_or_default())?;
    ensure!(answer == number, "number {number} of a new flow was answered with {answer}");
    Ok(true)
}
