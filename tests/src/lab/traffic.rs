//! Verified traffic: all that a network may notice while vmnat is being worked on.
//!
//! Streams whose every byte is hashed, from guests to the world and from the world to a guest by a port forward; numbered
//! datagrams and pings at a fixed rate; and flows that open anew. What is lost is told by numbers and not by a clock, so
//! that a loaded machine is not taken for a fault of vmnat's.

mod fresh;
mod numbered;
mod report;
mod stream;

use std::{
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;

use self::{fresh::Fresh, numbered::Sequence, stream::Stream};
pub use self::{
    fresh::FreshReport,
    numbered::SequenceReport,
    report::{Report, WITHIN},
};
use super::{EXTERNAL, Lab, SERVER, SERVER_ECHO, guest_address, service::ECHO, wait_until};

/// The external port of the forwards that [`Traffic::start`] adds, TCP and UDP, to the echo of guest 1.
pub const FORWARDED: u16 = 7100;

/// Between two datagrams of a sequence.
pub const PERIOD: Duration = Duration::from_millis(5);

/// Between two pings of a sequence.
const PING_PERIOD: Duration = Duration::from_millis(20);

/// Tells the conversations when to end, and counts what one of them has brought.
#[derive(Clone, Debug, Default)]
struct Baton {
    stop: Arc<AtomicBool>,
    moved: Arc<AtomicU64>,
}

impl Baton {
    /// The same end, with a count of its own.
    fn fork(&self) -> Self {
        Self { stop: Arc::clone(&self.stop), moved: Arc::default() }
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn advance(&self) {
        self.moved.fetch_add(1, Ordering::Relaxed);
    }
}

/// Conversations that go on until the value is finished or goes.
#[derive(Debug)]
pub struct Traffic {
    end: Baton,
    batons: Vec<Baton>,
    began: Instant,
    streams: Vec<Stream>,
    sequences: Vec<Sequence>,
    fresh: Fresh,
}

impl Traffic {
    /// Adds the port forwards, and has the lab's first two guests and the world talk: two streams, datagrams and pings of
    /// each guest; two streams and datagrams from the world to guest 1; new flows of guest 1 and of the world, over UDP
    /// and TCP.
    ///
    /// # Errors
    ///
    /// When something is out of reach from the beginning.
    pub fn start(lab: &Lab) -> Result<Self> {
        for protocol in ["tcp", "udp"] {
            let forward = format!("{FORWARDED}:{}:{ECHO}/{protocol}", guest_address(1));
            lab.vmnat_ok(&["dnat", "add", &forward])?;
        }
        Self::over_forwards(lab)
    }

    /// As [`Traffic::start`], where the port forwards of an earlier one are there.
    ///
    /// # Errors
    ///
    /// As [`Traffic::start`].
    pub fn over_forwards(lab: &Lab) -> Result<Self> {
        let end = Baton::default();
        let mut batons = Vec::new();
        let mut fork = || {
            let baton = end.fork();
            batons.push(baton.clone());
            baton
        };
        let door = format!("{EXTERNAL}:{FORWARDED}");
        let (mut streams, mut sequences) = (Vec::new(), Vec::new());
        for (guest, number) in lab.guests.iter().zip(1..=2) {
            for half in ["a", "b"] {
                streams.push(Stream::start(format!("guest {number} {half}"), guest, SERVER_ECHO, fork())?);
            }
            sequences.push(Sequence::datagrams(
                format!("UDP of guest {number}"),
                guest,
                SERVER_ECHO,
                fork(),
            )?);
            sequences.push(Sequence::pings(format!("pings of guest {number}"), guest, SERVER, fork())?);
        }
        for half in ["a", "b"] {
            streams.push(Stream::start(format!("port forward {half}"), &lab.world, &door, fork())?);
        }
        sequences.push(Sequence::datagrams("UDP by the port forward".to_owned(), &lab.world, &door, fork())?);
        let fresh = Fresh::start(lab.guest(1)?, &lab.world, &door, &end);
        let traffic = Self { end, batons, began: Instant::now(), streams, sequences, fresh };
        traffic.moves(Duration::from_secs(20))?;
        Ok(traffic)
    }

    /// Waits until every stream, sequence and ping has moved on from where it is now.
    ///
    /// # Errors
    ///
    /// When one of them has not within `patience`.
    pub fn moves(&self, patience: Duration) -> Result<()> {
        let before: Vec<u64> = self.batons.iter().map(|baton| baton.moved.load(Ordering::Relaxed)).collect();
        wait_until("each conversation has moved on", patience, || {
            let mut pairs = self.batons.iter().zip(&before);
            Ok(pairs.all(|(baton, before)| baton.moved.load(Ordering::Relaxed) > *before))
        })
    }

    /// Ends all, lets what is under way arrive, and tells what became of it.
    ///
    /// # Errors
    ///
    /// When a conversation's own machinery fails, which says nothing about vmnat.
    pub fn finish(mut self) -> Result<Report> {
        self.end.stop.store(true, Ordering::Relaxed);
        let lasted = self.began.elapsed();
        let streams = mem::take(&mut self.streams);
        let sequences = mem::take(&mut self.sequences);
        let fresh = mem::take(&mut self.fresh);
        let (mut bytes, mut dead, number) = (0, Vec::new(), streams.len());
        for stream in streams {
            match stream.finish()? {
                Ok(passed) => bytes += passed,
                Err(why) => dead.push(why),
            }
        }
        let sequences = sequences.into_iter().map(Sequence::finish).collect::<Result<_>>()?;
        Ok(Report { lasted, streams: number, dead, bytes, sequences, fresh: fresh.finish()? })
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.end.stop.store(true, Ordering::Relaxed);
    }
}
