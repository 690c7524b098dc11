//! The server of one bridge: hears clients and other servers, and answers those whom nobody else does.
//!
//! It begins by listening. A client that stays unanswered, for a second or for four where it looks for an address, shows that no
//! server is there, or that the host's firewall keeps it from hearing: from then on this one answers at once. As soon as another
//! server is heard, or a client says that it has chosen another, it is quiet for a while. Frames that this socket sends are not shown to it, so what it hears is others'.

mod leasing;

use std::{
    collections::{HashMap, HashSet},
    future,
    net::Ipv4Addr,
    sync::Arc,
    time::Duration,
};

use dhcproto::v4::MessageType;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};
use vmnat_common::Mac;

use super::{
    Shared,
    book::Client,
    choice::{Around, Choice},
    frame::{self, Carried, Datagram},
    network::Network,
    ports::ForwardingTable,
    question::{self, Heard, Question},
    socket::{Seen, Socket},
};
use crate::{forwards::now, leases};

/// How long other servers have for their answer to who asks for what it knows.
const PATIENCE: Duration = Duration::from_secs(1);

/// The same for who looks for an address: before they offer one, dnsmasq pings it for three seconds (`PING_WAIT` of its
/// `config.h`), busybox's udhcpd asks by ARP for two, and ISC's dhcpd pings for one (measured, but for the last).
const SEARCH_PATIENCE: Duration = Duration::from_secs(4);

/// How long somebody has to say that an address is theirs.
const PROBE: Duration = Duration::from_millis(250);

/// How long to be quiet after another server was heard.
const QUIET: Duration = Duration::from_mins(5);

/// How long an offer stands.
const OFFER: Duration = Duration::from_mins(1);

/// How long an address that somebody has without a lease is left alone.
const BARRED: Duration = Duration::from_mins(10);

/// Addresses that are tried for one client.
const TRIES: u8 = 8;

/// Clients that wait: behind one port, and of all.
const WAITING: [usize; 2] = [16, 256];

/// Leases and offers that one port may have: a guest that invents clients leaves addresses for the others.
const PORT_LEASES: usize = 64;

/// For so many seconds after its end a lease is remembered for its client.
const MEMORY: u64 = 7 * 86_400;

/// What the server does about questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// It waits whether somebody else answers.
    Listening,
    /// It answers.
    Serving,
    /// Another server was heard.
    Quiet { until: Instant, server: Option<Ipv4Addr> },
}

/// A question that waits.
#[derive(Debug)]
struct Waiting {
    question: Box<Question>,
    due: Instant,
    /// The address to offer.
    choice: Option<Choice>,
    tries: u8,
    port: u32,
}

#[derive(Debug)]
struct Offer {
    to: Client,
    until: Instant,
    port: u32,
}

/// A server.
#[derive(Debug)]
pub(super) struct Server {
    network: Network,
    socket: Socket,
    shared: Arc<Shared>,
    mode: Mode,
    waiting: Vec<Waiting>,
    offered: HashMap<Ipv4Addr, Offer>,
    barred: HashMap<Ipv4Addr, Instant>,
    ports: ForwardingTable,
}

impl Server {
    /// Opens the socket.
    ///
    /// # Errors
    /// What the kernel answers.
    pub(super) fn open(network: Network, shared: Arc<Shared>) -> std::io::Result<Self> {
        let socket = Socket::open(network.index)?;
        let ports = ForwardingTable::new(network.index);
        let mode = Mode::Listening;
        shared.report(&network.bridge, mode);
        let (waiting, offered, barred) = (Vec::new(), HashMap::new(), HashMap::new());
        Ok(Self { network, socket, shared, mode, waiting, offered, barred, ports })
    }

    /// Serves until it is dropped.
    pub(super) async fn run(mut self) {
        loop {
            let due = self.waiting.iter().map(|waiting| waiting.due).min();
            tokio::select! {
                seen = self.socket.receive() => match seen {
                    Ok(seen) => self.hear(&seen),
                    Err(error) => {
                        // The bridge is down, or gone, which the agent hears of.
                        debug!("no frames from {}: {error}", self.network.bridge);
                        sleep(PATIENCE).await;
                    }
                },
                () = until(due) => self.settle(),
            }
        }
    }

    fn hear(&mut self, seen: &Seen) {
        match frame::read(&seen.frame) {
            Some(Carried::Claim { mac, address }) if !seen.is_hosts => self.note_claim(mac, address),
            Some(Carried::Dhcp(datagram)) => self.hear_datagram(&datagram, seen.is_hosts),
            _ => {}
        }
    }

    /// Somebody else has an address that is about to be offered.
    fn note_claim(&mut self, mac: Mac, address: Ipv4Addr) {
        let is_probed = |waiting: &Waiting| {
            waiting.choice.is_some_and(|choice| choice.is_fresh && choice.address == address)
                && waiting.question.client.mac != mac
        };
        if self.waiting.iter().any(is_probed) {
            info!("{address} on {} is {mac}'s, which has no lease for it", self.network.bridge);
            self.bar(address);
        }
    }

    fn bar(&mut self, address: Ipv4Addr) {
        if let Some(until) = Instant::now().checked_add(BARRED) {
            self.barred.insert(address, until);
        }
    }

    fn hear_datagram(&mut self, datagram: &Datagram<'_>, is_hosts: bool) {
        let to_us =
            datagram.destination == Ipv4Addr::BROADCAST || datagram.destination == self.network.gateway;
        match question::read(datagram.payload) {
            Some(Heard::Answer { server }) if datagram.port == frame::CLIENT => {
                self.yield_to(server.or(Some(datagram.source)));
            }
            // Who asks for another MAC than its own is no client of this wire.
            Some(Heard::Question(question))
                if datagram.port == frame::SERVER
                    && !is_hosts
                    && to_us
                    && datagram.from == question.client.mac =>
            {
                self.ask(question);
            }
            _ => {}
        }
    }

    /// Leaves the network to another server.
    fn yield_to(&mut self, server: Option<Ipv4Addr>) {
        let Some(until) = Instant::now().checked_add(QUIET) else { return };
        if !matches!(self.mode, Mode::Quiet { .. }) {
            let who = server.map_or_else(|| "another server".to_owned(), |server| server.to_string());
            info!("{who} gives addresses to the guests of {}: the agent does not", self.network.bridge);
        }
        self.waiting.clear();
        self.set_mode(Mode::Quiet { until, server });
    }

    fn set_mode(&mut self, mode: Mode) {
        let is_same = match (self.mode, mode) {
            (Mode::Quiet { server: before, .. }, Mode::Quiet { server, .. }) => before == server,
            (before, mode) => before == mode,
        };
        self.mode = mode;
        if !is_same {
            self.shared.report(&self.network.bridge, mode);
        }
    }

    fn ask(&mut self, question: Box<Question>) {
        match question.kind {
            MessageType::Release => self.release(&question),
            MessageType::Decline => self.decline(&question),
            MessageType::Request if question.server.is_some_and(|server| server != self.network.gateway) => {
                self.yield_to(question.server);
            }
            MessageType::Discover | MessageType::Request | MessageType::Inform => self.queue(question),
            _ => {}
        }
    }

    fn release(&mut self, question: &Question) {
        if self.shared.book().end(question.has, question.client.mac, now()) {
            info!("{} of {} gave {} back", question.client.mac, self.network.bridge, question.has);
            self.save();
        }
    }

    /// The client has found that somebody else has its address. It is believed about an address of its own alone.
    fn decline(&mut self, question: &Question) {
        let Some(address) = question.requested else { return };
        let was_offered = self.offered.get(&address).is_some_and(|offer| offer.to.mac == question.client.mac);
        if self.shared.book().end(address, question.client.mac, now()) || was_offered {
            warn!("{} of {} says that {address} is another's", question.client.mac, self.network.bridge);
            self.offered.remove(&address);
            self.bar(address);
            self.save();
        }
    }

    /// Lets a question wait until others have had their time, and an address its probe.
    fn queue(&mut self, question: Box<Question>) {
        let now = Instant::now();
        if let Mode::Quiet { until, .. } = self.mode {
            if now < until {
                return;
            }
            self.set_mode(Mode::Listening);
        }
        let mac = question.client.mac;
        let is_same = |waiting: &Waiting| {
            waiting.question.client.mac == mac
                && (waiting.question.xid, waiting.question.kind) == (question.xid, question.kind)
        };
        if self.waiting.iter().any(is_same) {
            return;
        }
        self.waiting.retain(|waiting| waiting.question.client.mac != mac);
        let port = self.ports.of(mac);
        let beside = self.waiting.iter().filter(|waiting| waiting.port == port).count();
        if beside >= WAITING[0] || self.waiting.len() >= WAITING[1] {
            return;
        }
        let mut waiting = Waiting { question, due: now, choice: None, tries: 0, port };
        let patience = match (self.mode, waiting.question.kind) {
            (Mode::Serving, _) => Duration::ZERO,
            (_, MessageType::Discover) => SEARCH_PATIENCE,
            _ => PATIENCE,
        };
        let probe = self.look_for_address(&mut waiting);
        waiting.due = now.checked_add(patience.max(probe)).unwrap_or(now);
        self.waiting.push(waiting);
        self.settle();
    }

    /// Chooses an address for a client that looks for one; how long to wait whether it is anybody's.
    fn look_for_address(&mut self, waiting: &mut Waiting) -> Duration {
        if waiting.question.kind != MessageType::Discover {
            return Duration::ZERO;
        }
        waiting.tries = waiting.tries.saturating_add(1);
        waiting.choice = self.around(|around| around.choose(&waiting.question));
        match waiting.choice {
            Some(Choice { address, is_fresh: true }) => {
                self.send(&frame::probe(self.network.mac, address));
                PROBE
            }
            _ => Duration::ZERO,
        }
    }

    /// Answers what is due.
    fn settle(&mut self) {
        let now = Instant::now();
        let mut due: Vec<Waiting> = Vec::new();
        for waiting in std::mem::take(&mut self.waiting) {
            if waiting.due <= now { due.push(waiting) } else { self.waiting.push(waiting) }
        }
        if due.is_empty() {
            return;
        }
        if self.mode != Mode::Serving {
            info!("nobody else gives addresses to the guests of {}: the agent does", self.network.bridge);
            self.set_mode(Mode::Serving);
        }
        self.offered.retain(|_, offer| offer.until > now);
        self.barred.retain(|_, until| *until > now);
        for waiting in due {
            match waiting.question.kind {
                MessageType::Discover => self.offer(waiting, now),
                MessageType::Request => self.decide(&waiting),
                _ => self.inform(&waiting.question),
            }
        }
    }

    /// Lets `ask` look at all that speaks for and against an address.
    fn around<T>(&self, ask: impl FnOnce(&Around<'_>) -> T) -> T {
        let taken = leases::in_force(&self.network.files).into_iter();
        let taken: HashMap<Ipv4Addr, Mac> =
            taken.filter_map(|lease| Some((lease.address, lease.mac?))).collect();
        let offered = self.offered.iter().map(|(address, offer)| (*address, offer.to.clone())).collect();
        let barred: HashSet<Ipv4Addr> = self.barred.keys().copied().collect();
        let book = self.shared.book();
        ask(&Around {
            network: &self.network,
            book: &book,
            taken: &taken,
            offered: &offered,
            barred: &barred,
            now: now(),
        })
    }

    fn save(&self) -> bool {
        let mut book = self.shared.book();
        book.forget(now().saturating_sub(MEMORY));
        let saved = book.save(&self.shared.leases);
        if let Err(error) = &saved {
            warn!("no lease is given that cannot be kept: {error:#}");
        }
        saved.is_ok()
    }

    fn send(&self, frame: &[u8]) {
        if let Err(error) = self.socket.send(frame) {
            warn!("cannot send to the guests of {}: {error}", self.network.bridge);
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => future::pending().await,
    }
}
