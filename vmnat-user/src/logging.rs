//! Where a process of vmnat says what it does: into the journal with its fields where standard error leads there, else as
//! lines on standard error.

use std::{env, io, os::fd::AsFd};

use nix::sys::stat::fstat;
use tracing_subscriber::{EnvFilter, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::{journal, paths::Instance};

/// What systemd sets to device and inode of the journal's stream (`systemd.exec(5)`).
pub const STREAM: &str = "JOURNAL_STREAM";

/// Beginning of the fields' names in the journal, as `VMNAT_REASON`.
const PREFIX: &str = "VMNAT";

/// Begins to log; `level` is what is said unless `VMNAT_LOG` says otherwise.
pub fn init(instance: &Instance, level: &str) {
    let filter = EnvFilter::try_from_env("VMNAT_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let is_journal = env::var(STREAM).ok() == stream_of(io::stderr());
    if is_journal && let Ok(layer) = tracing_journald::layer() {
        let layer = layer
            .with_syslog_identifier(journal::identifier(instance))
            .with_field_prefix(Some(PREFIX.to_owned()));
        tracing_subscriber::registry().with(filter).with(layer).init();
        return;
    }
    // A log that cannot be written (its disk is full, the journal was restarted) must not end the agent.
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_target(false)
        .log_internal_errors(false);
    // The journal has the time of every line.
    if is_journal { lines.without_time().init() } else { lines.init() }
}

/// Device and inode of a descriptor, as systemd writes them.
pub(crate) fn stream_of(descriptor: impl AsFd) -> Option<String> {
    let stat = fstat(descriptor).ok()?;
    Some(format!("{}:{}", stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_told_by_device_and_inode() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let text = stream_of(&null).unwrap();
        let (device, inode) = text.split_once(':').unwrap();
        assert!(device.parse::<u64>().is_ok() && inode.parse::<u64>().is_ok(), "{text}");
        assert_ne!(stream_of(std::fs::File::open("/dev/zero").unwrap()), Some(text));
    }
}
