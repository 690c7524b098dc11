//! Teardown: leaves the host as it was found, goes on after an error, and reports all of them.

use std::io;

use anyhow::{Context as _, Result};
use rtnetlink::Handle;

use crate::{
    agent, dataplane,
    error::Error,
    facts, link,
    paths::Instance,
    reconcile::sysctls,
    rest::Snapshot,
    room, services,
    state::{self, HookMode, Lock, State, kept},
    tables::Tables,
};

/// What a teardown did.
#[derive(Debug, Default)]
pub struct TornDown {
    /// A line for each thing that was removed.
    pub removed: Vec<String>,
    /// A line for each step that failed.
    pub failures: Vec<String>,
}

impl TornDown {
    fn note(&mut self, result: Result<Option<String>>) {
        match result {
            Ok(line) => self.removed.extend(line),
            Err(error) => self.failures.push(format!("{error:#}")),
        }
    }
}

/// True when there is anything to take down: what is kept in `/run`, pins of any schema, or what a reboot would bring back.
#[must_use]
pub fn exists(instance: &Instance) -> bool {
    instance.run().exists() || instance.pins().exists() || instance.wish().exists()
}

/// Ends the agent, puts kernel settings back, detaches every hook, removes pins and state.
///
/// # Errors
/// [`Error::NotRunning`] when there is nothing, [`Error::Locked`] when another command is at it.
pub async fn teardown(instance: &Instance, handle: &Handle) -> Result<TornDown> {
    if !exists(instance) {
        return Err(Error::NotRunning { instance: instance.to_string(), option: instance.option() }.into());
    }
    let lock = Lock::take(instance)?;
    let mut done = TornDown::default();
    let mut state = match state::find_running(instance) {
        Ok(state) => state.unwrap_or_else(|| State::new(HookMode::Tcx)),
        Err(error) => {
            done.failures.push(format!("{error:#}"));
            State::new(HookMode::Tcx)
        }
    };
    done.note(agent::end(instance).map(|ran| ran.then(|| "ended the agent".to_owned())));
    // While the guard still stands: what the bridge forwarded before is the kernel's again, untranslated.
    restore_sysctls(&mut state, handle, &mut done).await;
    done.note(services::loopback::restore(&mut state));
    // What the programs are told of a room must not outlive it; without maps there is nobody to tell.
    if let Ok(tables) = Tables::open(instance) {
        done.note(room::close(&tables).map(|()| None));
    }
    let synced = link::detach_all(instance, handle, &mut state).await;
    done.removed.extend(synced.changes);
    done.failures.extend(synced.failures.iter().map(|failure| format!("{failure:#}")));
    write_mappings(instance);
    done.note(room::remove(instance));
    match dataplane::unpin(instance) {
        Ok(false) => {}
        Ok(true) => {
            done.removed.push(format!("removed maps and programs below {}", instance.pins().display()));
        }
        Err(error) => done.failures.push(format!("remove {}: {error}", instance.pins().display())),
    }
    if state.mounted_bpffs && done.failures.is_empty() && dataplane::release_bpffs() {
        done.removed.push(format!("unmounted the BPF file system at {}", crate::paths::BPF_FS));
    }
    if done.failures.is_empty() {
        done.note(kept::forget(instance));
        done.note(remove_state(lock, instance));
    } else {
        // What could not be undone stays on record, for the next attempt.
        done.note(lock.save_running(&state).map(|()| None));
    }
    Ok(done)
}

/// Writes the mappings down, when no program opens one any more. A full disk is no reason to stay.
fn write_mappings(instance: &Instance) {
    let Ok(tables) = Tables::open(instance) else { return };
    if let Err(error) = Snapshot::take(&tables).and_then(|mappings| mappings.save(instance, true)) {
        tracing::warn!("freed ports will not rest after the next `up`: {error:#}");
    }
}

async fn restore_sysctls(state: &mut State, handle: &Handle, done: &mut TornDown) {
    let facts = match facts::gather(handle).await {
        Ok(facts) => facts,
        Err(error) => {
            done.failures.push(format!("{error:#}"));
            return;
        }
    };
    for record in std::mem::take(&mut state.sysctls) {
        match sysctls::restore(&record, facts.link_at(record.ifindex).is_some()) {
            Ok(line) => done.removed.extend(line),
            Err(error) => {
                done.failures.push(format!("{error:#}"));
                state.sysctls.push(record);
            }
        }
    }
}

fn remove_state(lock: Lock, instance: &Instance) -> Result<Option<String>> {
    let path = instance.run();
    match lock.remove_all() {
        Ok(()) => Ok(Some(format!("removed {}", path.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("remove {}", path.display())),
    }
}
