//! What time does to port forwards: they expire, and the guests that they lead to change their addresses.

use std::{
    collections::HashSet,
    net::Ipv4Addr,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::PortForward;
use crate::{leases::Directory, state::State};

/// The end of a port forward on the kernel's clock. It is reckoned once a boot: twice would differ by a second now and
/// then, and the kernel's entry with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expiry {
    /// Second since 1970.
    pub unix: u64,
    /// Second of `CLOCK_BOOTTIME`.
    pub boot: u32,
}

/// The address that a lease was last known to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    /// The address.
    pub address: Ipv4Addr,
    /// Nobody knows the lease at the moment.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub missing: bool,
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Second of `CLOCK_BOOTTIME`, which nobody sets.
///
/// # Errors
/// When the kernel does not say.
pub fn boot_now() -> Result<u64> {
    let seconds = clock_gettime(ClockId::CLOCK_BOOTTIME).context("read the clock")?.tv_sec();
    Ok(u64::try_from(seconds).unwrap_or(0))
}

/// Seconds until a port forward ends, if it does: by the kernel's clock where that was reckoned, so that somebody who sets the
/// wall clock neither ends nor prolongs it.
#[must_use]
pub fn remaining(state: &State, forward: &PortForward, now: u64, boot: u64) -> Option<u64> {
    let end = forward.wish.expires?;
    let reckoned = state.expiries.get(&forward.id).filter(|known| known.unix == end);
    Some(reckoned.map_or_else(|| end.saturating_sub(now), |known| u64::from(known.boot).saturating_sub(boot)))
}

/// Removes the port forwards whose time has come; a line for each.
pub fn drop_expired(state: &mut State, now: u64, boot: u64) -> Vec<String> {
    let mut lines = Vec::new();
    let ended: HashSet<u32> = state
        .forwards
        .iter()
        .filter(|forward| remaining(state, forward, now, boot) == Some(0))
        .map(|forward| forward.id)
        .collect();
    state.forwards.retain(|forward| {
        let has_expired = ended.contains(&forward.id);
        if has_expired {
            lines
                .push(format!("removed port forward {} ({}): it has expired", forward.id, forward.wish.spec));
        }
        !has_expired
    });
    lines
}

/// Brings what depends on clock and leases up to date; the leases are asked for only where a forward leads to one.
///
/// # Errors
/// When the kernel's clock cannot be read, or `directory` fails.
pub fn refresh(state: &mut State, directory: impl FnOnce(&State) -> Result<Directory>) -> Result<()> {
    reckon(state, now(), boot_now()?);
    let follows = state.forwards.iter().any(|forward| forward.wish.spec.target.address().is_none());
    if follows {
        let directory = directory(state)?;
        follow(state, &directory);
    } else {
        state.resolved.clear();
    }
    Ok(())
}

fn reckon(state: &mut State, now: u64, boot: u64) {
    let mut expiries = std::mem::take(&mut state.expiries);
    for forward in &state.forwards {
        let Some(unix) = forward.wish.expires else { continue };
        let known = expiries.remove(&forward.id).filter(|known| known.unix == unix);
        let reckoned = || boot.saturating_add(unix.saturating_sub(now)).max(1);
        let expiry =
            known.unwrap_or_else(|| Expiry { unix, boot: u32::try_from(reckoned()).unwrap_or(u32::MAX) });
        state.expiries.insert(forward.id, expiry);
    }
}

fn follow(state: &mut State, directory: &Directory) {
    let ids: HashSet<u32> = state.forwards.iter().map(|forward| forward.id).collect();
    state.resolved.retain(|id, _| ids.contains(id));
    for forward in &state.forwards {
        if let Some(address) = directory.find(&forward.wish.spec.target) {
            state.resolved.insert(forward.id, Resolved { address, missing: false });
        } else if let Some(known) = state.resolved.get_mut(&forward.id) {
            known.missing = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        forwards::{PortForward, Wish},
        leases::LeaseFact,
        state::HookMode,
    };

    fn state(forwards: &[(u32, &str, Option<u64>)]) -> State {
        let mut state = State::new(HookMode::Tcx);
        state.forwards.extend(forwards.iter().map(|(id, spec, expires)| {
            let wish = Wish { expires: *expires, ..Wish::plain(spec.parse().unwrap()) };
            PortForward { id: *id, wish }
        }));
        state
    }

    #[test]
    fn what_has_expired_goes() {
        let mut state =
            state(&[(1, "1:10.0.0.2:1", None), (2, "2:10.0.0.2:2", Some(100)), (3, "3:web:3", Some(101))]);
        assert_eq!(
            drop_expired(&mut state, 100, 7),
            ["removed port forward 2 (2:10.0.0.2:2/tcp): it has expired"]
        );
        assert_eq!(state.forwards.iter().map(|forward| forward.id).collect::<Vec<_>>(), [1, 3]);
    }

    #[test]
    fn a_wall_clock_that_jumps_ends_nothing_early_and_prolongs_nothing() {
        let mut state = state(&[(1, "1:10.0.0.2:1", Some(1100))]);
        reckon(&mut state, 1000, 50);
        assert!(drop_expired(&mut state, 90_000, 149).is_empty());
        assert_eq!(remaining(&state, &state.forwards[0], 0, 149), Some(1));
        assert_eq!(drop_expired(&mut state, 0, 150).len(), 1);
    }

    #[test]
    fn the_kernels_second_is_reckoned_once() {
        let mut state = state(&[(1, "1:10.0.0.2:1", Some(1100)), (2, "2:10.0.0.2:2", None)]);
        reckon(&mut state, 1000, 50);
        reckon(&mut state, 1001, 52);
        assert_eq!(state.expiries[&1], Expiry { unix: 1100, boot: 150 });
        state.forwards[0].wish.expires = Some(1200);
        reckon(&mut state, 1001, 52);
        assert_eq!(state.expiries[&1].boot, 251);
        state.forwards.clear();
        reckon(&mut state, 1001, 52);
        assert!(state.expiries.is_empty());
    }

    #[test]
    fn the_last_address_stays_while_a_lease_is_missing() {
        let mut state = state(&[(1, "1:web:1", None), (2, "2:db:1", None)]);
        let lease = LeaseFact::named("web", [10, 0, 0, 7]);
        follow(&mut state, &Directory::of(&[lease]));
        let web = Ipv4Addr::new(10, 0, 0, 7);
        assert_eq!(state.resolved.get(&1), Some(&Resolved { address: web, missing: false }));
        assert_eq!(state.resolved.get(&2), None);
        follow(&mut state, &Directory::of(&[]));
        assert_eq!(state.resolved.get(&1), Some(&Resolved { address: web, missing: true }));
    }
}
