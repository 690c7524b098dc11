//! Progress of long work: a line when a step starts, a line with its duration when it ends.

use std::time::Instant;

use anyhow::Result;

/// A run of steps whose number is known.
pub struct Steps {
    started: usize,
    total: usize,
}

impl Steps {
    /// A run of `total` steps.
    pub const fn new(total: usize) -> Self {
        Self { started: 0, total }
    }

    /// Runs one step between its two lines.
    pub fn step<T>(&mut self, title: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.started = self.started.saturating_add(1);
        let label = format!("[{}/{}] {title}", self.started, self.total);
        println!("{label} ...");
        let begun = Instant::now();
        let result = work();
        let outcome = if result.is_ok() { "done" } else { "failed" };
        println!("{label}: {outcome} ({:.1} s)", begun.elapsed().as_secs_f32());
        result
    }
}
