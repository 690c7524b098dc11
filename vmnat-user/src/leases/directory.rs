//! The directory: every source's leases together, and who is meant by a name or a MAC.

use std::{
    collections::HashMap,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use anyhow::Result;
use tracing::debug;
use vmnat_common::{Mac, timeout::age};

use super::{LeaseFact, dnsmasq, libvirt};
use crate::{
    facts::Facts,
    forwards::{Target, now},
    plan::{self, PlannedNetwork},
    state::State,
    tables::Tables,
};

/// Where libvirt's dnsmasq keeps its files.
const LIBVIRT: &str = "/var/lib/libvirt/dnsmasq";

/// Where a plain dnsmasq keeps its leases: the file of Debian's package, and that of others.
const PLAIN: [&str; 2] = ["/var/lib/misc/dnsmasq.leases", "/var/lib/dnsmasq/dnsmasq.leases"];

/// Addresses that were seen within so many seconds are as good as each other.
const RECENT_SECONDS: u32 = 300;

/// The lease files that an instance looks at, best first; not all of them exist.
#[must_use]
pub fn files(state: &State) -> Vec<PathBuf> {
    let mut files = state.lease_files.clone();
    files.extend(
        state.bridges.iter().map(|bridge| Path::new(LIBVIRT).join(format!("{}.status", bridge.name))),
    );
    // What the agent gave: where libvirt's own server has a lease too, that one counts.
    files.extend(Some(&state.dhcp_leases).filter(|file| !file.as_os_str().is_empty()).cloned());
    files.extend(PLAIN.map(PathBuf::from));
    // Named after networks, not bridges.
    let mut others: Vec<PathBuf> = fs::read_dir(LIBVIRT)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "leases"))
        .collect();
    others.sort_unstable();
    files.extend(others);
    files
}

/// Who is known by which name and MAC.
#[derive(Debug, Default)]
pub struct Directory {
    names: HashMap<String, Ipv4Addr>,
    macs: HashMap<Mac, Ipv4Addr>,
    /// By address, as it was written.
    labels: HashMap<Ipv4Addr, String>,
}

impl Directory {
    /// Asks every source.
    ///
    /// # Errors
    /// When the kernel's maps cannot be read; files that cannot be are left out.
    pub fn gather(state: &State, facts: &Facts, tables: &Tables) -> Result<Self> {
        let networks = plan::managed(state, facts);
        let mut leases = read_files(state);
        leases.extend(learned(tables)?);
        let neighbours = facts.neighbours.iter().filter(|fact| fact.usable);
        leases.extend(neighbours.filter_map(|fact| Some(by_mac(fact.address.into(), fact.mac?))));
        leases.retain(|lease| is_inside(&networks, lease.address));
        Ok(Self::of(&leases))
    }

    /// The names that lease files know.
    #[must_use]
    pub fn of_files(state: &State) -> Self {
        Self::of(&read_files(state))
    }

    /// A directory of leases, best first.
    #[must_use]
    pub fn of(leases: &[LeaseFact]) -> Self {
        let mut directory = Self::default();
        for LeaseFact { address, mac, name, .. } in leases {
            if let Some(name) = name {
                directory.names.entry(name.to_ascii_lowercase()).or_insert(*address);
                directory.labels.entry(*address).or_insert_with(|| name.clone());
            }
            if let Some(mac) = mac {
                directory.macs.entry(*mac).or_insert(*address);
            }
        }
        // A whole name goes before a part of another.
        for LeaseFact { address, name, .. } in leases {
            if let Some((host, _)) = name.as_ref().and_then(|name| name.split_once('.')) {
                directory.names.entry(host.to_ascii_lowercase()).or_insert(*address);
            }
        }
        directory
    }

    /// The address of a target; none where nobody knows it.
    #[must_use]
    pub fn find(&self, target: &Target) -> Option<Ipv4Addr> {
        match target {
            Target::Address(address) => Some(*address),
            Target::Name(name) => self.names.get(&name.to_ascii_lowercase()).copied(),
            Target::Mac(mac) => self.macs.get(mac).copied(),
        }
    }

    /// The name of the guest with an address.
    #[must_use]
    pub fn name_of(&self, address: Ipv4Addr) -> Option<&str> {
        self.labels.get(&address).map(String::as_str)
    }

    /// Every name, in order.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.names.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }
}

/// What the programs have learned. Of a MAC's addresses the one that was seen last comes first; those of the same few
/// minutes go by number, so that a guest with two addresses does not move back and forth.
fn learned(tables: &Tables) -> Result<Vec<LeaseFact>> {
    let (now, hertz) = (tables.clock()?.stamp(), tables.settings()?.hertz);
    let span = hertz.saturating_mul(RECENT_SECONDS);
    let mut learned = tables.lease.entries()?;
    learned.sort_by_key(|(address, lease)| (age(now, lease.last_seen).checked_div(span), *address));
    Ok(learned.into_iter().map(|(address, lease)| by_mac(address.into(), lease.mac)).collect())
}

fn by_mac(address: Ipv4Addr, mac: Mac) -> LeaseFact {
    LeaseFact { address, mac: Some(mac), name: None, expires: u64::MAX }
}

fn is_inside(networks: &[PlannedNetwork], address: Ipv4Addr) -> bool {
    networks.iter().any(|network| network.subnet.contains(&address))
}

/// The leases of all files that are in force; within one file, those that end last come first.
fn read_files(state: &State) -> Vec<LeaseFact> {
    in_force(&files(state))
}

/// The leases of these files that are in force; within one file, those that end last come first.
#[must_use]
pub fn in_force(files: &[PathBuf]) -> Vec<LeaseFact> {
    let now = now();
    let mut leases = Vec::new();
    for path in files {
        let Ok(text) = fs::read_to_string(path) else { continue };
        let mut found = read(&text).unwrap_or_else(|error| {
            debug!("cannot understand {}: {error}", path.display());
            Vec::new()
        });
        found.retain(|lease| lease.expires > now);
        found.sort_by_key(|lease| std::cmp::Reverse(lease.expires));
        leases.extend(found);
    }
    leases
}

/// Reads a file by what it looks like.
fn read(text: &str) -> Result<Vec<LeaseFact>, serde_json::Error> {
    if text.trim_start().starts_with('[') { libvirt::read(text) } else { Ok(dnsmasq::read(text)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(directory: &Directory, target: &str) -> Option<String> {
        let spec: crate::forwards::ForwardSpec = format!("80:{target}:80").parse().unwrap();
        directory.find(&spec.target).map(|address| address.to_string())
    }

    #[test]
    fn names_are_known_in_any_case_with_and_without_their_domain() {
        let leases = [("Web.example.org", 1), ("db", 2), ("mail.example.org", 3), ("mail", 4)];
        let leases = leases.map(|(name, last)| LeaseFact::named(name, [10, 0, 0, last]));
        let directory = Directory::of(&leases);
        for (name, address) in [
            ("web", Some("10.0.0.1")),
            ("WEB.example.ORG", Some("10.0.0.1")),
            ("db", Some("10.0.0.2")),
            ("db.example.org", None),
            ("mail", Some("10.0.0.4")),
        ] {
            assert_eq!(find(&directory, name).as_deref(), address, "{name}");
        }
        assert_eq!(directory.name_of([10, 0, 0, 1].into()), Some("Web.example.org"));
    }

    #[test]
    fn the_better_source_wins_and_formats_are_told_apart() {
        let json = r#"[{"ip-address":"10.0.0.9","mac-address":"52:54:00:00:00:01","hostname":"web","expiry-time":9}]"#;
        let plain = "0 52:54:00:00:00:01 10.0.0.8 web *\n";
        let mut leases = read(plain).unwrap();
        leases.extend(read(json).unwrap());
        let directory = Directory::of(&leases);
        assert_eq!(find(&directory, "web").as_deref(), Some("10.0.0.8"));
        assert_eq!(find(&directory, "[52:54:00:00:00:01]").as_deref(), Some("10.0.0.8"));
        assert_eq!(read("").unwrap(), []);
    }
}
