//! What came of verified traffic, in a line, and the judgements over it.

use std::{fmt, time::Duration};

use anyhow::{Result, ensure};

use super::{FreshReport, SequenceReport};

/// What a restart or an upgrade may cost: less than this, of any sequence.
pub const WITHIN: Duration = Duration::from_millis(100);

/// What came of it.
#[derive(Clone, Debug)]
pub struct Report {
    /// How long it went on.
    pub lasted: Duration,
    /// Number of streams.
    pub streams: usize,
    /// How those died that did.
    pub dead: Vec<String>,
    /// Bytes that came back by those that lived, and were what was sent.
    pub bytes: u64,
    /// Datagrams and pings.
    pub sequences: Vec<SequenceReport>,
    /// Flows that opened anew.
    pub fresh: FreshReport,
}

impl Report {
    /// Asserts that no stream died.
    ///
    /// # Errors
    ///
    /// When one did.
    pub fn assert_streams_live(&self) -> Result<()> {
        ensure!(self.dead.is_empty(), "streams died: {}", self.dead.join("; "));
        Ok(())
    }

    /// Asserts that every sequence kept its external port.
    ///
    /// # Errors
    ///
    /// When the echo saw one under several, or was never reached.
    pub fn assert_same_ports(&self) -> Result<()> {
        for sequence in &self.sequences {
            let SequenceReport { name, sent, lost, seen_as, .. } = sequence;
            ensure!(lost < sent, "{name}: never answered");
            ensure!(seen_as.len() < 2, "{name}: seen as {seen_as:?}");
        }
        Ok(())
    }

    /// Asserts that nobody noticed `events` restarts or upgrades: all streams live, the same ports, no sequence lost
    /// [`WITHIN`] or more at a time, nor that much for each event altogether, and every new flow opened.
    ///
    /// # Errors
    ///
    /// When somebody did.
    pub fn assert_unnoticed(&self, events: u32) -> Result<()> {
        self.assert_streams_live()?;
        self.assert_same_ports()?;
        for sequence in &self.sequences {
            let (name, lost, sent) = (&sequence.name, sequence.lost, sequence.sent);
            ensure!(sequence.outage() < WITHIN, "{name}: {:?} lost at a time", sequence.outage());
            ensure!(
                sequence.lost_time() < WITHIN.saturating_mul(events.max(1)),
                "{name}: {lost} of {sent} lost"
            );
        }
        let FreshReport { datagrams, unanswered, failed, .. } = &self.fresh;
        ensure!(failed.is_empty(), "new connections failed: {}", failed.join("; "));
        ensure!(
            *unanswered <= u64::from(events),
            "{unanswered} of {datagrams} new flows of UDP were not answered"
        );
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lasted, streams, dead, bytes, sequences, fresh } = self;
        write!(
            formatter,
            "{:.1} s: {} dead of {streams} TCP streams ({:.1} MB hashed)",
            lasted.as_secs_f32(),
            dead.len(),
            f64::from(u32::try_from(bytes / 1_000).unwrap_or(u32::MAX)) / 1_000.0
        )?;
        for sequence in sequences {
            let SequenceReport { name, sent, lost, gap, seen_as, .. } = sequence;
            write!(
                formatter,
                "; {name}: {lost} of {sent} lost ({} ms at a time), longest gap {} ms",
                sequence.outage().as_millis(),
                gap.as_millis()
            )?;
            if seen_as.len() > 1 {
                write!(formatter, ", {} external ports", seen_as.len())?;
            }
        }
        let FreshReport { datagrams, unanswered, connections, failed, slowest } = fresh;
        write!(
            formatter,
            "; new flows: {unanswered} of {datagrams} by UDP unanswered, {} of {connections} by TCP failed, the slowest {} ms",
            failed.len(),
            slowest.as_millis()
        )
    }
}
