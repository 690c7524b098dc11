//! What the agent tells systemd: that everything is true, that it lives, and in words what it does; and which unit keeps an
//! instance. Without systemd nothing here does anything.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, process::Command, time::Duration};

use sd_notify::NotifyState;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tracing::{debug, warn};

use crate::paths::Instance;

/// Says that everything is true.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// Says that the agent takes everything up again; [`ready`] ends it.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => debug!("no clock for the service manager: {error}"),
    }
}

/// Says that the agent ends.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Says in words what the agent does, for `systemctl status`.
pub fn status(text: &str) {
    tell(&[NotifyState::Status(text)]);
}

fn tell(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!("cannot tell the service manager: {error}");
    }
}

/// The watchdog's beat, which comes from the very loop that does the work: a loop that hangs is ended and started again.
#[derive(Debug)]
pub struct Heartbeat(Option<Interval>);

impl Heartbeat {
    /// Beats as often as systemd asks for; needs a tokio runtime.
    #[must_use]
    pub fn new() -> Self {
        let beat = |limit: Duration| {
            // Twice as often as is needed, as sd_watchdog_enabled(3) advises, and once more for a busy machine.
            let mut beat = interval(limit.checked_div(3).unwrap_or(limit).max(Duration::from_millis(1)));
            beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
            beat
        };
        Self(sd_notify::watchdog_enabled().map(beat))
    }

    /// Waits until a beat is due, and tells it; for ever where nobody listens.
    pub async fn next(&mut self) {
        let Some(beat) = &mut self.0 else { return std::future::pending().await };
        beat.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self::new()
    }
}

/// The unit that would keep an instance.
#[must_use]
pub fn unit(instance: &Instance) -> String {
    if *instance == Instance::default() {
        "vmnat.service".to_owned()
    } else {
        format!("vmnat@{}.service", escape(instance.name()))
    }
}

/// An instance's name in a unit's (`systemd-escape(1)`): a dash there stands for a slash.
fn escape(name: &str) -> String {
    name.replace('-', "\\x2d")
}

/// Lets systemd start the agent, where the instance's unit is enabled and runs in these very namespaces; the unit that did.
#[must_use]
pub fn start(instance: &Instance) -> Option<String> {
    if !sd_notify::booted().unwrap_or(false) || !is_systemds("net") || !is_systemds("mnt") {
        return None;
    }
    let unit = unit(instance);
    let systemctl = |args: &[&str]| Command::new("systemctl").args(args).arg(&unit).output();
    let enabled = systemctl(&["is-enabled", "--quiet"]).is_ok_and(|output| output.status.success());
    if !enabled {
        return None;
    }
    match systemctl(&["start"]) {
        Ok(output) if output.status.success() => Some(unit),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            warn!("systemd cannot start {unit}, so the agent runs without it: {}", said.trim());
            None
        }
        Err(error) => {
            warn!("cannot run systemctl, so the agent runs without it: {error}");
            None
        }
    }
}

/// Whether this process is in the same namespace as systemd.
fn is_systemds(kind: &str) -> bool {
    let number = |process: &str| {
        let path = Path::new("/proc").join(process).join("ns").join(kind);
        fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
    };
    matches!((number("self"), number("1")), (Ok(own), Ok(systemds)) if own == systemds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_instance_has_a_unit() {
        assert_eq!(unit(&Instance::default()), "vmnat.service");
        assert_eq!(unit(&"lab-2".parse().unwrap()), "vmnat@lab\\x2d2.service");
    }

    #[tokio::test]
    async fn without_a_watchdog_there_is_no_beat() {
        let beat = tokio::time::timeout(Duration::from_millis(20), Heartbeat(None).next()).await;
        assert!(beat.is_err());
    }
}
