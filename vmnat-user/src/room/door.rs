//! The room's doors: three pairs of interfaces, one end on the host, one in the room.
//!
//! All ends take packets of any size: what is too large for the way out must come in to be cut, and the routes of the room
//! say how large that is (`interior`). No end speaks by itself: no ARP, no IPv6, and no address on the host's side. What
//! comes out of the room bears the MAC of the room's end as its destination, so that the host's stack leaves it alone
//! where no program takes it.

use std::{fs::File, io, os::fd::AsRawFd as _, path::Path};

use anyhow::{Context as _, Result};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
};
use vmnat_common::{Mac, room};

use crate::{facts::LinkFact, netlink, paths::Instance, sysctl};

/// The largest that a veth takes.
const MTU: u32 = 65_535;

/// A pair of interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Door {
    /// Guests' side.
    Inner,
    /// The world's side.
    Outer,
    /// What comes in is refused.
    Refusing,
}

impl Door {
    /// All of them.
    pub(super) const ALL: [Self; 3] = [Self::Inner, Self::Outer, Self::Refusing];

    /// Name of the room's end.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Inner => "inner",
            Self::Outer => "outer",
            Self::Refusing => "refusing",
        }
    }

    /// Name of the host's end; at most 15 characters.
    pub(super) fn host_name(self, instance: &Instance) -> String {
        let word = match self {
            Self::Inner => "in",
            Self::Outer => "out",
            Self::Refusing => "no",
        };
        if *instance == Instance::default() {
            return format!("vmnat-{word}");
        }
        format!("vmnat-{word}-{:05x}", digest(instance.name()))
    }

    const fn mac(self) -> Mac {
        match self {
            Self::Inner => room::INNER_MAC,
            Self::Outer => room::OUTER_MAC,
            Self::Refusing => room::REFUSING_MAC,
        }
    }

    /// That of the host's end, which no frame is addressed to. One of its own keeps udev from choosing another.
    fn host_mac(self) -> Vec<u8> {
        let mut mac = self.mac().bytes().to_vec();
        mac.iter_mut().skip(4).take(1).for_each(|byte| *byte = 1);
        mac
    }
}

/// Twenty bits of FNV-1a: the same in every release.
fn digest(name: &str) -> u32 {
    let hash =
        name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (hash ^ (hash >> 20)) & 0x000f_ffff
}

/// Makes a pair, and brings the host's end up; returns its index. The room's end can come up only then (`veth_open()`).
///
/// # Errors
/// What the kernel answers.
pub(super) fn open(door: Door, name: &str, namespace: &File) -> Result<u32> {
    let mut peer = silent(door.name(), door.mac().bytes().to_vec());
    peer.attributes.push(LinkAttribute::NetNsFd(namespace.as_raw_fd()));
    let mut pair = silent(name, door.host_mac());
    pair.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    netlink::change(RouteNetlinkMessage::NewLink(pair), NLM_F_CREATE | NLM_F_EXCL)
        .with_context(|| format!("make the interfaces {name} and {}", door.name()))?;
    // Before it is up, so that nothing is ever announced by it. Without IPv6 there is nothing to turn off.
    let setting = format!("net/ipv6/conf/{name}/disable_ipv6");
    if Path::new("/proc/sys").join(&setting).exists() {
        sysctl::write(&setting, "1")?;
    }
    bring_up(name)
}

/// Brings an interface of the calling thread's network namespace up; returns its index.
///
/// # Errors
/// What the kernel answers.
pub(super) fn bring_up(name: &str) -> Result<u32> {
    let index = nix::net::if_::if_nametoindex(name).with_context(|| format!("find {name}"))?;
    let mut up = LinkMessage::default();
    up.header.index = index;
    up.header.flags = LinkFlags::Up;
    up.header.change_mask = LinkFlags::Up;
    netlink::change(RouteNetlinkMessage::SetLink(up), 0).with_context(|| format!("bring up {name}"))?;
    Ok(index)
}

/// The host's ends that are here, by index: interfaces with these names and MACs, of this kind.
///
/// # Errors
/// What the kernel answers.
pub(super) fn find(instance: &Instance) -> io::Result<Vec<u32>> {
    let own = Door::ALL.map(|door| {
        [LinkAttribute::IfName(door.host_name(instance)), LinkAttribute::Address(door.host_mac())]
    });
    let is_veth = |attribute: &LinkAttribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.contains(&LinkInfo::Kind(InfoKind::Veth)),
        _ => false,
    };
    let links = netlink::links()?.into_iter().filter(|link| {
        let has = |wanted: &LinkAttribute| link.attributes.contains(wanted);
        link.attributes.iter().any(is_veth) && own.iter().any(|attributes| attributes.iter().all(has))
    });
    Ok(links.map(|link| link.header.index).collect())
}

/// Deletes a pair by its host's end; false when it is gone already.
///
/// # Errors
/// What the kernel answers.
pub(super) fn close(index: u32) -> io::Result<bool> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    match netlink::change(RouteNetlinkMessage::DelLink(link), 0) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(false),
        Err(error) => Err(error),
    }
}

/// True when an interface can be the host's end of a door.
pub(super) fn fits(link: &LinkFact) -> bool {
    link.kind.as_deref() == Some("veth") && link.up && link.master.is_none()
}

fn silent(name: &str, mac: Vec<u8>) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.flags = LinkFlags::Noarp;
    link.header.change_mask = LinkFlags::Noarp;
    link.attributes =
        vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::Mtu(MTU), LinkAttribute::Address(mac)];
    link
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_ends_have_names_of_their_own_that_fit() {
        let names = |instance: &str| Door::ALL.map(|door| door.host_name(&instance.parse().unwrap()));
        assert_eq!(names("default"), ["vmnat-in", "vmnat-out", "vmnat-no"]);
        let instances = ["default", "lab", "lab2", "a-very-long-name-of-an-instance-"];
        let mut all: Vec<String> = instances.into_iter().flat_map(names).collect();
        assert!(all.iter().all(|name| name.len() <= 15), "{all:?}");
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 12);
    }

    #[test]
    fn the_hosts_ends_are_no_stations_that_frames_are_addressed_to() {
        for door in Door::ALL {
            assert!(Door::ALL.iter().all(|other| other.mac().bytes().as_slice() != door.host_mac()));
        }
    }
}
