//! The loopback's `rp_filter`, by which the kernel would drop what the programs let in there.
//!
//! Strict filtering (1) asks that the way back to a packet's source leads out by the interface that it came in by; back to
//! a guest it leads by the bridge. The kernel takes the larger of `conf.all` and `conf.lo`, and loose filtering is the
//! larger number, 2: so setting it for the loopback alone is enough, whatever ufw writes to `conf.all`. It makes nothing
//! else less strict: what the host sends to itself keeps its route, and is never asked (`ip_route_input_noref()`).

use tracing::debug;

use crate::{
    reconcile::Reconciled,
    state::{Lock, State},
    sysctl::{self, Change, Restored},
};

const ALL: &str = "net/ipv4/conf/all/rp_filter";
const LOOPBACK: &str = "net/ipv4/conf/lo/rp_filter";

const STRICT: u8 = 1;
const LOOSE: &str = "2";

/// Makes the loopback let in what guests send to services, where some `are_wanted`, and puts it back where none are. True
/// where it stays strict: the setting cannot be written, as in a container with a `/proc/sys` that is read-only.
pub fn settle(state: &mut State, are_wanted: bool, lock: &Lock, done: &mut Reconciled) -> bool {
    if !are_wanted {
        match restore(state) {
            Ok(line) => done.changes.extend(line),
            Err(error) => done.failures.push(error),
        }
        return false;
    }
    if !is_strict() {
        return false;
    }
    // Where it is on record already, what it was at first is what `down` restores.
    let is_known = state.loopback.is_some();
    match record(state, lock).and_then(|()| sysctl::apply(LOOPBACK, LOOSE)) {
        Ok(None) => is_strict(),
        Ok(Some(change)) => {
            done.changes.push(format!(
                "set {} from {} to {}: services of the gateway come in there",
                change.path, change.before, change.after
            ));
            false
        }
        Err(error) => {
            debug!("{error:#}");
            if !is_known {
                state.loopback = None;
            }
            true
        }
    }
}

/// Puts it on record before it is changed.
fn record(state: &mut State, lock: &Lock) -> anyhow::Result<()> {
    if state.loopback.is_none() {
        let before = sysctl::read(LOOPBACK)?;
        state.loopback = Some(Change { path: LOOPBACK.into(), before, after: LOOSE.into() });
    }
    lock.note_records(state)
}

/// Puts the loopback back as it was; a line where there was something to put back.
///
/// # Errors
/// When the kernel refuses.
pub fn restore(state: &mut State) -> anyhow::Result<Option<String>> {
    let Some(change) = &state.loopback else { return Ok(None) };
    let line = match sysctl::restore(change)? {
        Restored::Restored => Some(format!("set {} back to {}", change.path, change.before)),
        Restored::Gone => None,
        Restored::Foreign(value) => Some(format!("left {} at {value}, which vmnat did not set", change.path)),
    };
    state.loopback = None;
    Ok(line)
}

/// True when the kernel filters strictly at the loopback.
fn is_strict() -> bool {
    let read = |path| sysctl::read(path).ok().and_then(|value| value.parse().ok()).unwrap_or(0_u8);
    read(ALL).max(read(LOOPBACK)) == STRICT
}
