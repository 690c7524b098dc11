//! Why guests are offline: facts of the host are gathered once, pure rules judge them, and a report says it in words.
//!
//! Nothing here changes the host, but for the synthetic guest of `--probe`, which takes itself away.

pub mod facts;
pub mod finding;
pub mod judge;
pub mod probe;
pub mod report;
pub mod ruleset;
#[cfg(any(test, fuzzing))]
mod sample;
#[cfg(test)]
mod tests;

use anyhow::Result;

use self::{
    facts::{Facts, Wanted},
    report::Report,
};
use crate::paths::Instance;

/// Looks at the host and judges it.
///
/// # Errors
/// When the kernel refuses to tell about interfaces, or an interface that was named does not exist.
pub async fn examine(instance: &Instance, wanted: &Wanted) -> Result<(Facts, Report)> {
    let facts = facts::gather(instance, wanted).await?;
    let report = judge::report(&facts);
    Ok((facts, report))
}

/// What is said about a sound host with any rules, for the fuzz target.
#[cfg(any(test, fuzzing))]
pub(crate) fn examine_any(rules: &[u8]) -> Report {
    judge::report(&sample::host(rules))
}
