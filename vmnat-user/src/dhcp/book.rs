//! The book: who has which address until when, kept over the agent's end and a crash of the host.
//!
//! The file has dnsmasq's format (`expiry mac address name client-id`), so the directory of leases reads it as any other. It is
//! written to a temporary file, synced and renamed before a client hears that it has an address.

use std::{collections::BTreeMap, fmt::Write as _, fs, io, net::Ipv4Addr, path::Path};

use anyhow::{Context as _, Result};
use vmnat_common::Mac;

use crate::{leases, whole_file::Staged};

/// Who asks: by the identifier that it gives itself, else by its MAC (RFC 2131 section 4.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// The MAC.
    pub mac: Mac,
    /// The client identifier, option 61.
    pub id: Option<Vec<u8>>,
}

/// A client's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Whose it is.
    pub client: Client,
    /// The name that the client gave itself, or that the network gives it.
    pub name: Option<String>,
    /// Second since 1970 at which it ends.
    pub expires: u64,
    /// Index of the bridge's port that it was given to; 0 after a restart.
    pub port: u32,
}

/// The leases of an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Book {
    entries: BTreeMap<Ipv4Addr, Entry>,
}

impl Book {
    /// Reads the file; an empty book where there is none.
    ///
    /// # Errors
    /// When there is one that cannot be read.
    pub fn load(path: &Path) -> Result<Self> {
        match fs::read_to_string(path) {
            Ok(text) => Ok(Self::read(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    pub(crate) fn read(text: &str) -> Self {
        let entry = |line: &str| {
            let mut words = line.split_ascii_whitespace();
            let expires = words.next()?.parse().ok()?;
            let mac = leases::mac(words.next()?)?;
            let address = words.next()?.parse().ok()?;
            let name = words.next().filter(|name| *name != "*").map(str::to_owned);
            let id = words.next().filter(|id| *id != "*").and_then(bytes_of);
            Some((address, Entry { client: Client { mac, id }, name, expires, port: 0 }))
        };
        Self { entries: text.lines().filter_map(entry).collect() }
    }

    /// The file's text.
    #[must_use]
    pub fn written(&self) -> String {
        let mut text = String::new();
        for (address, Entry { client, name, expires, .. }) in &self.entries {
            let id = client.id.as_ref().map_or_else(|| "*".to_owned(), |id| hex(id));
            let (mac, name) = (client.mac, name.as_deref().unwrap_or("*"));
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{expires} {mac} {address} {name} {id}");
        }
        text
    }

    /// Writes the file.
    ///
    /// # Errors
    /// What the file system answers; the file is as it was.
    pub fn save(&self, path: &Path) -> Result<()> {
        let staged = Staged::bytes(path, self.written().as_bytes());
        staged.with_context(|| format!("write {}", path.display()))?.commit()
    }

    /// The address that a client has or had, in one of the networks that `is_here` picks. One with an identifier is known by
    /// it, and by its MAC where the lease has none.
    pub fn of(&self, client: &Client, is_here: impl Fn(Ipv4Addr) -> bool) -> Option<Ipv4Addr> {
        let mut here = self.entries.iter().filter(|(address, _)| is_here(**address));
        let same = |entry: &Entry| match (&entry.client.id, &client.id) {
            (Some(one), Some(other)) => one == other && entry.client.mac == client.mac,
            _ => entry.client.mac == client.mac,
        };
        here.find(|(_, entry)| same(entry)).map(|(address, _)| *address)
    }

    /// The entry of an address.
    #[must_use]
    pub fn at(&self, address: Ipv4Addr) -> Option<&Entry> {
        self.entries.get(&address)
    }

    /// True when the name is another client's, whose lease is in force.
    #[must_use]
    pub fn names_another(&self, name: &str, address: Ipv4Addr, now: u64) -> bool {
        self.entries.iter().any(|(other, entry)| {
            *other != address
                && entry.expires > now
                && entry.name.as_deref().is_some_and(|known| known.eq_ignore_ascii_case(name))
        })
    }

    /// The leases in force that were given to a port.
    #[must_use]
    pub fn behind(&self, port: u32, now: u64) -> usize {
        self.entries.values().filter(|entry| entry.port == port && entry.expires > now).count()
    }

    /// Notes a lease.
    pub fn note(&mut self, address: Ipv4Addr, entry: Entry) {
        self.entries.insert(address, entry);
    }

    /// Ends the lease that a client has; true when it had it.
    pub fn end(&mut self, address: Ipv4Addr, mac: Mac, now: u64) -> bool {
        match self.entries.get_mut(&address) {
            Some(entry) if entry.client.mac == mac && entry.expires > now => {
                entry.expires = now;
                true
            }
            _ => false,
        }
    }

    /// Forgets what ended before `then`: until then its client gets the same address again.
    pub fn forget(&mut self, then: u64) {
        self.entries.retain(|_, entry| entry.expires > then);
    }
}

fn hex(bytes: &[u8]) -> String {
    let pairs: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    pairs.join(":")
}

fn bytes_of(text: &str) -> Option<Vec<u8>> {
    text.split(':').map(|pair| u8::from_str_radix(pair, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(last: u8, id: Option<&[u8]>, expires: u64) -> Entry {
        let client = Client { mac: Mac::new([2, 0, 0, 0, 0, last]), id: id.map(<[u8]>::to_vec) };
        Entry { client, name: Some(format!("g{last}")), expires, port: 0 }
    }

    fn address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, last)
    }

    #[test]
    fn what_is_written_is_read_back_and_a_directory_reads_it_too() {
        let mut book = Book::default();
        book.note(address(5), entry(1, Some(&[1, 0xab]), 1000));
        book.note(address(6), Entry { name: None, ..entry(2, None, 2000) });
        let text = book.written();
        assert_eq!(text, "1000 02:00:00:00:00:01 10.0.0.5 g1 01:ab\n2000 02:00:00:00:00:02 10.0.0.6 * *\n");
        assert_eq!(Book::read(&text), book);
        let folder = std::env::temp_dir().join(format!("vmnat-book-{}", std::process::id()));
        let path = folder.join("dhcp.leases");
        book.save(&path).unwrap();
        assert_eq!(Book::load(&path).unwrap(), book);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        fs::remove_dir_all(folder).unwrap();
        assert_eq!(Book::load(&path).unwrap(), Book::default());
    }

    #[test]
    fn a_client_is_known_by_its_identifier_or_its_mac() {
        let mut book = Book::default();
        book.note(address(5), entry(1, Some(&[1]), 1000));
        book.note(address(6), entry(2, None, 1000));
        let of = |last, id: Option<&[u8]>| book.of(&entry(last, id, 0).client, |_| true);
        assert_eq!(of(1, Some(&[1])), Some(address(5)));
        assert_eq!(of(1, Some(&[2])), None, "another system of the same machine");
        assert_eq!(of(1, None), Some(address(5)));
        assert_eq!(of(2, Some(&[9])), Some(address(6)));
        assert_eq!(of(3, Some(&[1])), None, "an identifier is no proof");
        assert_eq!(book.of(&entry(1, None, 0).client, |_| false), None, "another network");
    }

    #[test]
    fn a_lease_is_ended_by_its_holder_alone_and_remembered_for_a_while() {
        let mut book = Book::default();
        book.note(address(5), entry(1, None, 1000));
        assert!(!book.end(address(5), Mac::new([2, 0, 0, 0, 0, 9]), 500));
        assert!(book.end(address(5), Mac::new([2, 0, 0, 0, 0, 1]), 500));
        assert!(!book.end(address(5), Mac::new([2, 0, 0, 0, 0, 1]), 600), "it has ended");
        book.forget(499);
        assert!(book.at(address(5)).is_some());
        book.forget(500);
        assert!(book.at(address(5)).is_none());
    }

    #[test]
    fn a_name_is_one_clients() {
        let mut book = Book::default();
        book.note(address(5), entry(1, None, 1000));
        assert!(book.names_another("G1", address(6), 999));
        assert!(!book.names_another("g1", address(5), 999));
        assert!(!book.names_another("g1", address(6), 1000));
    }
}
