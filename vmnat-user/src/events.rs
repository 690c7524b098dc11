//! Events: what an operator should hear of without asking, found in counters that move.
//!
//! The agent looks at each expiry, logs an event at most once a minute, and writes those of the last minute where `status`
//! finds them. What was counted before its first look is no event.

use std::{collections::BTreeMap, fs, io, net::Ipv4Addr};

use anyhow::{Context as _, Result};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use vmnat_common::Outcome;

use crate::{
    guests::{self, GuestRow},
    leases::Directory,
    paths::Instance,
    report,
    state::{GuestQuotas, State},
    tables::Tables,
    whole_file::Staged,
};

/// For so many seconds an event is shown, and not logged again.
pub const RECENT: u64 = 60;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// A guest has as many flows as it may.
    FlowQuota,
    /// A guest has as many half-open flows as it may.
    HalfOpenQuota,
    /// A guest opens flows faster than it may.
    RateQuota,
    /// The flow table is full.
    FlowTableFull,
    /// Somebody has emptied the flow table.
    FlowTableEmptied,
    /// No external port was free.
    PortsExhausted,
    /// A socket of the host has taken a guest's external port.
    PortTaken,
}

impl Reason {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FlowQuota => "flow_quota",
            Self::HalfOpenQuota => "half_open_quota",
            Self::RateQuota => "rate_quota",
            Self::FlowTableFull => "flow_table_full",
            Self::FlowTableEmptied => "flow_table_emptied",
            Self::PortsExhausted => "ports_exhausted",
            Self::PortTaken => "port_taken",
        }
    }
}

/// The quotas of a guest, in the order of [`GuestRow::refused`].
const QUOTAS: [Reason; 3] = [Reason::FlowQuota, Reason::HalfOpenQuota, Reason::RateQuota];

/// An event, from its first moment on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// What happened.
    pub reason: Reason,
    /// To which guest.
    pub guest: Option<Ipv4Addr>,
    /// What was refused, or ended, since it began.
    pub count: u64,
    /// Second of `CLOCK_BOOTTIME` at which it was last seen to happen.
    pub last: u64,
    /// The sentence for it.
    pub text: String,
}

/// What an event is told apart by.
type What = (Reason, Option<Ipv4Addr>);

/// Every counter, by what its movement means.
type Counts = BTreeMap<What, u64>;

/// What the counters say at one moment.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    guests: Vec<GuestRow>,
    table_full: u64,
    exhausted: u64,
}

impl Reading {
    /// Reads the counters.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn take(tables: &Tables) -> Result<Self> {
        let outcomes = tables.outcomes()?;
        let of = |outcome: Outcome| outcomes.get(outcome.index() as usize).copied().unwrap_or(0);
        Ok(Self {
            guests: guests::list(tables, &Directory::default())?,
            table_full: of(Outcome::FlowTableFull),
            exhausted: of(Outcome::PortsExhausted),
        })
    }

    fn counts(&self) -> Counts {
        let quotas = self.guests.iter().flat_map(|guest| {
            let counts = QUOTAS.iter().zip(guest.refused);
            counts.map(|(reason, count)| ((*reason, Some(guest.address)), u64::from(count)))
        });
        let shared = [(Reason::FlowTableFull, self.table_full), (Reason::PortsExhausted, self.exhausted)];
        quotas.chain(shared.map(|(reason, count)| ((reason, None), count))).collect()
    }
}

/// An event while it goes on.
#[derive(Clone, Debug)]
struct Ongoing {
    event: Event,
    /// When it was last logged.
    told: u64,
}

/// Compares counters with those of the last look.
#[derive(Debug, Default)]
pub struct Watcher {
    before: Option<Counts>,
    ongoing: BTreeMap<What, Ongoing>,
    changed: bool,
}

impl Watcher {
    /// True when something has happened, or has faded, that was not yet saved.
    #[must_use]
    pub const fn has_news(&self) -> bool {
        self.changed
    }

    /// Notes what has moved, at second `now`.
    pub fn observe(&mut self, reading: &Reading, now: u64) {
        let counts = reading.counts();
        let moved: Vec<_> = self
            .before
            .iter()
            .flat_map(|before| {
                counts.iter().filter_map(|(what, count)| {
                    let earlier = before.get(what).copied().unwrap_or(0);
                    // A counter that has become smaller began anew.
                    let more = count.checked_sub(earlier).unwrap_or(*count);
                    (more > 0).then_some((*what, more))
                })
            })
            .collect();
        self.before = Some(counts);
        for ((reason, guest), more) in &moved {
            self.note(*reason, *guest, *more, now);
        }
        self.forget(now);
    }

    /// Notes something that has happened.
    pub fn note(&mut self, reason: Reason, guest: Option<Ipv4Addr>, count: u64, now: u64) {
        self.changed = true;
        let fresh = || {
            let event = Event { reason, guest, count: 0, last: now, text: String::new() };
            Ongoing { event, told: 0 }
        };
        let ongoing = self.ongoing.entry((reason, guest)).or_insert_with(fresh);
        ongoing.event.count = ongoing.event.count.saturating_add(count);
        ongoing.event.last = now;
    }

    fn forget(&mut self, now: u64) {
        let before = self.ongoing.len();
        self.ongoing.retain(|_, ongoing| is_recent(&ongoing.event, now));
        self.changed |= self.ongoing.len() != before;
    }

    /// Writes the sentences, and returns the events that are to be logged.
    pub fn tell(&mut self, state: &State, directory: &Directory, now: u64) -> Vec<Event> {
        let mut told = Vec::new();
        for ongoing in self.ongoing.values_mut() {
            let name = ongoing.event.guest.and_then(|guest| directory.name_of(guest));
            ongoing.event.text = sentence(&ongoing.event, name, &state.quotas, state.flows);
            let is_due = ongoing.told == 0 || now.saturating_sub(ongoing.told) >= RECENT;
            if is_due {
                ongoing.told = now;
                told.push(ongoing.event.clone());
            }
        }
        told
    }

    /// Writes the events of the last minute where `status` finds them, if they have changed.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn save(&mut self, instance: &Instance) -> Result<()> {
        if !std::mem::take(&mut self.changed) {
            return Ok(());
        }
        let events: Vec<&Event> = self.ongoing.values().map(|ongoing| &ongoing.event).collect();
        let path = instance.events();
        Staged::document(&path, &events).with_context(|| format!("write {}", path.display()))?.commit()
    }
}

/// The events of the last minute.
///
/// # Errors
/// When there is a file that cannot be read.
pub fn recent(instance: &Instance) -> Result<Vec<Event>> {
    let path = instance.events();
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let mut events: Vec<Event> =
        serde_json::from_str(&text).with_context(|| format!("understand {}", path.display()))?;
    let now = now()?;
    events.retain(|event| is_recent(event, now));
    Ok(events)
}

/// Second of `CLOCK_BOOTTIME`.
///
/// # Errors
/// When the kernel does not say.
pub fn now() -> Result<u64> {
    let seconds = clock_gettime(ClockId::CLOCK_BOOTTIME).context("read the clock")?.tv_sec();
    Ok(u64::try_from(seconds).unwrap_or(0))
}

const fn is_recent(event: &Event, now: u64) -> bool {
    now.saturating_sub(event.last) < RECENT
}

fn sentence(event: &Event, name: Option<&str>, quotas: &GuestQuotas, flows: u32) -> String {
    let guest = match (event.guest, name) {
        (None, _) => "a guest".to_owned(),
        (Some(guest), None) => format!("guest {guest}"),
        (Some(guest), Some(name)) => format!("guest {guest} ({name})"),
    };
    let count = report::number(event.count);
    let number = |limit: u32| report::number(limit.into());
    let reached = |what: String| format!("{guest} has reached its quota of {what}: {count} refused");
    match event.reason {
        Reason::FlowQuota => reached(format!("{} flows", number(quotas.flows))),
        Reason::HalfOpenQuota => reached(format!("{} half-open flows", number(quotas.half_open))),
        Reason::RateQuota => reached(format!("{} new flows a second", number(quotas.rate))),
        Reason::FlowTableFull => {
            format!("the flow table, which is for {} flows, is full: {count} new ones refused", number(flows))
        }
        Reason::FlowTableEmptied => {
            "another program has emptied the flow table: conversations go on where they are heard of, by the ports that they had".to_owned()
        }
        Reason::PortsExhausted => format!("no external port was free: {count} new flows refused"),
        Reason::PortTaken => {
            format!(
                "a socket of the host has taken an external port of {guest}, which gets another: {count} flows ended"
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{leases::LeaseFact, state::HookMode};

    const GUEST: [u8; 4] = [192, 168, 122, 10];

    fn reading(refused: [u32; 3], exhausted: u64) -> Reading {
        let guest = GuestRow { address: GUEST.into(), name: None, flows: 0, half_open: 0, refused };
        Reading { guests: vec![guest], table_full: 0, exhausted }
    }

    fn told(watcher: &mut Watcher, now: u64) -> Vec<String> {
        let directory = Directory::of(&[LeaseFact::named("web", GUEST)]);
        let events = watcher.tell(&State::new(HookMode::Tcx), &directory, now);
        events.into_iter().map(|event| event.text).collect()
    }

    #[test]
    fn what_was_counted_before_the_first_look_is_no_event() {
        let mut watcher = Watcher::default();
        watcher.observe(&reading([7, 0, 0], 3), 100);
        watcher.observe(&reading([7, 0, 0], 3), 105);
        assert!(!watcher.has_news() && told(&mut watcher, 105).is_empty());
    }

    #[test]
    fn an_event_is_told_once_a_minute_and_goes_on_counting() {
        let mut watcher = Watcher::default();
        watcher.observe(&Reading::default(), 100);
        watcher.observe(&reading([1000, 0, 0], 0), 105);
        let first = "guest 192.168.122.10 (web) has reached its quota of 16,384 flows: 1,000 refused";
        assert_eq!(told(&mut watcher, 105), [first]);
        watcher.observe(&reading([1234, 0, 0], 0), 110);
        assert!(told(&mut watcher, 110).is_empty());
        let key = (Reason::FlowQuota, Some(GUEST.into()));
        assert_eq!(watcher.ongoing[&key].event.text, first.replace("1,000", "1,234"), "status knows");
        watcher.observe(&reading([1235, 0, 0], 0), 165);
        assert_eq!(told(&mut watcher, 165), [first.replace("1,000", "1,235")]);
        watcher.observe(&reading([1235, 0, 0], 0), 300);
        assert!(watcher.ongoing.is_empty() && told(&mut watcher, 300).is_empty());
    }

    #[test]
    fn each_reason_and_what_all_share_have_their_own_event() {
        let mut watcher = Watcher::default();
        watcher.observe(&reading([5, 5, 5], 0), 100);
        watcher.observe(&reading([5, 6, 2], 9), 105);
        assert_eq!(
            told(&mut watcher, 105),
            [
                "guest 192.168.122.10 (web) has reached its quota of 1,024 half-open flows: 1 refused",
                "guest 192.168.122.10 (web) has reached its quota of 1,000 new flows a second: 2 refused",
                "no external port was free: 9 new flows refused",
            ]
        );
    }

    #[test]
    fn reasons_are_written_as_they_are_named() {
        for reason in QUOTAS.into_iter().chain([
            Reason::FlowTableFull,
            Reason::FlowTableEmptied,
            Reason::PortsExhausted,
            Reason::PortTaken,
        ]) {
            assert_eq!(serde_json::to_string(&reason).unwrap(), format!("\"{}\"", reason.name()));
        }
    }
}
