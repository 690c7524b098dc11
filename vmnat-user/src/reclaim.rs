//! Ports that the host takes: a socket that is bound to a port after a guest got it wins.
//!
//! The kernel half gives such a port to no further flow, and what comes in for no flow reaches the socket at once. What is
//! left is done here: the port leaves the pool, so that nobody claims it again; the guest's endpoint loses its mapping, so
//! that its next flow gets another; the flows on the port end, because their remotes speak with the socket's port.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use vmnat_common::{
    Address, Endpoint, Port, Protocol,
    mapping::{Mapping, MappingKey},
    port_range::pool_bit,
    session::Flags,
};

use crate::{
    host_sockets::{self, Sockets},
    reconcile,
    tables::Tables,
};

/// A mapping whose external port a socket of the host has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The protocol.
    pub protocol: Protocol,
    /// The external endpoint.
    pub external: Endpoint,
    /// The guest's endpoint.
    pub internal: Endpoint,
}

/// The mappings whose external port a socket of the host waits at. A connected socket takes nothing but its own tuple,
/// which the kernel half leaves to it.
///
/// # Errors
/// What the kernel answers.
pub fn find(tables: &Tables) -> Result<Vec<Taken>> {
    let uplinks = tables.uplink.entries().context("read the uplinks")?;
    let sockets = host_sockets::sockets()?;
    let mut taken = Vec::new();
    for external in uplinks.iter().flat_map(|(_, uplink)| held(&sockets, uplink.address)) {
        let (protocol, external) = external;
        let owner = tables.mapping.get(&MappingKey::external(protocol.number(), external))?;
        taken.extend(owner.map(|owner| Taken { protocol, external, internal: owner.other() }));
    }
    Ok(taken)
}

/// The endpoints on an external address at which sockets of the host wait.
fn held(sockets: &Sockets, address: Address) -> Vec<(Protocol, Endpoint)> {
    let at = Ipv4Addr::from(address);
    let all = sockets.iter().filter(|(_, _, socket)| socket.at.is_unspecified() || socket.at == at);
    let mut held: Vec<_> =
        all.map(|(protocol, port, _)| (protocol, Endpoint::new(address, Port::new(port)))).collect();
    held.dedup();
    held
}

/// Gives the port to the host; returns the number of flows that ended. The instance must be locked, since the pool is changed.
///
/// # Errors
/// What the kernel answers.
pub fn give_back(tables: &Tables, taken: &Taken) -> Result<usize> {
    let Taken { protocol, external, internal } = *taken;
    if let Some((index, bit)) = pool_bit(protocol, external.port.number()) {
        let word = tables.port_pool.get(&index)?.unwrap_or(0);
        tables.port_pool.set(&index, &(word & !bit)).context("take a port out of the pool")?;
    }
    let inner = MappingKey::internal(protocol.number(), internal, external.address);
    if tables.mapping.get(&inner)?.as_ref().map(Mapping::other) == Some(external) {
        tables.mapping.remove(&inner)?;
    }
    // Also those that share the port because the pool was full.
    let ended = reconcile::flush(tables, |key, session| {
        key.protocol == protocol.number() && session.rewritten() == external && !session.has(Flags::FORWARDED)
    })?;
    tables.mapping.remove(&MappingKey::external(protocol.number(), external))?;
    Ok(ended)
}
