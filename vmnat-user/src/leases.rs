//! Leases: where each guest's address lives, and by which names and MACs guests are known.
//!
//! Who knows a guest, best first: the lease files that were named with `--lease-file`, libvirt's status files of the
//! bridges that are served, the leases of a plain dnsmasq, what the programs have learned from traffic, the host's
//! neighbour table. The last two know MACs alone. Only addresses in networks of the instance count. A further source is
//! a file here that makes [`LeaseFact`]s, and a line in `directory.rs`.

mod directory;
mod dnsmasq;
mod libvirt;
mod listing;

use std::net::Ipv4Addr;

use vmnat_common::Mac;

pub use self::{
    directory::{Directory, files, in_force},
    listing::{LeaseRow, list},
};
#[cfg(any(test, fuzzing))]
pub(crate) use self::{dnsmasq::read as read_dnsmasq, libvirt::read as read_libvirt};

/// What a source knows of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseFact {
    /// The address.
    pub address: Ipv4Addr,
    /// The MAC, where the source knows it.
    pub mac: Option<Mac>,
    /// The name, where it has one.
    pub name: Option<String>,
    /// Second since 1970 at which the lease ends; the largest number for never.
    pub expires: u64,
}

#[cfg(test)]
impl LeaseFact {
    pub(crate) fn named(name: &str, address: [u8; 4]) -> Self {
        Self { address: address.into(), mac: None, name: Some(name.to_owned()), expires: u64::MAX }
    }
}

/// Reads a MAC such as `52:54:00:12:34:56`.
#[must_use]
pub fn mac(text: &str) -> Option<Mac> {
    let mut bytes = [0_u8; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part =
            parts.next().filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then(|| Mac::new(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_are_six_pairs() {
        assert_eq!(mac("52:54:00:aB:0c:01"), Some(Mac::new([0x52, 0x54, 0, 0xab, 0x0c, 1])));
        for text in ["", "52:54:00:ab:0c", "52:54:00:ab:0c:01:02", "52:54:0:ab:0c:01", "+2:54:00:ab:0c:01"] {
            assert_eq!(mac(text), None, "{text}");
        }
    }
}
