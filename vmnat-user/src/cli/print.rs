//! The way to standard output: a reader that has seen enough (`vmnat flows | head`) is no error.

use std::io::{self, Write as _};

use anyhow::{Context, Result};

/// Prints text as it is; line ends are its own.
///
/// # Errors
/// When standard output cannot be written, unless its reader has gone.
pub fn text(text: &str) -> Result<()> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to standard output"),
    }
}

/// Prints a line.
///
/// # Errors
/// As [`text`].
pub fn line(line: &str) -> Result<()> {
    text(&format!("{line}\n"))
}
