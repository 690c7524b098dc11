//! `connect`: TCP conversations a second, each of them connect, one request, one answer, close.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde_json::json;
use vmnat_tests::lab::SERVER;

use crate::{
    cpu, flows,
    forwarding::Forwarding,
    goal::{self, Bound, Goal},
    inhabited::{Inhabited, Segments},
    plot,
    report::{self, Section, table},
    rig::Rig,
    statistics::Series,
};

/// Callers at once, each with a server of its own.
const CALLERS: u16 = 2;

const FIRST_PORT: u16 = 8_000;
const REQUEST: [u8; 64] = [0x5a; 64];
const ANSWER: [u8; 256] = [0xa5; 256];

/// Measures, and describes what came of it.
pub fn run(forwardings: &[Forwarding], rounds: usize, seconds: u32) -> Result<Section> {
    let inhabited = Inhabited::new(forwardings, Segments::Whole)?;
    cpu::prefer_children()?;
    let mut rates = vec![Series::default(); inhabited.rigs.len()];
    for round in 0..rounds {
        println!("connect: round {} of {rounds}", round + 1);
        for at in inhabited.order(round) {
            let (rig, rates) = inhabited.rigs.get(at).zip(rates.get_mut(at)).context("no such rig")?;
            rates.0.push(rate(rig, Duration::from_secs(seconds.into())).with_context(|| rig.name())?);
            forget(rig)?;
        }
    }
    inhabited.stop()?;
    Ok(describe(&inhabited, &rates, rounds, seconds))
}

/// Removes the flows of a run, so that none finds those of another one.
fn forget(rig: &Rig) -> Result<()> {
    if rig.forwarding.is_vmnat() {
        return rig.vmnat(&["flows", "rm", "--all"]).map(drop);
    }
    if rig.forwarding.is_tracked() { rig.host.run(flows::flush_conntrack) } else { Ok(()) }
}

/// Conversations a second. Each one's answer is read to its end.
fn rate(rig: &Rig, span: Duration) -> Result<f64> {
    let stop = AtomicBool::new(false);
    let listeners: Vec<TcpListener> = (0..CALLERS)
        .map(|caller| rig.peer.run(|| TcpListener::bind((SERVER, FIRST_PORT + caller))))
        .collect::<Result<_, _>>()?;
    let begun = Instant::now();
    let done = thread::scope(|scope| {
        for listener in &listeners {
            scope.spawn(|| serve(listener, &stop));
        }
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| scope.spawn(move || rig.guest.run(|| call(FIRST_PORT + caller, begun + span))))
            .collect();
        let done: Result<u64> = callers
            .into_iter()
            .map(|caller| caller.join().unwrap_or_else(|why| std::panic::resume_unwind(why)))
            .sum();
        stop.store(true, Ordering::Relaxed);
        // Each server waits for one more caller.
        for caller in 0..CALLERS {
            rig.peer.run(|| TcpStream::connect((SERVER, FIRST_PORT + caller))).ok();
        }
        done
    })?;
    Ok(done as f64 / begun.elapsed().as_secs_f64())
}

fn call(port: u16, end: Instant) -> Result<u64> {
    let (mut done, mut buffer) = (0, Vec::with_capacity(ANSWER.len()));
    while Instant::now() < end {
        let mut stream = TcpStream::connect((SERVER, port)).context("connecting")?;
        stream.write_all(&REQUEST)?;
        buffer.clear();
        stream.read_to_end(&mut buffer).context("reading the answer")?;
        anyhow::ensure!(buffer == ANSWER, "an answer of {} bytes", buffer.len());
        done += 1;
    }
    Ok(done)
}

/// Answers callers one after the other, and closes first: the server keeps what TCP remembers of a closed conversation.
fn serve(listener: &TcpListener, stop: &AtomicBool) {
    let mut request = [0; REQUEST.len()];
    while let Ok((mut stream, _)) = listener.accept() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        // A caller that fails says so itself.
        if stream.read_exact(&mut request).is_ok() {
            stream.write_all(&ANSWER).ok();
        }
    }
}

fn describe(inhabited: &Inhabited, rates: &[Series], rounds: usize, seconds: u32) -> Section {
    let of = |forwarding: Forwarding| {
        let found = inhabited.rigs.iter().zip(rates).find(|(rig, _)| rig.forwarding == forwarding);
        found.map_or_else(Series::default, |(_, rates)| rates.clone())
    };
    let (masquerade, route) = (of(Forwarding::Masquerade), of(Forwarding::Route));
    let ratio = |own: &Series, other: &Series| own.with(other, |own, other| own / other);
    let (mut rows, mut values, mut bars) = (Vec::new(), Vec::new(), Vec::new());
    for (rig, rates) in inhabited.rigs.iter().zip(rates) {
        let (of_masquerade, of_route) = (ratio(rates, &masquerade), ratio(rates, &route));
        rows.push([rig.name(), rates.written(0), of_masquerade.written(3), of_route.written(3)]);
        values.push(json!({
            "forwarding": rig.forwarding.name(), "conversations_a_second": rates.json(),
            "of_masquerade": of_masquerade.json(), "of_route": of_route.json(),
        }));
        bars.push(plot::Bar::of(rig.name(), rates, rig.forwarding.is_vmnat()));
    }
    let goals = vec![Goal {
        what: "conversations a second: vmnat of nft masquerade".to_owned(),
        ratio: ratio(&of(Forwarding::Port), &masquerade).median(),
        bound: Bound::AtLeast(1.10),
    }];
    let plots = vec![plot::bars(
        "connect",
        "TCP conversations a second",
        "conversations a second, median and quartiles",
        &bars,
    )];
    let how = format!(
        "How: {CALLERS} callers in the guest, each with a server behind the uplink, threads of one process: connect, {} bytes of\n\
         request, {} bytes of answer, closed by the server, and the next. {seconds} s for each row in each of {rounds} rounds, by turns;\n\
         flows are removed between runs, quotas of a guest are off. Cells are medians with quartiles, ratios are of each round's runs.\n\
         Both stacks share the processors with what is measured and cost far more than it does.",
        REQUEST.len(),
        ANSWER.len(),
    );
    let columns = ["TCP", "conversations/s", "× nft masquerade", "× L3 forward"];
    let mut paragraphs = vec![how];
    paragraphs.extend(plots.iter().map(plot::Plot::reference));
    paragraphs.extend([table(&columns, &rows), goal::table_of(&goals, "goal, median ratio")]);
    let data = json!({
        "schema": 1, "machine": report::machine(), "rounds": rounds, "seconds": seconds, "rows": values,
    });
    Section { name: "connect", title: "Connections", text: paragraphs.join("\n\n"), data, goals, plots }
}
