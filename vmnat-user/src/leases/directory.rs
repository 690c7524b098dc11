//! The directory: every source's leases together, and who is meant by a name or a MAC.

use std::{collections::HashMap, net::Ipv4Addr};

use anyhow::Result;
use vmnat_common::{Mac, timeout::age};

use super::{
    LeaseFact, Source,
    sources::{self, Given},
};
use crate::{
    facts::Facts,
    forwards::Target,
    plan::{self, PlannedNetwork},
    state::State,
    tables::Tables,
};

/// Addresses that were seen within so many seconds are as good as each other.
const RECENT_SECONDS: u32 = 300;

/// Who is known by which name and MAC, and to whom each address was given.
#[derive(Debug, Default)]
pub struct Directory {
    names: HashMap<String, Ipv4Addr>,
    macs: HashMap<Mac, Ipv4Addr>,
    /// By address: the name as it was written, and who says so.
    labels: HashMap<Ipv4Addr, (String, Source)>,
    /// To whom each address was given.
    given: HashMap<Ipv4Addr, LeaseFact>,
    /// A source could not be understood.
    is_doubtful: bool,
}

impl Directory {
    /// Asks every source.
    ///
    /// # Errors
    /// When the kernel's maps cannot be read; files that cannot be are left out.
    pub fn gather(state: &State, facts: &Facts, tables: &Tables) -> Result<Self> {
        let networks = plan::managed(state, facts);
        let index_of = |name: &str| facts.link(name).map(|link| link.index);
        let mut leases = sources::given(state, &index_of).leases;
        leases.extend(learned(tables)?);
        let neighbours = facts.neighbours.iter().filter(|fact| fact.usable);
        let by_neighbour = |address, mac| by_mac(Source::Neighbour, address, mac);
        leases.extend(neighbours.filter_map(|fact| Some(by_neighbour(fact.address.into(), fact.mac?))));
        leases.retain(|lease| is_inside(&networks, lease.address));
        Ok(Self::of(&leases))
    }

    /// What operator, lease files and DHCP servers know; bridges are those of the calling thread's network namespace.
    #[must_use]
    pub fn of_files(state: &State) -> Self {
        Self::of(&sources::given(state, &|name| nix::net::if_::if_nametoindex(name).ok()).leases)
    }

    /// The same with the picture of a namespace; of addresses in its networks alone.
    #[must_use]
    pub fn given(state: &State, facts: &Facts) -> Self {
        let networks = plan::managed(state, facts);
        let Given { mut leases, is_doubtful } =
            sources::given(state, &|name| facts.link(name).map(|link| link.index));
        leases.retain(|lease| is_inside(&networks, lease.address));
        Self { is_doubtful, ..Self::of(&leases) }
    }

    /// True where a source could not be understood, as while its file is written: what it said before may still be true.
    #[must_use]
    pub const fn is_doubtful(&self) -> bool {
        self.is_doubtful
    }

    /// A directory of leases, best first.
    #[must_use]
    pub fn of(leases: &[LeaseFact]) -> Self {
        let mut directory = Self::default();
        for lease in leases {
            let LeaseFact { address, mac, name, source, .. } = lease;
            if let Some(name) = name {
                directory.names.entry(name.to_ascii_lowercase()).or_insert(*address);
                directory.labels.entry(*address).or_insert_with(|| (name.clone(), *source));
            }
            if let Some(mac) = mac {
                directory.macs.entry(*mac).or_insert(*address);
                if source.binds() {
                    directory.given.entry(*address).or_insert_with(|| lease.clone());
                }
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
        self.label_of(address).map(|(name, _)| name)
    }

    /// The name of the guest with an address, and who says so.
    #[must_use]
    pub fn label_of(&self, address: Ipv4Addr) -> Option<(&str, Source)> {
        self.labels.get(&address).map(|(name, source)| (name.as_str(), *source))
    }

    /// To whom an address was given, by the best source; such facts have a MAC.
    #[must_use]
    pub fn holder_of(&self, address: Ipv4Addr) -> Option<&LeaseFact> {
        self.given.get(&address)
    }

    /// Every address that was given to somebody.
    pub fn holders(&self) -> impl Iterator<Item = &LeaseFact> {
        self.given.values()
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
    Ok(learned
        .into_iter()
        .map(|(address, lease)| by_mac(Source::Traffic, address.into(), lease.mac))
        .collect())
}

fn by_mac(source: Source, address: Ipv4Addr, mac: Mac) -> LeaseFact {
    LeaseFact { mac: Some(mac), ..LeaseFact::of(source, address) }
}

fn is_inside(networks: &[PlannedNetwork], address: Ipv4Addr) -> bool {
    networks.iter().any(|network| network.subnet.contains(&address))
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
    fn the_better_source_wins() {
        let plain = "0 52:54:00:00:00:01 10.0.0.8 web *\n0 52:54:00:00:00:02 10.0.0.9 db *\n";
        let json = r#"[{"ip-address":"10.0.0.9","mac-address":"52:54:00:00:00:01","hostname":"web","expiry-time":9}]"#;
        let mut leases = sources::read(plain).unwrap();
        leases.extend(sources::read(json).unwrap());
        let directory = Directory::of(&leases);
        assert_eq!(find(&directory, "web").as_deref(), Some("10.0.0.8"));
        assert_eq!(find(&directory, "[52:54:00:00:00:01]").as_deref(), Some("10.0.0.8"));
        let holder = directory.holder_of([10, 0, 0, 9].into()).unwrap();
        assert_eq!((holder.mac, holder.source), (crate::leases::mac("52:54:00:00:00:02"), Source::Dnsmasq));
    }

    #[test]
    fn who_says_so_of_itself_was_given_nothing() {
        let mac = Mac::new([2, 0, 0, 0, 0, 1]);
        let directory = Directory::of(&[by_mac(Source::Traffic, [10, 0, 0, 9].into(), mac)]);
        assert_eq!(directory.holder_of([10, 0, 0, 9].into()), None);
    }
}
