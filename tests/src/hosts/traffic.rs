//! A guest that talks with the world all the while: one TCP stream, flows of UDP and pings that stay, and flows that open anew.

use std::{
    collections::BTreeSet,
    fmt,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};

use crate::lab::{
    EXTERNAL, SERVER, SERVER_ECHO, client,
    namespace::Namespace,
    service::{content, sha256},
};

/// How often a datagram of each kind leaves.
const PERIOD: Duration = Duration::from_millis(20);

/// How long a datagram's answer is waited for.
const ANSWER: Duration = Duration::from_secs(1);

/// How long a stream may stand still before it counts as dead. TCP doubles its pauses: after an outage of some seconds it
/// waits as long again.
const STANDSTILL: Duration = Duration::from_secs(15);

/// What the stream sends at once.
const BLOCK: usize = 4096;

/// The identifier of the guest's pings.
const IDENTIFIER: u16 = 0x0c0d;

/// The answers to one kind of flow.
#[derive(Clone, Debug)]
pub struct Answers {
    sent: u64,
    heard: u64,
    longest: Duration,
    last: Instant,
    is_over: bool,
    /// The guest as the world saw it.
    seen_as: BTreeSet<SocketAddr>,
}

impl Answers {
    fn new() -> Self {
        Self {
            sent: 0,
            heard: 0,
            longest: Duration::ZERO,
            last: Instant::now(),
            is_over: false,
            seen_as: BTreeSet::new(),
        }
    }

    fn hear(&mut self) {
        self.heard += 1;
        self.pause();
    }

    /// Ends a while without an answer, until measuring has ended.
    fn pause(&mut self) {
        if !self.is_over {
            self.longest = self.longest.max(self.last.elapsed());
            self.last = Instant::now();
        }
    }

    /// Ends the measuring of pauses; the last datagrams may still be answered.
    fn close(&mut self) {
        self.pause();
        self.is_over = true;
    }

    /// The longest while without one.
    #[must_use]
    pub const fn longest(&self) -> Duration {
        self.longest
    }

    /// Asserts that no while without an answer, the last one included, was as long as `patience`.
    fn assert_within(&self, what: &str, patience: Duration) -> Result<()> {
        ensure!(self.heard > 0, "no answer to {what} at all");
        ensure!(self.longest < patience, "no answer to {what} for {:?}", self.longest);
        Ok(())
    }
}

impl fmt::Display for Answers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lost = self.sent.saturating_sub(self.heard);
        write!(formatter, "{} ms ({lost} of {} lost)", self.longest.as_millis(), self.sent)
    }
}

/// The guest's conversations, which go on until the value is ended or goes.
#[derive(Debug)]
pub struct Traffic {
    stop: Arc<AtomicBool>,
    /// Answers to new flows so far.
    heard: Arc<AtomicU64>,
    stream: Option<JoinHandle<Result<usize>>>,
    datagrams: Option<JoinHandle<Result<(Answers, Answers)>>>,
    pings: Option<JoinHandle<Answers>>,
}

/// What became of them.
#[derive(Debug)]
pub struct Outcome {
    /// The stream's bytes, or how it died.
    pub stream: Result<usize>,
    /// The UDP flow that stays.
    pub old: Answers,
    /// UDP flows of one datagram each.
    pub new: Answers,
    /// Pings of one identifier.
    pub pings: Answers,
}

impl Traffic {
    /// Has `guest` talk with the world, which it must be able to.
    ///
    /// # Errors
    ///
    /// When it is cut off from the beginning.
    pub fn start(guest: &Namespace) -> Result<Self> {
        let (stop, heard) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let stream = client::connect(guest, None, SERVER_ECHO, client::PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(STANDSTILL))?;
        stream.set_write_timeout(Some(STANDSTILL))?;
        let mut stream = BufReader::new(stream);
        stream.read_line(&mut String::new()).context("the first line of the stream")?;
        let until = Arc::clone(&stop);
        let stream = thread::spawn(move || keep_streaming(stream, &until));
        let (until, count) = (Arc::clone(&stop), Arc::clone(&heard));
        let datagrams = guest.spawn(move || keep_asking(&until, &count));
        let (until, pinger) = (Arc::clone(&stop), guest.clone());
        let pings = thread::spawn(move || keep_pinging(&pinger, &until));
        Ok(Self { stop, heard, stream: Some(stream), datagrams: Some(datagrams), pings: Some(pings) })
    }

    /// Waits until new flows are answered again, or `patience` is over, lets all go on for a moment, and ends it.
    ///
    /// # Errors
    ///
    /// When the watching itself fails, which says nothing about the host.
    pub fn end(mut self, patience: Duration) -> Result<Outcome> {
        let deadline = Instant::now() + patience;
        let before = self.heard.load(Ordering::Relaxed);
        while self.heard.load(Ordering::Relaxed) < before + 50 && Instant::now() < deadline {
            thread::sleep(PERIOD);
        }
        self.stop.store(true, Ordering::Relaxed);
        let broken = || anyhow!("a conversation of the guest panicked");
        let (old, new) = self.datagrams.take().context("ended")?.join().map_err(|_| broken())??;
        Ok(Outcome {
            stream: self.stream.take().context("ended")?.join().map_err(|_| broken())?,
            old,
            new,
            pings: self.pings.take().context("ended")?.join().map_err(|_| broken())?,
        })
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Outcome {
    /// Whether the stream lived.
    ///
    /// # Errors
    ///
    /// When it died.
    pub fn stream(&self) -> Result<()> {
        self.stream.as_ref().map(drop).map_err(|error| anyhow!("{error:#}"))
    }

    /// Whether what was there before was answered all the while, but for `patience`, and kept its place.
    ///
    /// # Errors
    ///
    /// When it was not.
    pub fn old_flows(&self, patience: Duration) -> Result<()> {
        self.old.assert_within("the old flow", patience)?;
        ensure!(self.old.seen_as.len() == 1, "the world saw the old flow as {:?}", self.old.seen_as);
        self.pings.assert_within("the pings", patience)
    }

    /// Whether new flows were answered all the while, but for `patience`.
    ///
    /// # Errors
    ///
    /// When they were not.
    pub fn new_flows(&self, patience: Duration) -> Result<()> {
        self.new.assert_within("new flows", patience)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stream, old, new, pings } = self;
        match stream {
            Ok(_) => write!(formatter, "the TCP stream lives")?,
            Err(_) => write!(formatter, "the TCP stream died")?,
        }
        write!(formatter, "; UDP {old}, new flows {new}, pings {pings}")
    }
}

/// Sends blocks and takes each back, until told to stop; all that came back must be all that was sent.
fn keep_streaming(mut stream: BufReader<std::net::TcpStream>, stop: &AtomicBool) -> Result<usize> {
    let block = content(BLOCK);
    let (mut sent, mut returned) = (Vec::new(), Vec::new());
    let mut buffer = vec![0; BLOCK];
    while !stop.load(Ordering::Relaxed) {
        stream.get_mut().write_all(&block).context("writing into the stream")?;
        sent.extend(&block);
        stream.read_exact(&mut buffer).context("reading back from the stream")?;
        returned.extend(&buffer);
        thread::sleep(PERIOD);
    }
    ensure!(sha256(&sent) == sha256(&returned), "{} bytes of the stream came back changed", sent.len());
    Ok(returned.len())
}

/// A datagram of the old flow and one of a new flow every 20 ms, with their numbers.
fn keep_asking(stop: &AtomicBool, count: &AtomicU64) -> Result<(Answers, Answers)> {
    let open = || -> Result<UdpSocket> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    let (mut old, mut new) = (Answers::new(), Answers::new());
    let mut answered = BTreeSet::new();
    let socket = open()?;
    let mut asked: Vec<(UdpSocket, u64, Instant)> = Vec::new();
    let mut number = 0_u64;
    let mut next = Instant::now();
    // Answers to the last datagrams are waited for too.
    let mut rest = 5;
    while rest > 0 {
        if stop.load(Ordering::Relaxed) {
            rest -= 1;
            old.close();
            new.close();
        } else {
            number += 1;
            let fresh = open()?;
            for (socket, answers) in [(&socket, &mut old), (&fresh, &mut new)] {
                // While there is no route or neighbour, the kernel may refuse: as good as lost.
                socket.send_to(&number.to_be_bytes(), SERVER_ECHO).ok();
                answers.sent += 1;
            }
            asked.push((fresh, number, Instant::now()));
        }
        next += PERIOD;
        thread::sleep(next.saturating_duration_since(Instant::now()));
        while let Some((caller, number)) = hear(&socket)? {
            old.seen_as.insert(caller);
            if answered.insert(number) {
                old.hear();
            }
        }
        for (socket, number, _) in &asked {
            let Some((caller, answer)) = hear(socket)? else { continue };
            ensure!(answer == *number, "datagram {number} was answered with {answer}");
            new.seen_as.insert(caller);
            new.hear();
            count.fetch_add(1, Ordering::Relaxed);
        }
        asked.retain(|(_, _, at)| at.elapsed() < ANSWER);
    }
    for answers in [&old, &new] {
        let strangers = answers.seen_as.iter().find(|caller| caller.ip().to_string() != EXTERNAL);
        ensure!(strangers.is_none(), "the world saw the guest as {strangers:?}");
    }
    Ok((old, new))
}

/// What the echo has answered, if it has: the guest's address and port there, and the datagram's number.
fn hear(socket: &UdpSocket) -> Result<Option<(SocketAddr, u64)>> {
    let mut answer = [0; 64];
    // ICMP errors, and nothing to read yet.
    let Ok((length, _)) = socket.recv_from(&mut answer) else { return Ok(None) };
    let answer = answer.get(..length).unwrap_or_default();
    let at = answer.iter().position(|byte| *byte == b' ').context("an answer without the caller")?;
    let (caller, number) = answer.split_at(at);
    let number = number.get(1..).and_then(|number| number.try_into().ok()).context("a changed answer")?;
    Ok(Some((std::str::from_utf8(caller)?.parse()?, u64::from_be_bytes(number))))
}

fn keep_pinging(guest: &Namespace, stop: &AtomicBool) -> Answers {
    let mut answers = Answers::new();
    while !stop.load(Ordering::Relaxed) {
        answers.sent += 1;
        if client::ping_as(guest, IDENTIFIER, SERVER, Duration::from_millis(200)).is_ok() {
            answers.hear();
        }
        thread::sleep(PERIOD);
    }
    answers.close();
    answers
}
