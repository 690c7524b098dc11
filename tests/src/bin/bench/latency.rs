//! `latency`: how long a ping-pong of small messages takes, by UDP and by TCP, alone and beside a bulk stream.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    panic::resume_unwind,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use vmnat_tests::lab::{SERVER, namespace::Namespace};

use crate::{
    cpu,
    forwarding::Forwarding,
    goal::{self, Bound, Goal},
    inhabited::{Inhabited, Segments},
    load::{self, Load},
    plot,
    report::{self, Section, table},
    rig::Rig,
    statistics::Series,
};

const PORT: u16 = 9_000;
const MESSAGE: [u8; 64] = [0x5a; 64];
const PATIENCE: Duration = Duration::from_secs(2);

/// Pings that are not counted: neighbours, caches, the first packet's way.
const WARM_UP: u32 = 200;

/// What is measured of a run: shares of its pings, and what tables call them.
pub const SHARES: [(f64, &str); 3] = [(0.5, "p50"), (0.99, "p99"), (0.999, "p99.9")];

/// A kind of ping-pong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    is_tcp: bool,
    is_loaded: bool,
}

const KINDS: [Kind; 4] = [
    Kind { is_tcp: false, is_loaded: false },
    Kind { is_tcp: true, is_loaded: false },
    Kind { is_tcp: false, is_loaded: true },
    Kind { is_tcp: true, is_loaded: true },
];

impl Kind {
    fn name(self) -> String {
        let protocol = if self.is_tcp { "TCP" } else { "UDP" };
        format!("{protocol}, {}", if self.is_loaded { "beside a bulk stream" } else { "idle" })
    }
}

/// Microseconds of one rig, share by share, round by round.
type Measured = [Series; 3];

/// Measures, and describes what came of it.
pub fn run(forwardings: &[Forwarding], rounds: usize, pings: u32) -> Result<Section> {
    // The first of them once more: what differs between the two is noise.
    let mut twice = vec![Forwarding::Route, Forwarding::Route];
    twice.extend(forwardings.iter().filter(|forwarding| **forwarding != Forwarding::Route));
    let inhabited = Inhabited::new(&twice, Segments::Whole)?;
    let mut all = Vec::new();
    for kind in KINDS {
        let mut measured: Vec<Measured> = inhabited.rigs.iter().map(|_| Measured::default()).collect();
        for round in 0..rounds {
            println!("latency: {}, round {} of {rounds}", kind.name(), round + 1);
            for at in inhabited.order(round) {
                let (rig, shares) =
                    inhabited.rigs.get(at).zip(measured.get_mut(at)).context("no such rig")?;
                let times = Series(times(rig, kind, pings).with_context(|| rig.name())?);
                for ((share, _), series) in SHARES.iter().zip(shares) {
                    series.0.push(times.quantile(*share));
                }
            }
        }
        all.push((kind, measured));
    }
    inhabited.stop()?;
    Ok(describe(&inhabited, &all, rounds, pings))
}

/// Microseconds of each ping.
fn times(rig: &Rig, kind: Kind, pings: u32) -> Result<Vec<f64>> {
    if !kind.is_loaded {
        return exchange(rig, kind.is_tcp, pings);
    }
    let stream = Load { streams: 1, seconds: 60, ..Load::default() };
    let bulk = load::start(&rig.guest, &rig.peer, SERVER, stream)?;
    let times = exchange(rig, kind.is_tcp, pings)?;
    ensure!(bulk.is_flowing()?, "the bulk stream has ended before the pings");
    Ok(times)
}

/// Runs both ends on one CPU, before ordinary processes.
fn exchange(rig: &Rig, is_tcp: bool, pings: u32) -> Result<Vec<f64>> {
    let answerer = Answerer::open(&rig.peer, is_tcp)?;
    thread::scope(|scope| {
        let answering = scope.spawn(move || cpu::hold().and_then(|()| answerer.answer(pings)));
        let asking = scope.spawn(|| rig.guest.run(|| cpu::hold().and_then(|()| ask(is_tcp, pings))));
        let times = asking.join().unwrap_or_else(|why| resume_unwind(why))?;
        answering.join().unwrap_or_else(|why| resume_unwind(why))?;
        Ok(times)
    })
}

/// The world's end.
#[derive(Debug)]
pub enum Answerer {
    /// Of UDP.
    Udp(UdpSocket),
    /// Of TCP.
    Tcp(TcpListener),
}

impl Answerer {
    /// Opens it in a namespace.
    pub fn open(world: &Namespace, is_tcp: bool) -> Result<Self> {
        if is_tcp {
            return Ok(Self::Tcp(world.run(|| TcpListener::bind((SERVER, PORT)))?));
        }
        let socket = world.run(|| UdpSocket::bind((SERVER, PORT)))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self::Udp(socket))
    }

    /// Answers the pings of one call of [`ask`].
    pub fn answer(self, pings: u32) -> Result<()> {
        let mut buffer = [0; MESSAGE.len()];
        match self {
            Self::Udp(socket) => {
                for _ in 0..pings + WARM_UP {
                    let (length, caller) = socket.recv_from(&mut buffer).context("a ping is lost")?;
                    socket.send_to(buffer.get(..length).unwrap_or_default(), caller)?;
                }
            }
            Self::Tcp(listener) => {
                let (mut stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                for _ in 0..pings + WARM_UP {
                    stream.read_exact(&mut buffer).context("a ping is lost")?;
                    stream.write_all(&buffer)?;
                }
            }
        }
        Ok(())
    }
}

/// Sends pings from where it is called; microseconds of each.
pub fn ask(is_tcp: bool, pings: u32) -> Result<Vec<f64>> {
    let mut buffer = [0; MESSAGE.len()];
    if is_tcp {
        let mut stream = TcpStream::connect((SERVER, PORT)).context("connecting")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        return take_times(pings, || {
            stream.write_all(&MESSAGE)?;
            stream.read_exact(&mut buffer).context("a pong is lost")
        });
    }
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.connect((SERVER, PORT))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    take_times(pings, || {
        socket.send(&MESSAGE)?;
        ensure!(socket.recv(&mut buffer).context("a pong is lost")? == MESSAGE.len(), "another answer");
        Ok(())
    })
}

fn take_times(pings: u32, mut ping: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    for _ in 0..WARM_UP {
        ping()?;
    }
    let mut times = Vec::with_capacity(pings as usize);
    for _ in 0..pings {
        let begun = Instant::now();
        ping()?;
        times.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    Ok(times)
}

fn describe(inhabited: &Inhabited, all: &[(Kind, Vec<Measured>)], rounds: usize, pings: u32) -> Section {
    let how = format!(
        "How: {} bytes to and fro between the guest and a host behind the uplink, {pings} times in each of {rounds} rounds, by turns; both\n\
         ends are threads on one CPU under SCHED_FIFO, so no other process and no interrupt of another CPU is in the figures, only what\n\
         the kernel does on the way. The bulk stream is one TCP stream of iperf3 from the guest. Microseconds: the median of the rounds,\n\
         with quartiles. Plain L3 forwarding has two rigs: what differs between them is noise, and the goal's bound is the upper\n\
         quartile of their ratio, the larger of each round by the smaller.",
        MESSAGE.len()
    );
    let mut paragraphs = vec![how];
    let (mut rows_json, mut goals, mut plots): (Vec<Value>, _, _) = (Vec::new(), Vec::new(), Vec::new());
    for (kind, measured) in all {
        let Some([p50, p99, _]) = measured.first() else { continue };
        let mut rows = Vec::new();
        for (at, (rig, own)) in inhabited.rigs.iter().zip(measured).enumerate() {
            let name = if at == 1 { format!("{}, once more", rig.name()) } else { rig.name() };
            let ratio = |own: &Series, other: &Series| own.with(other, |own, other| own / other);
            let [own50, own99, own999] = own;
            let (of50, of99) = (ratio(own50, p50), ratio(own99, p99));
            rows.push([
                name.clone(),
                own50.written(1),
                own99.written(1),
                own999.written(1),
                of50.written(3),
                of99.written(3),
            ]);
            let shares =
                SHARES.iter().zip(own).map(|((_, name), series)| ((*name).to_owned(), series.json()));
            rows_json.push(json!({
                "kind": kind.name(), "forwarding": name, "microseconds": shares.collect::<serde_json::Map<_, _>>(),
                "p50_of_route": of50.json(), "p99_of_route": of99.json(),
            }));
        }
        let columns = [&kind.name()[..], "p50 µs", "p99 µs", "p99.9 µs", "p50 × L3", "p99 × L3"];
        paragraphs.push(table(&columns, &rows));
        let bars = inhabited.rigs.iter().zip(measured).enumerate().filter(|(at, _)| *at != 1);
        let bars: Vec<_> = bars
            .map(|(_, (rig, [_, own, _]))| plot::Bar::of(rig.name(), own, rig.forwarding.is_vmnat()))
            .collect();
        if *kind == KINDS[0] {
            goals.extend(judge(inhabited, measured));
            plots.push(plot::bars(
                "latency",
                "UDP ping-pong, idle: p99",
                "microseconds, median and quartiles of the rounds",
                &bars,
            ));
        }
    }
    paragraphs.splice(1..1, plots.iter().map(plot::Plot::reference));
    paragraphs.push(goal::table_of(&goals, "goal, median ratio"));
    let data = json!({
        "schema": 1, "machine": report::machine(), "rounds": rounds, "pings": pings, "rows": rows_json,
    });
    Section { name: "latency", title: "Latency", text: paragraphs.join("\n\n"), data, goals, plots }
}

/// vmnat's p99 by UDP, which may be above that of plain forwarding by as much as two of those differ.
fn judge(inhabited: &Inhabited, measured: &[Measured]) -> Option<Goal> {
    let [[_, route, _], [_, again, _], ..] = measured else { return None };
    let noise = route.with(again, |one, other| one.max(other) / one.min(other)).quantile(0.75);
    let own = inhabited.rigs.iter().zip(measured).find(|(rig, _)| rig.forwarding == Forwarding::Port);
    let (_, [_, own, _]) = own?;
    Some(Goal {
        what: "UDP ping-pong, idle, p99: vmnat of L3 forward, within noise".to_owned(),
        ratio: own.with(route, |own, route| own / route).median(),
        bound: Bound::AtMost(noise),
    })
}
