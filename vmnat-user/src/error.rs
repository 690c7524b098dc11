//! The errors that have an exit code of their own; each says what, where, why, and what to do.

use std::{io, net::Ipv4Addr, path::PathBuf};

use ipnet::Ipv4Net;
use thiserror::Error;

use crate::{config::Faults, exit::Exit};

/// Trouble that an operator can act on.
#[derive(Debug, Error)]
pub enum Error {
    /// A privilege is missing.
    #[error("{what} needs root (CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON): run it with sudo")]
    NotPermitted {
        /// What was tried.
        what: String,
    },
    /// No interface of that name.
    #[error("there is no interface \"{name}\"; {hint}")]
    NoInterface {
        /// The name that was given.
        name: String,
        /// What there is instead, or what to do.
        hint: String,
    },
    /// The interface exists and is no bridge.
    #[error("interface \"{name}\" is not a bridge; {hint}")]
    NotABridge {
        /// The name that was given.
        name: String,
        /// Which bridges there are.
        hint: String,
    },
    /// Its link layer is neither Ethernet nor none at all.
    #[error(
        "uplink \"{name}\" carries neither Ethernet frames nor bare IP packets, so guests cannot use it: name another with `--uplink`"
    )]
    UnknownLinkLayer {
        /// The uplink.
        name: String,
    },
    /// The bridge that it is a port of has its packets.
    #[error(
        "uplink \"{name}\" is a port of bridge {bridge}, which has the address and the packets: use `--uplink {bridge}`"
    )]
    PortAsUplink {
        /// The port.
        name: String,
        /// The bridge.
        bridge: String,
    },
    /// No uplink has the address that was asked for.
    #[error("guests cannot be seen as {address}, which is no address of an uplink: {hint}")]
    NotUplinksAddress {
        /// The address.
        address: Ipv4Addr,
        /// Which addresses there are.
        hint: String,
    },
    /// No IPv4 address to translate to.
    #[error(
        "uplink \"{name}\" has no IPv4 address: bring it up (for example with dhclient), use `--wait 30s` to wait for one, or `--wait 0` to start without"
    )]
    NoUplinkAddress {
        /// The uplink.
        name: String,
    },
    /// No default route and no uplink named.
    #[error(
        "there is no IPv4 default route to follow: name the uplink with `--uplink`, use `--wait 30s` to wait for one, or `--wait 0` to start without"
    )]
    NoDefaultRoute,
    /// The kernel cannot run the dataplane.
    #[error("this kernel ({release}) cannot run vmnat: {why}. Linux 6.1 or later is needed")]
    KernelTooOld {
        /// `uname -r`.
        release: String,
        /// What it lacks.
        why: String,
    },
    /// tcx was asked for.
    #[error(
        "this kernel ({release}) has no tcx, which Linux 6.6 and later have: leave the hook to vmnat, or say clsact (`--hook clsact`, `hook = \"clsact\"`)"
    )]
    NoTcx {
        /// `uname -r`.
        release: String,
    },
    /// No bpffs.
    #[error("no BPF file system at /sys/fs/bpf ({why}): run `mount -t bpf bpf /sys/fs/bpf`")]
    NoBpfFs {
        /// Why it could not be mounted.
        why: String,
    },
    /// Two networks share addresses.
    #[error(
        "network {one} ({one_where}) overlaps {other} ({other_where}): give one of them another subnet, or leave it out"
    )]
    Overlap {
        /// One subnet.
        one: Ipv4Net,
        /// Where it is.
        one_where: String,
        /// The other subnet.
        other: Ipv4Net,
        /// Where that is.
        other_where: String,
    },
    /// Nothing runs under that name.
    #[error("instance \"{instance}\" is not running: start it with `vmnat{option} up --bridge BRIDGE`")]
    NotRunning {
        /// The instance.
        instance: String,
        /// The option that names it, where it is not the default.
        option: String,
    },
    /// It runs, and its pins cannot be seen from here.
    #[error(
        "instance \"{instance}\" has a state but no maps below /sys/fs/bpf here: `ip netns exec` hides them, use `nsenter --net=/run/netns/NAME` instead; if they are gone, `vmnat{option} up` makes them again"
    )]
    HiddenPins {
        /// The instance.
        instance: String,
        /// The option that names it, where it is not the default.
        option: String,
    },
    /// Another process changes the instance.
    #[error("{holder} is changing instance \"{instance}\" (it holds {}): try again when it is done", path.display())]
    Locked {
        /// The instance.
        instance: String,
        /// The lock file.
        path: PathBuf,
        /// Who has it.
        holder: String,
    },
    /// In conflict with what exists.
    #[error("{what} is already taken by {holder}{hint}")]
    Taken {
        /// What was asked for.
        what: String,
        /// Who has it.
        holder: String,
        /// What to do; begins with its own punctuation.
        hint: String,
    },
    /// No network holds the guest.
    #[error("no network of this instance holds {guest}; `vmnat network list` shows them")]
    NotAGuest {
        /// The address.
        guest: Ipv4Addr,
    },
    /// Nobody knows the guest.
    #[error("no lease of \"{target}\" is known: {hint}")]
    NoLease {
        /// The name or MAC.
        target: String,
        /// Which there are, or what to do.
        hint: String,
    },
    /// No such port forward.
    #[error("there is no port forward \"{which}\"; `vmnat dnat list` shows them")]
    NoForward {
        /// What was given.
        which: String,
    },
    /// The answer is no, and was told or is not to be.
    #[error("")]
    Silent,
    /// Guests lack something; the report has told it.
    #[error("")]
    Offline,
    /// A port forward is to be bound to what is no uplink.
    #[error("\"{name}\" is no uplink of this instance; {hint}")]
    NoUplink {
        /// The name that was given.
        name: String,
        /// Which uplinks there are.
        hint: String,
    },
    /// It can be written, and cannot work.
    #[error("{what}: {why}; {hint}")]
    Unfit {
        /// What was asked for.
        what: String,
        /// Why it cannot be.
        why: String,
        /// What to do.
        hint: String,
    },
    /// The file of port forwards makes no sense.
    #[error(
        "{} cannot be understood ({why}): it holds the port forwards that outlive `down`; mend it, or move it away to begin without them",
        path.display()
    )]
    BadStore {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The kernel, or a disk, had no room for it.
    #[error("{what}; {outcome}: {hint}")]
    NoRoom {
        /// What was being done, and the answer.
        what: String,
        /// What holds now.
        outcome: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// More than a map holds.
    #[error("{count} {what} do not fit, and nothing was changed: vmnat holds {most} of them; {hint}")]
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many fit.
        most: u32,
        /// What to do.
        hint: &'static str,
    },
    /// Pinned by another version, or tampered with.
    #[error(
        "{} has an unknown layout ({why}): another version of vmnat made it, and it is left as it is; go on with that version, or remove it with `vmnat down`, which ends the guests' connections",
        path.display()
    )]
    UnknownLayout {
        /// The pin.
        path: PathBuf,
        /// What differs.
        why: String,
    },
    /// A map of this version is not pinned.
    #[error("there is no map {}: `vmnat{option} up` makes it again", path.display())]
    MissingMap {
        /// Where it should be.
        path: PathBuf,
        /// The option that names the instance, where it is not the default.
        option: String,
    },
    /// Some steps failed.
    #[error("done in part; these steps failed:\n{}", steps.iter().map(|step| format!("  {step}")).collect::<Vec<_>>().join("\n"))]
    Partial {
        /// A line for each.
        steps: Vec<String>,
    },
    /// Some steps failed, and the others were undone.
    #[error("nothing was changed, because these steps failed:\n{}", steps.iter().map(|step| format!("  {step}")).collect::<Vec<_>>().join("\n"))]
    Undone {
        /// A line for each.
        steps: Vec<String>,
    },
    /// It runs, and not all of it.
    #[error("instance \"{instance}\" is not whole: {what}; `vmnat{option} up` puts that right")]
    Degraded {
        /// The instance.
        instance: String,
        /// What is missing.
        what: String,
        /// The option that names it, where it is not the default.
        option: String,
    },
    /// A configuration makes no sense, or cannot be.
    #[error(transparent)]
    BadConfig(#[from] Box<Faults>),
    /// No file says anything.
    #[error(
        "there is no configuration in {}: write vmnat.toml there (`vmnat config sample` shows every key), or name a file with -f",
        folder.display()
    )]
    NoConfig {
        /// Where it would be.
        folder: PathBuf,
    },
    /// A command would change what the files say.
    #[error("{what} is what {origin} says: change it there, and run `vmnat{option} apply`")]
    Foreign {
        /// What it is about.
        what: String,
        /// The file, or the folder of the files.
        origin: String,
        /// The option that names the instance, where it is not the default.
        option: String,
    },
    /// `diff` could not compare.
    #[error("{text}")]
    Trouble {
        /// Why.
        text: String,
    },
    /// The words after the command make no sense.
    #[error("{0}")]
    Usage(String),
}

impl Error {
    /// The code that a command ends with.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::NotPermitted { .. } => Exit::NotPermitted,
            Self::NoInterface { .. }
            | Self::NotABridge { .. }
            | Self::UnknownLinkLayer { .. }
            | Self::PortAsUplink { .. }
            | Self::NoUplink { .. }
            | Self::NoDefaultRoute => Exit::NoInterface,
            Self::NoUplinkAddress { .. } | Self::NotUplinksAddress { .. } => Exit::NoUplinkAddress,
            Self::KernelTooOld { .. } | Self::NoTcx { .. } => Exit::KernelTooOld,
            Self::NoBpfFs { .. } | Self::HiddenPins { .. } | Self::MissingMap { .. } => Exit::NoBpfFs,
            Self::Overlap { .. } => Exit::Overlap,
            Self::NotRunning { .. } => Exit::NotRunning,
            Self::Locked { .. } | Self::Taken { .. } | Self::Foreign { .. } => Exit::Conflict,
            Self::NotAGuest { .. }
            | Self::NoLease { .. }
            | Self::NoForward { .. }
            | Self::Silent
            | Self::Undone { .. }
            | Self::Unfit { .. }
            | Self::NoRoom { .. }
            | Self::TooMany { .. }
            | Self::BadStore { .. } => Exit::Failed,
            Self::UnknownLayout { .. } => Exit::UnknownLayout,
            Self::Partial { .. } => Exit::Partial,
            Self::Degraded { .. } => Exit::Degraded,
            Self::Offline => Exit::Offline,
            Self::BadConfig(faults) => faults.exit(),
            Self::NoConfig { .. } | Self::Trouble { .. } | Self::Usage(_) => Exit::Usage,
        }
    }
}

impl From<Faults> for Error {
    fn from(faults: Faults) -> Self {
        Self::BadConfig(Box::new(faults))
    }
}

/// The code for any error: that of the first of its causes that has one.
#[must_use]
pub fn exit_of(error: &anyhow::Error) -> Exit {
    error.chain().find_map(|cause| cause.downcast_ref::<Error>()).map_or(Exit::Failed, Error::exit)
}

/// An error that says what holds now and what to do, where the kernel or a disk had no room; any other as it is.
#[must_use]
pub fn with_remedy(error: anyhow::Error, outcome: &'static str) -> anyhow::Error {
    if error.chain().any(|cause| cause.downcast_ref::<Error>().is_some()) {
        return error;
    }
    let numbers = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error());
    let hint = numbers.last().and_then(|number| match number {
        libc::ENOMEM | libc::EAGAIN => {
            Some("free memory, or raise the limit of the control group that this runs in, and try again")
        }
        libc::E2BIG => {
            Some("a table of the kernel half is full: ask for fewer, or remove some, and try again")
        }
        libc::ENOSPC => Some("make room there (a disk, or a table of the kernel half), and try again"),
        _ => None,
    });
    match hint {
        Some(hint) => Error::NoRoom { what: format!("{error:#}"), outcome, hint }.into(),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn exit_code_survives_context() {
        let error: anyhow::Error = Err::<(), _>(Error::NoDefaultRoute).context("while starting").unwrap_err();
        assert_eq!(exit_of(&error), Exit::NoInterface);
        assert_eq!(exit_of(&anyhow::anyhow!("something else")), Exit::Failed);
    }

    #[test]
    fn what_has_no_room_is_told_with_a_remedy() {
        let full =
            Err::<(), _>(io::Error::from_raw_os_error(libc::ENOMEM)).context("write a network").unwrap_err();
        let text = format!("{:#}", with_remedy(full, "nothing was changed"));
        assert!(
            text.starts_with("write a network: ") && text.contains("; nothing was changed: free memory"),
            "{text}"
        );
        let other: anyhow::Error = Error::NoDefaultRoute.into();
        assert_eq!(exit_of(&with_remedy(other, "")), Exit::NoInterface);
    }
}
