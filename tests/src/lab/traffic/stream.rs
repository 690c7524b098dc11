//! A TCP stream to an echo, both directions full at a time and hashed.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use sha2::{Digest as _, Sha256};

use super::{
    super::{client, namespace::Namespace},
    Baton,
};

/// What is sent at once; the stream carries some 200 kB each second.
const BLOCK: usize = 2_048;

/// Between two blocks.
const PERIOD: Duration = Duration::from_millis(10);

/// How long a stream may stand still before it counts as dead. TCP doubles its pauses: after an outage of some seconds
/// it waits as long again.
const STANDSTILL: Duration = Duration::from_secs(30);

/// A stream that goes on in the background.
#[derive(Debug)]
pub(super) struct Stream {
    name: String,
    thread: JoinHandle<Result<u64>>,
}

impl Stream {
    /// Connects.
    pub(super) fn start(name: String, from: &Namespace, to: &str, baton: Baton) -> Result<Self> {
        let stream = client::connect(from, None, to, client::PATIENCE)
            .with_context(|| format!("opening the stream {name}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(STANDSTILL))?;
        stream.set_write_timeout(Some(STANDSTILL))?;
        let mut reader = BufReader::new(stream);
        reader
            .read_line(&mut String::new())
            .with_context(|| format!("the first line of the stream {name}"))?;
        let seed =
            name.bytes().fold(7, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)));
        Ok(Self { name, thread: thread::spawn(move || converse(reader, seed, &baton)) })
    }

    /// Waits for its end: the bytes that came back, or how it died.
    pub(super) fn finish(self) -> Result<Result<u64, String>> {
        let outcome = self.thread.join().map_err(|_| anyhow!("the stream {} panicked", self.name))?;
        Ok(outcome.map_err(|error| format!("{}: {error:#}", self.name)))
    }
}

/// Writes without waiting for what comes back, so that there is always something under way in both directions; at the
/// end, all that came back must be all that was sent.
fn converse(mut reader: BufReader<TcpStream>, seed: u64, baton: &Baton) -> Result<u64> {
    let writer = reader.get_ref().try_clone()?;
    thread::scope(|scope| {
        let sending = scope.spawn(|| send(writer, seed, baton));
        let received = receive(&mut reader, baton);
        if received.is_err() {
            // Wakes the sender, which would wait for the room that nobody makes.
            reader.get_ref().shutdown(Shutdown::Both).ok();
        }
        let sent = sending.join().map_err(|_| anyhow!("the sender panicked"))?;
        let (received, sent) = (received?, sent?);
        ensure!(received == sent, "{} bytes were sent and {} came back, or others", sent.0, received.0);
        Ok(received.0)
    })
}

/// Bytes, and their hash.
type Sum = (u64, Vec<u8>);

fn send(mut writer: TcpStream, mut state: u64, baton: &Baton) -> Result<Sum> {
    let (mut hash, mut sent, mut block) = (Sha256::new(), 0, [0; BLOCK]);
    while !baton.is_over() {
        for bytes in block.as_chunks_mut::<8>().0 {
            // xorshift: no two blocks are alike.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *bytes = state.to_le_bytes();
        }
        writer.write_all(&block).context("writing into the stream")?;
        hash.update(block);
        sent += u64::try_from(BLOCK)?;
        thread::sleep(PERIOD);
    }
    // The echo ends when it has given back the last byte.
    writer.shutdown(Shutdown::Write).context("closing the stream")?;
    Ok((sent, hash.finalize().to_vec()))
}

fn receive(reader: &mut BufReader<TcpStream>, baton: &Baton) -> Result<Sum> {
    let (mut hash, mut received, mut buffer) = (Sha256::new(), 0, [0; 4 * BLOCK]);
    loop {
        let length = reader.read(&mut buffer).context("reading back from the stream")?;
        if length == 0 {
            return Ok((received, hash.finalize().to_vec()));
        }
        hash.update(buffer.get(..length).unwrap_or_default());
        received += u64::try_from(length)?;
        baton.advance();
    }
}
