//! Flows that open anew all the while, by UDP and TCP, from a guest and to a guest.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};

use super::{
    super::{SERVER_ECHO, client::PATIENCE, namespace::Namespace},
    Baton, numbered,
};

/// Between two new flows of a kind, where they are answered at once.
const PERIOD: Duration = Duration::from_millis(50);

/// What came of new flows.
#[derive(Clone, Debug, Default)]
pub struct FreshReport {
    /// UDP flows of one datagram.
    pub datagrams: u64,
    /// Of those, how many were not answered: their one datagram was lost.
    pub unanswered: u64,
    /// TCP connections with a word each way.
    pub connections: u64,
    /// Of those, what failed, and how.
    pub failed: Vec<String>,
    /// The longest that one took: a lost segment is sent again after a second.
    pub slowest: Duration,
}

/// New flows, in the background.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    threads: Vec<JoinHandle<Result<FreshReport>>>,
}

impl Fresh {
    /// From a guest to the world, and from the world to a door of the host.
    pub(super) fn start(guest: &Namespace, world: &Namespace, door: &str, end: &Baton) -> Self {
        let mut threads = Vec::new();
        for (from, to) in [(guest, SERVER_ECHO), (world, door)] {
            let (end, to) = (end.clone(), to.to_owned());
            threads.push(from.spawn(move || keep_opening(&to, &end)));
        }
        Self { threads }
    }

    pub(super) fn finish(self) -> Result<FreshReport> {
        let mut sum = FreshReport::default();
        for thread in self.threads {
            let part = thread.join().map_err(|_| anyhow!("new flows panicked"))??;
            sum.datagrams += part.datagrams;
            sum.unanswered += part.unanswered;
            sum.connections += part.connections;
            sum.failed.extend(part.failed);
            sum.slowest = sum.slowest.max(part.slowest);
        }
        Ok(sum)
    }
}

fn keep_opening(to: &str, end: &Baton) -> Result<FreshReport> {
    let to: SocketAddr = to.parse()?;
    let mut report = FreshReport::default();
    while !end.is_over() {
        report.datagrams += 1;
        if !numbered::ask(to, report.datagrams)? {
            report.unanswered += 1;
        }
        let began = Instant::now();
        report.connections += 1;
        if let Err(error) = call(to, report.connections) {
            report.failed.push(format!("{error:#}"));
        }
        report.slowest = report.slowest.max(began.elapsed());
        thread::sleep(PERIOD);
    }
    Ok(report)
}

/// A connection with a number each way.
fn call(to: SocketAddr, number: u64) -> Result<()> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut stream = BufReader::new(stream);
    stream.read_line(&mut String::new())?;
    stream.get_mut().write_all(&number.to_be_bytes())?;
    let mut answer = [0; 8];
    stream.read_exact(&mut answer)?;
    ensure!(u64::from_be_bytes(answer) == number, "another answer than what was sent");
    Ok(())
}
