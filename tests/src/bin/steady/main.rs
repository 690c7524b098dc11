//! Steady traffic through what is being worked on: numbered datagrams and one TCP stream, both echoed, and every byte
//! compared. Runs in the machine of the packages' tests, which has nothing of this kind.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;

/// Between two datagrams.
const BEAT: Duration = Duration::from_millis(20);
/// An answer that takes longer is lost.
const LATE: Duration = Duration::from_secs(3);
/// A block of the stream.
const BLOCK: usize = 4_096;
/// A stream that is silent for so long is dead: an emulated machine on a busy host is late by many seconds.
const PATIENCE: Duration = Duration::from_mins(1);

/// Steady traffic
#[derive(Parser)]
enum Args {
    /// Echo datagrams and streams
    Serve { at: SocketAddr },
    /// Send until a file is there, and print what came back
    Send { to: SocketAddr, until: PathBuf },
}

fn main() -> Result<()> {
    match Args::parse() {
        Args::Serve { at } => serve(at),
        Args::Send { to, until } => send(to, &until),
    }
}

fn serve(at: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(at)?;
    thread::spawn(move || -> Result<()> {
        let mut buffer = [0; 2_048];
        loop {
            let (size, from) = socket.recv_from(&mut buffer)?;
            // A guest may be out of reach for a moment.
            let _ = socket.send_to(buffer.get(..size).unwrap_or_default(), from);
        }
    });
    for stream in TcpListener::bind(at)?.incoming() {
        let mut stream = stream?;
        thread::spawn(move || std::io::copy(&mut stream.try_clone()?, &mut stream));
    }
    Ok(())
}

/// Prints `sent N answered N run N gap_ms N blocks N`, and fails when the stream died or brought another byte. `run` are the
/// datagrams that went lost in a row, `gap_ms` is the longest time without an answer: on a busy machine the sender waits too.
fn send(to: SocketAddr, until: &Path) -> Result<()> {
    let end = until.to_owned();
    let stream = thread::spawn(move || converse(to, &end));
    let datagrams = count(to, until)?;
    let Ok(stream) = stream.join() else { bail!("the stream's thread panicked") };
    let blocks = stream.with_context(|| format!("the stream, beside datagrams {datagrams}"))?;
    println!("{datagrams} blocks {blocks}");
    Ok(())
}

fn count(to: SocketAddr, until: &Path) -> Result<String> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(BEAT))?;
    // Of each datagram, by its number, whether it came back.
    let mut answered: Vec<bool> = Vec::new();
    let mut gap = Duration::ZERO;
    let mut last = Instant::now();
    let mut next = Instant::now();
    loop {
        let is_over = until.exists();
        if !is_over && Instant::now() >= next {
            let _ = socket.send(&u64::try_from(answered.len())?.to_be_bytes());
            answered.push(false);
            next = Instant::now().checked_add(BEAT).unwrap_or(next);
        }
        let mut answer = [0; 8];
        if let Ok(8) = socket.recv(&mut answer) {
            let number = usize::try_from(u64::from_be_bytes(answer))?;
            *answered.get_mut(number).context("an answer to what was never sent")? = true;
            gap = gap.max(last.elapsed());
            last = Instant::now();
        } else if is_over && (last.elapsed() > LATE || answered.iter().all(|came| *came)) {
            break;
        }
    }
    let run = answered.split(|came| *came).map(<[bool]>::len).max().unwrap_or_default();
    let (sent, came) = (answered.len(), answered.iter().filter(|came| **came).count());
    Ok(format!("sent {sent} answered {came} run {run} gap_ms {}", gap.as_millis()))
}

fn converse(to: SocketAddr, until: &Path) -> Result<u64> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let (mut blocks, mut seed) = (0_u64, 1_u64);
    let (mut block, mut echo) = ([0; BLOCK], [0; BLOCK]);
    while !until.exists() {
        for byte in &mut block {
            // A linear congruential generator: no two blocks are alike.
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            [*byte, ..] = seed.to_be_bytes();
        }
        stream.write_all(&block)?;
        stream.read_exact(&mut echo)?;
        ensure!(echo == block, "block {blocks} came back with other bytes");
        blocks = blocks.saturating_add(1);
        thread::sleep(Duration::from_millis(5));
    }
    Ok(blocks)
}
