//! What user space tells the programs, in the single entry of the `SETTINGS` map.

use bytemuck::{Pod, Zeroable};

use crate::{quota::Quotas, room::Room, timeout::Timeouts};

/// The single value of the `SETTINGS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Settings {
    /// [`crate::SCHEMA_VERSION`] of the loader that wrote this.
    pub schema: u32,
    /// Bumped when a route, a port or a lease changed; every flow then checks its way once more.
    pub generation: u32,
    /// Right shift that turns jiffies into slots of about four seconds; see [`Settings::epoch`].
    pub epoch_shift: u32,
    /// Jiffies a second (`CONFIG_HZ`).
    pub hertz: u32,
    /// Random words that make port choice unpredictable from outside.
    pub secret: [u32; 2],
    /// First port of the masquerade pool.
    pub pool_first: u16,
    /// Last port of the masquerade pool.
    pub pool_last: u16,
    /// Timeouts, in jiffies.
    pub timeouts: Timeouts,
    /// The kernel's cookie of the host's network namespace (`SO_NETNS_COOKIE`).
    pub netns_cookie: u64,
    /// The quiet room.
    pub room: Room,
    /// What each guest may take.
    pub quotas: Quotas,
}

impl Settings {
    /// A number that changes on each bump and about every four seconds; a flow whose stored number differs looks
    /// its route up again. Both parts only grow, so their sum never returns to an old value before it wraps.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "only equality of the low bits matters")]
    pub const fn epoch(&self, jiffies: u64) -> u16 {
        (jiffies >> (self.epoch_shift & 63)).wrapping_add(self.generation as u64) as u16
    }

    /// The [`Settings::epoch_shift`] for a kernel of that many jiffies a second: slots of two to five seconds.
    #[must_use]
    pub const fn epoch_shift_for(hertz: u32) -> u32 {
        let jiffies = hertz.saturating_mul(5);
        if jiffies < 2 { 0 } else { jiffies.ilog2() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epoch_slots_last_two_to_five_seconds() {
        for hertz in [100_u32, 250, 300, 1000] {
            let slot = f64::from(1_u32 << Settings::epoch_shift_for(hertz)) / f64::from(hertz);
            assert!((2.0..=5.0).contains(&slot), "{hertz} Hz gives {slot} s");
        }
    }

    #[test]
    fn epoch_changes_with_a_bump_and_with_time() {
        let mut settings = Settings { epoch_shift: 10, hertz: 250, ..Zeroable::zeroed() };
        let before = settings.epoch(1_000_000);
        assert_ne!(before, settings.epoch(1_000_000 + 1024));
        settings.generation = 1;
        assert_ne!(before, settings.epoch(1_000_000));
    }
}
