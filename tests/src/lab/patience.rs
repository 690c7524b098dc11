//! How long is long: limits are those of a machine at its own speed, and an emulated one multiplies them.

use std::{env, sync::LazyLock, time::Duration};

/// The variable that holds the factor.
pub const VARIABLE: &str = "VMNAT_PATIENCE";

/// Whoever mistypes the factor shall not run with another one.
static FACTOR: LazyLock<u32> = LazyLock::new(|| {
    let Ok(text) = env::var(VARIABLE) else { return 1 };
    let factor = text.parse().unwrap_or(0);
    assert!(factor > 0, "{VARIABLE} is {text:?}, not a whole number from 1 on");
    factor
});

/// A limit of the tests, as long as it has to be where they run.
///
/// # Panics
///
/// When `VMNAT_PATIENCE` holds no number.
#[must_use]
pub fn patiently(limit: Duration) -> Duration {
    limit.saturating_mul(factor())
}

/// How many times as long as usual.
///
/// # Panics
///
/// As [`patiently`].
#[must_use]
pub fn factor() -> u32 {
    *FACTOR
}
