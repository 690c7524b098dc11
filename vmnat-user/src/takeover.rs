//! The takeover: translations that the kernel's connection tracking holds become flows of vmnat, with their exact
//! ports, so that no download dies when vmnat replaces netfilter's masquerade.
//!
//! This is the one exception to the rule of the port pool. Each flow is the exact tuple; its mapping is claimed
//! like any other, so the port is not handed to a second guest. Where a socket of the host has the port, the
//! host keeps it. The programs complete next hop, port and MACs at the flow's next packet, since its epoch is
//! an old one.

use std::io;

use anyhow::Result;
use ipnet::Ipv4Net;
use vmnat_common::{
    Address, Endpoint, Mac,
    bridge::BridgePort,
    flow::FlowKey,
    mapping::{Mapping, MappingKey},
    session::{Flags, Session},
};

use crate::{
    conntrack::{self, Translation},
    host_ports,
    tables::Tables,
};

/// What came of a takeover.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TakenOver {
    /// Flows that were taken over.
    pub flows: usize,
    /// Translations that were left to the kernel, because the host or another flow holds their port, or their
    /// address is no uplink's.
    pub skipped: usize,
    /// Why nothing could be looked up.
    pub unavailable: Option<String>,
}

/// Takes over what the kernel holds for the guests of the networks in the tables.
///
/// # Errors
/// When a map refuses for another reason than that the entry exists.
pub fn take_over(tables: &Tables) -> Result<TakenOver> {
    let networks: Vec<(Ipv4Net, u32)> = tables.network.entries()?.iter().filter_map(subnet).collect();
    let subnets: Vec<Ipv4Net> = networks.iter().map(|(subnet, _)| *subnet).collect();
    let translations = match conntrack::translations(&subnets) {
        Ok(translations) => translations,
        Err(why) => return Ok(TakenOver { unavailable: Some(why.to_string()), ..TakenOver::default() }),
    };
    let taken = host_ports::taken()?;
    let now = Moment::of(tables)?;
    let mut done = TakenOver::default();
    for translation in translations {
        let held = taken.sockets.contains(&(translation.protocol, translation.external.port.number()));
        let place = if held { None } else { place(tables, &networks, &translation)? };
        let opened = match place {
            Some(place) => open(tables, &translation, &place, now)?,
            None => false,
        };
        let count = if opened { &mut done.flows } else { &mut done.skipped };
        *count = count.saturating_add(1);
    }
    Ok(done)
}

/// The clock as flows store it.
#[derive(Clone, Copy)]
struct Moment {
    stamp: u32,
    stale_epoch: u16,
}

impl Moment {
    fn of(tables: &Tables) -> Result<Self> {
        let clock = tables.clock()?;
        let epoch = tables.settings()?.epoch(clock.jiffies);
        Ok(Self { stamp: clock.stamp(), stale_epoch: epoch.wrapping_sub(1) })
    }
}

/// Where a flow enters and leaves the host.
struct Place {
    uplink: u32,
    uplink_mtu: u16,
    bridge: BridgePort,
}

fn place(tables: &Tables, networks: &[(Ipv4Net, u32)], translation: &Translation) -> Result<Option<Place>> {
    let uplinks = tables.uplink.entries()?;
    let uplink = uplinks.iter().find(|(_, uplink)| uplink.address == translation.external.address);
    let guest = std::net::Ipv4Addr::from(translation.internal.address);
    let network = networks.iter().find(|(subnet, _)| subnet.contains(&guest));
    let (Some((index, uplink)), Some((_, bridge))) = (uplink, network) else { return Ok(None) };
    let bridge = tables.bridge_port.get(bridge)?;
    Ok(bridge.map(|bridge| Place { uplink: *index, uplink_mtu: uplink.mtu, bridge }))
}

/// Inserts both halves, the uplink's first; false when another flow holds one of them.
fn open(tables: &Tables, translation: &Translation, place: &Place, now: Moment) -> Result<bool> {
    let Translation { protocol, internal, remote, external, seen_outbound, seen_inbound, replied, forwarded } =
        *translation;
    let key = FlowKey::guest(protocol, internal, remote);
    let reverse = key.reverse(external);
    let mapped = !forwarded && claim(tables, protocol.number(), internal, external, now)?;
    let mut flags = Flags::IMPORTED;
    flags |= if forwarded { Flags::FORWARDED } else { 0 };
    // What came in by an uplink is answered by it.
    let of_guest = match (forwarded, mapped) {
        (true, _) => Flags::ANSWERS,
        (false, true) => Flags::MAPPED,
        (false, false) => 0,
    };
    let inbound = Session {
        out_if: place.bridge.bridge,
        in_if: place.uplink,
        source_mac: place.bridge.mac,
        mtu: place.bridge.mtu,
        tcp_seen: seen_inbound,
        packets: u32::from(replied || forwarded),
        ..half(internal, flags | Flags::VIA_NEIGHBOUR, now)
    };
    let outbound = Session {
        out_if: place.uplink,
        mtu: place.uplink_mtu,
        tcp_seen: seen_outbound,
        packets: u32::from(replied || !forwarded),
        ..half(external, flags | of_guest, now)
    };
    if !tables.flow.insert(&reverse, &inbound)? {
        return release(tables, mapped, protocol.number(), internal, external);
    }
    if !tables.flow.insert(&key, &outbound)? {
        tables.flow.remove(&reverse)?;
        return release(tables, mapped, protocol.number(), internal, external);
    }
    Ok(true)
}

fn half(new: Endpoint, flags: u8, now: Moment) -> Session {
    Session {
        address: new.address,
        port: new.port,
        tcp_seen: 0,
        flags,
        out_if: 0,
        in_if: 0,
        next_hop: Address::UNSPECIFIED,
        destination_mac: Mac::ZERO,
        source_mac: Mac::ZERO,
        mtu: 0,
        epoch: now.stale_epoch,
        last_seen: now.stamp,
        packets: 0,
        bytes: 0,
    }
}

/// Claims the mapping, external end first, and counts one flow on it; false where it is another's.
fn claim(
    tables: &Tables,
    protocol: u8,
    internal: Endpoint,
    external: Endpoint,
    now: Moment,
) -> io::Result<bool> {
    let end = |endpoint: Endpoint, flows| Mapping {
        address: endpoint.address,
        port: endpoint.port,
        flags: 0,
        flows,
        last_used: now.stamp,
    };
    let outer = MappingKey::external(protocol, external);
    let inner = MappingKey::internal(protocol, internal, external.address);
    if !tables.mapping.insert(&outer, &end(internal, 0))? {
        return count(tables, &inner, external, 1);
    }
    if tables.mapping.insert(&inner, &end(external, 1))? {
        tables.note_owner(protocol, internal, external)?;
        return Ok(true);
    }
    // The guest's endpoint has another external port already.
    tables.mapping.remove(&outer)?;
    Ok(false)
}

/// Counts a flow more or less, where the mapping is this one; the programs do not run on it yet.
fn count(tables: &Tables, inner: &MappingKey, external: Endpoint, by: i32) -> io::Result<bool> {
    match tables.mapping.get(inner)? {
        Some(mapping) if mapping.other() == external => {
            tables.mapping.set(inner, &Mapping { flows: mapping.flows.saturating_add(by), ..mapping })?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

fn release(
    tables: &Tables,
    mapped: bool,
    protocol: u8,
    internal: Endpoint,
    external: Endpoint,
) -> Result<bool> {
    if mapped {
        count(tables, &MappingKey::internal(protocol, internal, external.address), external, -1)?;
    }
    Ok(false)
}

fn subnet(
    entry: &(vmnat_common::network::NetworkKey, vmnat_common::network::Network),
) -> Option<(Ipv4Net, u32)> {
    let (key, network) = entry;
    let prefix = u8::try_from(key.prefix).ok()?;
    Some((Ipv4Net::new(key.address.into(), prefix).ok()?, network.bridge))
}
