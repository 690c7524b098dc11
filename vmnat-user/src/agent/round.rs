//! What the agent does at each expiry beside it: events are found, counts that have
//! drifted put right, ports given back that the host has taken, and mappings written down.

use std::time::{Duration, Instant};

use anyhow::Result;
use tracing::{debug, info, warn};

use crate::{
    events::{self, Reading, Reason, Watcher},
    flows::{self, Expired},
    guests::{self, Census, Ledger},
    leases::Directory,
    paths::Instance,
    reclaim::{self, Taken},
    rest::Snapshot,
    state::{self, Lock},
    tables::Tables,
};

/// Between two comparisons of the flow table with what the programs have counted.
const AUDIT: Duration = Duration::from_mins(1);

/// What is kept from one round to the next.
#[derive(Debug)]
pub(super) struct Round {
    watcher: Watcher,
    ledger: Ledger,
    audited: Instant,
    /// Since when the flow table lacks its sentinel.
    emptied: Option<Instant>,
    /// What was written, and when.
    written: Option<(Snapshot, Instant)>,
}

impl Round {
    pub(super) fn new() -> Self {
        Self {
            watcher: Watcher::default(),
            ledger: Ledger::default(),
            audited: Instant::now(),
            emptied: None,
            written: None,
        }
    }

    /// Lets flows expire, and looks at what the counters say.
    pub(super) fn go(&mut self, instance: &Instance, tables: &Tables) {
        if let Err(error) = self.watch(tables) {
            warn!("cannot look after the flow table: {error:#}");
        }
        if let Err(error) = self.expire(tables) {
            warn!("cannot look for expired flows: {error:#}");
        }
        if let Err(error) = self.reclaim(instance, tables) {
            warn!("cannot give ports back to the host: {error:#}");
        }
        if let Err(error) = self.write_down(instance, tables) {
            warn!("freed ports will not rest when the maps are lost: {error:#}");
        }
        if let Err(error) = self.look(instance, tables) {
            warn!("cannot look for events: {error:#}");
        }
    }

    /// Notes that somebody has emptied the flow table. For as long as a freed port rests, the programs take up again what they hear of
    /// conversations from either side; then all is as before.
    fn watch(&mut self, tables: &Tables) -> Result<()> {
        if !tables.is_emptied()? {
            self.emptied = None;
            return Ok(());
        }
        let since = *self.emptied.get_or_insert_with(Instant::now);
        self.watcher.note(Reason::FlowTableEmptied, None, 1, events::now()?);
        let settings = tables.settings()?;
        let rest = settings.timeouts.mapping_rest.checked_div(settings.hertz).unwrap_or(0);
        if since.elapsed() >= Duration::from_secs(rest.into()) {
            tables.set_sentinel()?;
        }
        Ok(())
    }

    fn expire(&mut self, tables: &Tables) -> Result<()> {
        let is_audit = self.audited.elapsed() >= AUDIT;
        let before = if is_audit { Census::counted(tables)? } else { Census::default() };
        let Expired { flows, removed, mappings, census } = flows::expire(tables, tables.clock()?.stamp())?;
        debug!("{flows} flows, {removed} expired, {mappings} mappings released");
        if is_audit {
            self.audited = Instant::now();
            let done = guests::audit(tables, &mut self.ledger, &before, &census)?;
            debug!("{} counts of guests corrected, {} forgotten", done.corrected, done.forgotten);
        }
        Ok(())
    }

    /// Gives the host the ports of guests that its sockets have taken.
    fn reclaim(&mut self, instance: &Instance, tables: &Tables) -> Result<()> {
        let taken = reclaim::find(tables)?;
        if taken.is_empty() {
            return Ok(());
        }
        // Where a command is changing the instance, the next round does it.
        let Some(_lock) = Lock::try_take_existing(instance)? else { return Ok(()) };
        for taken in taken {
            let ended = reclaim::give_back(tables, &taken)?;
            let Taken { protocol, external, internal } = taken;
            info!("{protocol} {external} is the host's, {internal} had it: {ended} flows ended");
            let ended = u64::try_from(ended).unwrap_or(u64::MAX);
            self.watcher.note(Reason::PortTaken, Some(internal.address.into()), ended, events::now()?);
        }
        Ok(())
    }

    /// Writes the mappings down, where they have changed since.
    fn write_down(&mut self, instance: &Instance, tables: &Tables) -> Result<()> {
        if self.written.as_ref().is_some_and(|(written, at)| at.elapsed() < written.interval()) {
            return Ok(());
        }
        let mappings = Snapshot::take(tables)?;
        if self.written.as_ref().is_none_or(|(written, _)| *written != mappings) {
            // `down` writes the last word, under the lock.
            let Some(_lock) = Lock::try_take_existing(instance)? else { return Ok(()) };
            mappings.save(instance, false)?;
        }
        self.written = Some((mappings, Instant::now()));
        Ok(())
    }

    fn look(&mut self, instance: &Instance, tables: &Tables) -> Result<()> {
        let now = events::now()?;
        self.watcher.observe(&Reading::take(tables)?, now);
        if self.watcher.has_news() {
            self.tell(instance, now)?;
        }
        self.watcher.save(instance)
    }

    /// Logs what is to be heard of.
    fn tell(&mut self, instance: &Instance, now: u64) -> Result<()> {
        let Some(state) = state::find_running(instance)? else { return Ok(()) };
        for event in self.watcher.tell(&state, &Directory::of_files(&state), now) {
            let guest = event.guest.map(tracing::field::display);
            warn!(reason = event.reason.name(), guest, count = event.count, "{}", event.text);
        }
        Ok(())
    }
}
