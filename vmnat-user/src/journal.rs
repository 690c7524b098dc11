//! The systemd journal, where it exists, as the place of the agent's log.

use std::{
    io::{self, Write as _},
    os::unix::net::UnixStream,
};

use crate::paths::Instance;

/// What a log in the journal begins with, before its identifier.
pub const PREFIX: &str = "journal:";

/// `journald`'s stream protocol: a header of seven lines, and then the log.
const SOCKET: &str = "/run/systemd/journal/stdout";

/// The identifier of an instance's agent.
#[must_use]
pub fn identifier(instance: &Instance) -> String {
    format!("vmnat-{instance}")
}

/// Opens a stream into the journal.
///
/// # Errors
/// When there is no journal.
pub fn open(instance: &Instance) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(SOCKET)?;
    // Identifier, unit, priority (6: information), level prefix, to syslog, to kmsg, to console.
    write!(stream, "{}\n\n6\n0\n0\n0\n0\n", identifier(instance))?;
    Ok(stream)
}
