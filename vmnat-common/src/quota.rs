//! What one guest may take of what all share: flows, half-open ones, new ones a second, and visits to the quiet room.

use bytemuck::{Pod, Zeroable};

/// The quotas of every guest. Zero is no limit.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Quotas {
    /// Flows at a time.
    pub flows: u32,
    /// TCP flows at a time whose handshake is not complete.
    pub half_open: u32,
    /// New flows a second, on average.
    pub rate: u32,
    /// New flows at once, after a rest.
    pub burst: u32,
}

impl Quotas {
    /// The defaults.
    pub const DEFAULT: Self = Self { flows: 16_384, half_open: 1_024, rate: 1_000, burst: 5_000 };

    /// No limits.
    pub const NONE: Self = Self { flows: 0, half_open: 0, rate: 0, burst: 0 };
}

/// Visits to the quiet room a second, of a guest or of the whole world: each is a packet that a stack of its own works on.
pub const ROOM: Bucket = Bucket { rate: 2_000, burst: 2_000 };

/// Value of the `GUEST` map, keyed by the guest's address; the world's is kept under 0.0.0.0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Guest {
    /// Flows.
    pub flows: i32,
    /// TCP flows whose handshake is not complete.
    pub half_open: i32,
    /// What may yet be opened.
    pub opening: Level,
    /// What may yet visit the quiet room.
    pub room: Level,
    /// Flows refused because there were too many.
    pub refused_flows: u32,
    /// Flows refused because too many were half open.
    pub refused_half_open: u32,
    /// Flows refused because they came too fast.
    pub refused_rate: u32,
    /// Jiffies (low 32 bits) when it was last told of a refusal.
    pub told: u32,
}

const _: () = assert!(size_of::<Guest>() == 40);

/// A token bucket's make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Tokens a second; zero is no limit.
    pub rate: u32,
    /// Tokens that it holds.
    pub burst: u32,
}

/// A token bucket's level.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Level {
    /// Tokens taken from a full bucket.
    pub taken: u32,
    /// Jiffies (low 32 bits) to which it was filled up.
    pub since: u32,
}

impl Level {
    /// Takes a token; false when there is none.
    #[must_use]
    pub const fn take(&mut self, bucket: Bucket, now: u32, hertz: u32) -> bool {
        if bucket.rate == 0 {
            return true;
        }
        let elapsed = now.wrapping_sub(self.since) as u64;
        let earned = elapsed.wrapping_mul(bucket.rate as u64);
        let fresh = match earned.checked_div(hertz as u64) {
            Some(fresh) => fresh,
            None => 0,
        };
        if fresh > 0 {
            // Less than a token's time may be lost here, which makes the bucket a little stricter.
            #[expect(clippy::cast_possible_truncation, reason = "bounded by the comparison")]
            let given = if fresh > self.taken as u64 { self.taken } else { fresh as u32 };
            self.taken = self.taken.wrapping_sub(given);
            self.since = now;
        }
        if self.taken >= bucket.burst {
            return false;
        }
        self.taken = self.taken.wrapping_add(1);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUCKET: Bucket = Bucket { rate: 100, burst: 10 };

    #[test]
    fn a_full_bucket_gives_its_burst_and_then_its_rate() {
        let mut level = Level { taken: 0, since: 1000 };
        let given = (0..50).filter(|_| level.take(BUCKET, 1000, 250)).count();
        assert_eq!(given, 10);
        let given = (0..250).filter(|jiffy| level.take(BUCKET, 1000 + jiffy, 250)).count();
        assert!((80..=100).contains(&given), "{given} in a second");
        assert!(!level.take(BUCKET, 1250, 250) || level.taken <= BUCKET.burst);
    }

    #[test]
    fn a_rest_fills_it_and_the_clock_may_wrap() {
        let mut level = Level { taken: 10, since: u32::MAX - 5 };
        assert!(!level.take(BUCKET, u32::MAX - 5, 250));
        let given = (0..50).filter(|_| level.take(BUCKET, 1000, 250)).count();
        assert_eq!(given, 10);
    }

    #[test]
    fn no_rate_is_no_limit() {
        let mut level = Level::default();
        assert!((0..1000).all(|_| level.take(Bucket { rate: 0, burst: 0 }, 7, 250)));
    }
}
