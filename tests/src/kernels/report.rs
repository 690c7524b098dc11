//! What a test program says about its tests, read from its lines.

use anyhow::{Result, ensure};

use super::Selection;

/// What has been read so far.
#[derive(Debug, Default)]
pub struct Report {
    /// Names of tests that passed.
    pub passed: Vec<String>,
    /// Names of tests that failed.
    pub failed: Vec<String>,
    /// What it says of those that failed.
    pub causes: Vec<String>,
    /// With which code it has ended.
    pub end: Option<String>,
    lines: usize,
}

impl Report {
    /// How many lines have been read.
    #[must_use]
    pub const fn lines(&self) -> usize {
        self.lines
    }

    /// Reads a line.
    pub fn take(&mut self, line: &str) {
        self.lines += 1;
        if let Some((name, how)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ")) {
            match how.split(' ').next() {
                Some("ok") => self.passed.push(name.to_owned()),
                Some("FAILED") => self.failed.push(name.to_owned()),
                _ => {}
            }
        }
        // The causes stand between this line and a second one like it, which begins the list of names.
        if line == "failures:" || !self.causes.is_empty() {
            self.causes.push(line.to_owned());
        }
    }

    /// Adds what another run has shown.
    pub fn join(&mut self, other: Self) {
        self.passed.extend(other.passed);
        self.failed.extend(other.failed);
        self.causes.extend(other.causes);
        // One that has ended badly is not made good by a later one.
        if self.end.as_deref().is_none_or(|end| end == "0") {
            self.end = other.end;
        }
    }

    /// Fails unless all that was selected ran and passed.
    ///
    /// # Errors
    ///
    /// When a test failed, the program did, or a filter has matched none or all of them too few.
    pub fn judge(&self, selection: &Selection) -> Result<()> {
        let Self { passed, failed, causes, end, .. } = self;
        ensure!(failed.is_empty(), "{} failed: {}\n{}", failed.len(), failed.join(", "), causes.join("\n"));
        ensure!(end.as_deref() == Some("0"), "the test program has ended with {end:?}");
        for filter in selection.filters {
            ensure!(passed.iter().any(|name| name.contains(filter)), "no test has \"{filter}\" in its name");
        }
        let (ran, least) = (passed.len(), selection.least);
        ensure!(ran >= least, "only {ran} tests ran, not {least}: were some renamed, or left out?");
        Ok(())
    }
}
