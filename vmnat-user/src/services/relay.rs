//! The relay: answers guests' questions for names in the quiet room, and asks in the host's namespace.
//!
//! Its sockets wait at the gateway's address inside the room, so they take no port of the host's, and a server that starts
//! later finds its own free. Bytes go through as they are; each question has a socket of its own, whose port the kernel
//! chooses at random, so no answer meets another's question. It is part of the agent, and pauses while none runs.

use std::{
    collections::{BTreeMap, HashMap},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket},
    os::unix::fs::MetadataExt as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    io::copy_bidirectional,
    net,
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{DNS, entries, forwarders::to_ask, relayed};
use crate::{facts::Facts, paths::Instance, room, state::State};

/// How long one resolver has for its answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a connection may last.
const CONNECTION: Duration = Duration::from_secs(30);

/// After a socket has failed, for want of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);

/// The largest datagram.
const LARGEST: usize = 65_535;

/// Bytes of a message's head (RFC 1035 section 4.1.1).
const HEAD: usize = 12;

/// The answers with which another resolver is asked: it has failed, or it refuses.
const FAILED: [u8; 2] = [2, 5];

/// Questions, or connections, that wait at one time: of one guest, and of all.
#[derive(Clone, Copy, Debug)]
struct Limit {
    one: usize,
    all: usize,
}

const QUESTIONS: Limit = Limit { one: 64, all: 256 };
const CONNECTIONS: Limit = Limit { one: 8, all: 64 };

/// The relay of an instance.
#[derive(Debug, Default)]
pub struct Relay {
    /// Inode of the room's namespace that the sockets are in.
    room: u64,
    gateways: BTreeMap<Ipv4Addr, Gateway>,
}

/// The relay at one address; it ends with the value.
#[derive(Debug)]
struct Gateway {
    forwarders: Vec<SocketAddrV4>,
    _tasks: JoinSet<()>,
}

impl Relay {
    /// Waits at the gateways that it should, and at no other.
    pub fn settle(&mut self, instance: &Instance, state: &State, facts: &Facts) {
        let wanted = wanted(state, facts);
        self.leave_lost_room(instance);
        self.gateways.retain(|address, gateway| wanted.get(address) == Some(&gateway.forwarders));
        for (address, forwarders) in wanted {
            if self.gateways.contains_key(&address) {
                continue;
            }
            match open(instance, address, forwarders) {
                Ok(gateway) => {
                    info!("the relay for names waits at {address}");
                    self.gateways.insert(address, gateway);
                }
                Err(error) => warn!("no relay for names at {address}: {error:#}"),
            }
        }
    }

    /// Waits no more in a room that is the instance's no longer: the sockets alone would keep its namespace, and with it the
    /// interfaces, from going.
    pub fn leave_lost_room(&mut self, instance: &Instance) {
        let room = std::fs::metadata(instance.room()).map_or(0, |room| room.ino());
        if room != self.room {
            self.gateways.clear();
            self.room = room;
        }
    }
}

/// The addresses at which to wait, and who was named to be asked.
fn wanted(state: &State, facts: &Facts) -> BTreeMap<Ipv4Addr, Vec<SocketAddrV4>> {
    let entries = entries(state, facts, false);
    let named = |address: &Ipv4Addr| {
        let fact = facts.addresses.iter().find(|fact| Ipv4Addr::from(fact.address) == *address)?;
        let name = facts.name_of(fact.index);
        state.bridges.iter().find(|bridge| bridge.name == name).map(|bridge| bridge.dns.clone())
    };
    let addresses = relayed(&entries).into_iter().map(Ipv4Addr::from);
    addresses.map(|address| (address, named(&address).unwrap_or_default())).collect()
}

fn open(instance: &Instance, address: Ipv4Addr, forwarders: Vec<SocketAddrV4>) -> Result<Gateway> {
    let at = SocketAddrV4::new(address, DNS);
    let sockets = room::inside(instance, || {
        let datagrams = UdpSocket::bind(at).with_context(|| format!("wait at {at}/udp"))?;
        let connections = TcpListener::bind(at).with_context(|| format!("wait at {at}/tcp"))?;
        Ok((datagrams, connections))
    });
    let (datagrams, connections) = sockets?.context("there is no quiet room to wait in")?;
    datagrams.set_nonblocking(true)?;
    connections.set_nonblocking(true)?;
    let (datagrams, connections) =
        (net::UdpSocket::from_std(datagrams)?, net::TcpListener::from_std(connections)?);
    let mut tasks = JoinSet::new();
    tasks.spawn(answer_datagrams(datagrams, address, forwarders.clone()));
    tasks.spawn(answer_connections(connections, address, forwarders.clone()));
    Ok(Gateway { forwarders, _tasks: tasks })
}

async fn answer_datagrams(socket: net::UdpSocket, gateway: Ipv4Addr, named: Vec<SocketAddrV4>) {
    let (socket, waiting) = (Arc::new(socket), Waiting::new(QUESTIONS));
    let mut buffer = vec![0; LARGEST];
    let mut questions = JoinSet::new();
    loop {
        while questions.try_join_next().is_some() {}
        let Ok((length, guest)) = socket.recv_from(&mut buffer).await else {
            sleep(PAUSE).await;
            continue;
        };
        let question = buffer.get(..length).unwrap_or_default();
        if !is_message(question, false) {
            continue;
        }
        let Some(place) = waiting.take(guest) else { continue };
        let (question, socket, named) = (question.to_vec(), Arc::clone(&socket), named.clone());
        questions.spawn(async move {
            let _place = place;
            if let Some(answer) = ask(&question, &to_ask(gateway, &named)).await {
                // The guest asks again where this is lost.
                let _ = socket.send_to(&answer, guest).await;
            }
        });
    }
}

/// The first good answer, else the last.
async fn ask(question: &[u8], resolvers: &[SocketAddr]) -> Option<Vec<u8>> {
    let mut last = None;
    for resolver in resolvers {
        match timeout(PATIENCE, ask_one(question, *resolver)).await {
            Ok(Ok(answer)) => {
                let code = answer.get(3).map_or(0, |byte| byte & 15);
                if !FAILED.contains(&code) {
                    return Some(answer);
                }
                last = Some(answer);
            }
            Ok(Err(error)) => debug!("{resolver} cannot be asked: {error}"),
            Err(_) => debug!("{resolver} does not answer"),
        }
    }
    last
}

async fn ask_one(question: &[u8], resolver: SocketAddr) -> std::io::Result<Vec<u8>> {
    let any: SocketAddr = if resolver.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = net::UdpSocket::bind(any).await?;
    // From here on it hears nobody else.
    socket.connect(resolver).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; LARGEST];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let answer = buffer.get(..length).unwrap_or_default();
        if is_message(answer, true) && answer.get(..2) == question.get(..2) {
            return Ok(answer.to_vec());
        }
    }
}

/// True for what may be an answer, or a question.
fn is_message(bytes: &[u8], is_answer: bool) -> bool {
    bytes.len() >= HEAD && bytes.get(2).is_some_and(|byte| (byte & 0x80 != 0) == is_answer)
}

async fn answer_connections(listener: net::TcpListener, gateway: Ipv4Addr, named: Vec<SocketAddrV4>) {
    let waiting = Waiting::new(CONNECTIONS);
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((mut stream, guest)) = listener.accept().await else {
            sleep(PAUSE).await;
            continue;
        };
        let Some(place) = waiting.take(guest) else { continue };
        let named = named.clone();
        connections.spawn(async move {
            let _place = place;
            for resolver in to_ask(gateway, &named) {
                if let Ok(Ok(mut onward)) = timeout(PATIENCE, net::TcpStream::connect(resolver)).await {
                    // Whoever breaks it off, or is too slow, ends both halves.
                    let _ = timeout(CONNECTION, copy_bidirectional(&mut stream, &mut onward)).await;
                    return;
                }
            }
        });
    }
}

/// Counts what waits, by guest.
#[derive(Clone, Debug)]
struct Waiting {
    limit: Limit,
    counts: Arc<Mutex<HashMap<SocketAddr, usize>>>,
}

impl Waiting {
    fn new(limit: Limit) -> Self {
        Self { limit, counts: Arc::default() }
    }

    /// A place for one more, unless the guest or all together have as many as they may.
    fn take(&self, guest: SocketAddr) -> Option<Place> {
        // By address: a guest has many ports.
        let guest = SocketAddr::new(guest.ip(), 0);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let own = counts.get(&guest).copied().unwrap_or(0);
        let all: usize = counts.values().sum();
        if own >= self.limit.one || all >= self.limit.all {
            return None;
        }
        counts.insert(guest, own.saturating_add(1));
        Some(Place { guest, counts: Arc::clone(&self.counts) })
    }
}

/// A place, given back with the value.
#[derive(Debug)]
struct Place {
    guest: SocketAddr,
    counts: Arc<Mutex<HashMap<SocketAddr, usize>>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.guest) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(&self.guest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_has_only_so_many_places_and_all_have_only_so_many() {
        let waiting = Waiting::new(Limit { one: 2, all: 3 });
        let guest = |last, port| SocketAddr::from(([10, 0, 0, last], port));
        let first = waiting.take(guest(1, 1000)).unwrap();
        let _second = waiting.take(guest(1, 1001)).unwrap();
        assert!(waiting.take(guest(1, 1002)).is_none(), "another port is the same guest");
        let third = waiting.take(guest(2, 1000)).unwrap();
        assert!(waiting.take(guest(3, 1000)).is_none());
        drop(third);
        assert!(waiting.take(guest(3, 1000)).is_some());
        drop(first);
        assert!(waiting.take(guest(1, 1002)).is_some());
    }

    #[tokio::test]
    async fn a_resolver_that_fails_gives_way_to_the_next_and_a_wrong_answer_is_waited_out() {
        let question = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0";
        let serve = |answers: Vec<[u8; 4]>| async move {
            let server = net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let address = server.local_addr().unwrap();
            tokio::spawn(async move {
                let mut buffer = [0; 64];
                while let Ok((_, from)) = server.recv_from(&mut buffer).await {
                    for head in &answers {
                        let answer = [&head[..], &[0; 8]].concat();
                        server.send_to(&answer, from).await.unwrap();
                    }
                }
            });
            address
        };
        let failing = serve(vec![[0x12, 0x34, 0x81, 2]]).await;
        let good = serve(vec![[0x12, 0x35, 0x81, 0], [0x12, 0x34, 0x01, 0], [0x12, 0x34, 0x81, 0x80]]).await;
        let nobody = "127.0.0.1:9".parse().unwrap();
        let answer = ask(question, &[nobody, failing, good]).await.unwrap();
        assert_eq!(answer[..4], [0x12, 0x34, 0x81, 0x80]);
        assert_eq!(ask(question, &[failing, nobody]).await.unwrap()[3], 2, "the last that there was");
        assert_eq!(ask(question, &[nobody]).await, None);
    }
}
