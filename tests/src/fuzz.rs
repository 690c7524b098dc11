//! What every fuzz run of the tiers has: numbers by chance that come back with their seed, and frames changed by them.

use std::env;

use anyhow::{Context as _, Result};

/// xorshift64*: the same numbers for the same seed.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Numbers of a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        // Zero is the one state that it never leaves.
        Self(if seed == 0 { 0x9e37_79b9_7f4a_7c15 } else { seed })
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: usize) -> usize {
        let high = u128::from(self.next()) * bound as u128;
        usize::try_from(high >> 64).unwrap_or(0)
    }

    /// True once in `times` on average.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// One of several.
    pub fn one_of<'a, T>(&mut self, values: &'a [T]) -> &'a T {
        &values[self.below(values.len())]
    }

    /// A byte: as often as not one at which rules turn.
    pub fn byte(&mut self) -> u8 {
        match self.below(4) {
            0 => *self.one_of(&[0, 1, 2, 4, 6, 8, 17, 20, 45, 0x7f, 0x80, 0xff]),
            1 => 1 << self.below(8),
            _ => self.next().to_le_bytes()[7],
        }
    }
}

/// The number that an environment variable holds, decimal or `0x…`.
///
/// # Errors
/// When it holds no number.
pub fn number(variable: &str, otherwise: u64) -> Result<u64> {
    let Ok(text) = env::var(variable) else { return Ok(otherwise) };
    let read = text.strip_prefix("0x").map_or_else(|| text.parse(), |digits| u64::from_str_radix(digits, 16));
    read.with_context(|| format!("{variable}={text} is no number"))
}
