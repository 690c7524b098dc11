//! The way to standard output: a reader that has seen enough (`vmnat flows | head`) is no error.

use std::{
    io::{self, Write as _},
    os::fd::{AsFd as _, AsRawFd as _},
};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Prints text as it is; line ends are its own.
///
/// # Errors
/// When standard output cannot be written, unless its reader has gone.
pub fn text(text: &str) -> Result<()> {
    is_written(text).map(drop)
}

/// Prints a line.
///
/// # Errors
/// As [`text`].
pub fn line(line: &str) -> Result<()> {
    text(&format!("{line}\n"))
}

/// Prints text as it is; false when its reader has gone.
///
/// # Errors
/// When standard output cannot be written.
pub fn is_written(text: &str) -> Result<bool> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        other => other.map(|()| true).context("cannot write to standard output"),
    }
}

/// False when standard output is a pipe whose reader has gone.
#[must_use]
pub fn is_read() -> bool {
    let output = io::stdout();
    let mut ends = [PollFd::new(output.as_fd(), PollFlags::empty())];
    let gone = PollFlags::POLLERR.union(PollFlags::POLLHUP);
    let asked = poll(&mut ends, PollTimeout::ZERO);
    asked.is_err() || !ends.iter().any(|end| end.revents().is_some_and(|events| events.intersects(gone)))
}

/// Columns of the terminal; of what else it may be, as many as a page has.
pub fn width() -> usize {
    const PAGE: usize = 100;
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the struct is live, and TIOCGWINSZ writes no more than it.
    let result = unsafe { libc::ioctl(io::stdout().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    let columns = usize::from(size.ws_col);
    if result == 0 && columns >= 40 { columns.min(PAGE) } else { PAGE }
}
