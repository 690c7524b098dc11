//! `connect`: TCP conversations a second, each of them connect, one request, one answer, close.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    panic::resume_unwind,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{Shutdown, shutdown};
use serde_json::json;
use vmnat_tests::lab::{SERVER, namespace::Namespace};

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

const PORT: u16 = 8_000;
const REQUEST: [u8; 64] = [0x5a; 64];
const ANSWER: [u8; 256] = [0xa5; 256];

/// Measures, and describes what came of it.
pub fn run(forwardings: &[Forwarding], rounds: usize, seconds: u32) -> Result<Section> {
    let inhabited = Inhabited::new(forwardings, Segments::Whole)?;
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

/// Conversations a second. Each one's answer is read to its end. Caller and server share one CPU, which is theirs alone.
fn rate(rig: &Rig, span: Duration) -> Result<f64> {
    beside_server(&rig.peer, cpu::hold, || rig.guest.run(|| cpu::hold().and_then(|()| call(span))))
}

/// Runs `work` while a server in the world's namespace answers, on a thread that `prepare` has prepared.
pub fn beside_server<T: Send>(
    world: &Namespace,
    prepare: fn() -> Result<()>,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    let listener = world.run(|| TcpListener::bind((SERVER, PORT)))?;
    thread::scope(|scope| {
        let serving = scope.spawn(|| prepare().map(|()| serve(&listener)));
        let worked = scope.spawn(work).join().unwrap_or_else(|why| resume_unwind(why));
        shutdown(listener.as_raw_fd(), Shutdown::Both).ok();
        serving.join().unwrap_or_else(|why| resume_unwind(why))?;
        worked
    })
}

/// Converses from where it is called; conversations a second.
pub fn call(span: Duration) -> Result<f64> {
    let (mut done, mut buffer) = (0_u32, Vec::with_capacity(ANSWER.len()));
    let begun = Instant::now();
    while begun.elapsed() < span {
        let mut stream = TcpStream::connect((SERVER, PORT)).context("connecting")?;
        stream.write_all(&REQUEST)?;
        buffer.clear();
        stream.read_to_end(&mut buffer).context("reading the answer")?;
        ensure!(buffer == ANSWER, "an answer of {} bytes", buffer.len());
        done += 1;
    }
    Ok(f64::from(done) / begun.elapsed().as_secs_f64())
}

/// Answers callers one after the other until the listener is shut down, and closes first: the server keeps what TCP remembers of a closed conversation.
fn serve(listener: &TcpListener) {
    let mut request = [0; REQUEST.len()];
    while let Ok((mut stream, _)) = listener.accept() {
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
        "How: a caller in the guest and a server behind the uplink: connect, {} bytes of request, {} bytes of answer, closed by the\n\
         server, and the next. Both are threads on one CPU under SCHED_FIFO, and both of their stacks are in the figures. {seconds} s for each\n\
         row in each of {rounds} rounds, by turns; flows are removed between runs, quotas of a guest are off. Cells are medians with\n\
         quartiles, ratios are of each round's runs.",
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
