//! The sources, best first: which files there are, and what they hold.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;
use tracing::debug;

use super::{LeaseFact, Source, dnsmasq, hosts, libvirt, networkd};
use crate::{
    forwards::now,
    state::{Binding, State},
};

/// Where libvirt's dnsmasq keeps its files.
const LIBVIRT: &str = "/var/lib/libvirt/dnsmasq";

/// Where a plain dnsmasq keeps its leases: the file of Debian's package, and that of others.
const PLAIN: [&str; 2] = ["/var/lib/misc/dnsmasq.leases", "/var/lib/dnsmasq/dnsmasq.leases"];

/// Where systemd-networkd keeps its leases, a file a bridge; the second is for leases that do not outlive a boot.
const NETWORKD: [&str; 2] =
    ["/var/lib/systemd/network/dhcp-server-lease", "/run/systemd/netif/dhcp-server-lease"];

/// Interface indices of bridges by name, where sources need them.
pub type Instances<'a> = &'a dyn Fn(&str) -> Option<u32>;

/// The lease files that an instance looks at, best first; not all of them exist.
#[must_use]
pub fn files(state: &State) -> Vec<PathBuf> {
    sources(state).into_iter().map(|(_, path)| path).collect()
}

/// Every file with who writes it, best first.
fn sources(state: &State) -> Vec<(Source, PathBuf)> {
    let each = |source| move |path: PathBuf| (source, path);
    let of_bridges = |folder: &'static str, suffix: &'static str| {
        let name =
            move |bridge: &crate::state::Bridge| Path::new(folder).join(format!("{}{suffix}", bridge.name));
        state.bridges.iter().map(name)
    };
    let mut sources: Vec<(Source, PathBuf)> = Vec::new();
    sources.extend(state.lease_files.iter().cloned().map(each(Source::LeaseFile)));
    sources.extend(of_bridges(LIBVIRT, ".status").map(each(Source::Libvirt)));
    // Named after networks, not bridges.
    sources.extend(of_libvirt("hostsfile").map(each(Source::LibvirtHosts)));
    for folder in NETWORKD {
        sources.extend(of_bridges(folder, "").map(each(Source::Networkd)));
    }
    sources.extend(
        Some(&state.dhcp_leases)
            .filter(|file| !file.as_os_str().is_empty())
            .map(|file| (Source::Agent, file.clone())),
    );
    sources.extend(PLAIN.map(PathBuf::from).map(each(Source::Dnsmasq)));
    sources.extend(of_libvirt("leases").map(each(Source::Dnsmasq)));
    sources
}

/// What some of the files say that is in force.
#[must_use]
pub fn in_force(files: &[PathBuf]) -> Vec<LeaseFact> {
    let now = now();
    let found = files.iter().filter_map(|file| read_file(Source::LeaseFile, file)).flatten();
    found.filter(|lease| lease.expires > now).collect()
}

/// Files of libvirt's dnsmasq with an extension, in order.
fn of_libvirt(extension: &str) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(LIBVIRT).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    let mut paths: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
    paths.sort_unstable();
    paths.into_iter()
}

/// What the sources say.
pub(super) struct Given {
    /// What is in force, best first; of one file, those that end last come first.
    pub(super) leases: Vec<LeaseFact>,
    /// A file could not be understood, as while it is written: what it said before may still be true.
    pub(super) is_doubtful: bool,
}

/// Asks operator, files and bus.
pub(super) fn given(state: &State, index_of: Instances<'_>) -> Given {
    let mut leases: Vec<LeaseFact> = state.bindings.iter().filter_map(Binding::fact).collect();
    let mut is_doubtful = false;
    for (source, path) in sources(state) {
        let found = read_file(source, &path);
        is_doubtful |= found.is_none();
        let mut found = found.unwrap_or_default();
        found.sort_by_key(|lease| std::cmp::Reverse(lease.expires));
        leases.extend(found);
    }
    leases.extend(of_bus(state, index_of));
    let now = now();
    leases.retain(|lease| lease.expires > now);
    // Where a source says its part later, as the bus does, it still goes before the next one.
    leases.sort_by_key(|lease| lease.source);
    Given { leases, is_doubtful }
}

/// What the bus says: leases that change without any file that does.
#[must_use]
pub fn of_bus(state: &State, index_of: Instances<'_>) -> Vec<LeaseFact> {
    asked(state, index_of).into_iter().flat_map(networkd::ask).collect()
}

/// True where the bus is asked.
#[must_use]
pub fn may_ask_bus(state: &State, index_of: Instances<'_>) -> bool {
    !asked(state, index_of).is_empty()
}

/// Interfaces of which the bus is asked: networkd looks after them, and no file of it tells the leases with all MACs.
fn asked(state: &State, index_of: Instances<'_>) -> Vec<u32> {
    let is_complete = |name: &str| {
        let files = NETWORKD.iter().map(|folder| read_file(Source::Networkd, &Path::new(folder).join(name)));
        let mut facts = files.flatten().flatten().peekable();
        facts.peek().is_some() && facts.all(|fact| fact.mac.is_some())
    };
    let bridges = state.bridges.iter().map(|bridge| bridge.name.as_str());
    let found = bridges.filter_map(|name| Some((name, index_of(name)?)));
    found
        .filter(|(name, index)| networkd::manages(*index) && !is_complete(name))
        .map(|(_, index)| index)
        .collect()
}

/// The leases of a file, which may not exist; none where it cannot be understood.
fn read_file(source: Source, path: &Path) -> Option<Vec<LeaseFact>> {
    let Ok(text) = fs::read_to_string(path) else { return Some(Vec::new()) };
    let found = read(&text).inspect_err(|error| debug!("cannot understand {}: {error}", path.display()));
    let mut found = found.ok()?;
    for lease in &mut found {
        lease.source = source;
    }
    Some(found)
}

/// Reads a file by what it looks like.
pub(super) fn read(text: &str) -> Result<Vec<LeaseFact>, serde_json::Error> {
    match text.trim_start().bytes().next() {
        Some(b'[') => libvirt::read(text),
        Some(b'{') => networkd::read(text),
        _ if text
            .lines()
            .any(|line| line.split_whitespace().next().is_some_and(|word| word.contains(','))) =>
        {
            Ok(hosts::read(text))
        }
        _ => Ok(dnsmasq::read(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_told_apart() {
        let json = r#"[{"ip-address":"10.0.0.9","mac-address":"52:54:00:00:00:01","hostname":"web","expiry-time":9}]"#;
        let networkd = r#"{"Leases":[{"Address":[10,0,0,7]}]}"#;
        let texts =
            [json, networkd, "52:54:00:00:00:01,10.0.0.6,web\n", "0 52:54:00:00:00:01 10.0.0.8 web *\n", ""];
        let found = texts.map(|text| read(text).unwrap().first().map(|lease| lease.address.octets()[3]));
        assert_eq!(found, [Some(9), Some(7), Some(6), Some(8), None]);
    }

    #[test]
    fn files_are_tried_best_first() {
        let mut state = State::new(crate::state::HookMode::Tcx);
        state.lease_files.push("/srv/leases".into());
        state.bridges.push(crate::state::Bridge::new("br0"));
        let sources = sources(&state);
        assert!(sources.is_sorted_by_key(|(source, _)| *source), "{sources:?}");
        let path = |wanted| {
            sources.iter().find(|(source, _)| *source == wanted).map(|(_, path)| path.display().to_string())
        };
        assert_eq!(path(Source::Libvirt).as_deref(), Some("/var/lib/libvirt/dnsmasq/br0.status"));
        assert_eq!(path(Source::Networkd).as_deref(), Some("/var/lib/systemd/network/dhcp-server-lease/br0"));
    }
}
