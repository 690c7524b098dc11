//! The mapping: which external endpoint an internal endpoint has, whatever it talks to (RFC 4787 REQ-1).
//!
//! A mapping is two entries in one map, internal to external and back. It is consulted and claimed when a flow is
//! opened, never on the hot path. Claiming is `NOEXIST` on the external entry first, so two guests never hold
//! one external endpoint. It outlives its sessions by the rest of a freed port (RFC 6888 REQ-8).

use bytemuck::{Pod, Zeroable};

use crate::endpoint::{Address, Endpoint, Port, Protocol};

/// Which end of a mapping the key names.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Key is the guest's endpoint, value holds the external one.
    Internal = 0,
    /// Key is the external endpoint, value holds the guest's.
    External = 1,
}

/// Key of the `MAPPING` map.
///
/// An internal endpoint that leaves by two uplinks has a mapping on the address of each.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct MappingKey {
    /// Address of the endpoint.
    pub address: Address,
    /// Of an internal end: the external address that the mapping is on. Unspecified for an external end.
    pub on: Address,
    /// Port or identifier.
    pub port: Port,
    /// IP protocol number.
    pub protocol: u8,
    /// [`End`] as a number.
    pub end: u8,
}

const _: () = assert!(size_of::<MappingKey>() == 12);

impl MappingKey {
    /// The key of a guest's endpoint, for its mapping on the external address `on`.
    #[must_use]
    pub const fn internal(protocol: u8, endpoint: Endpoint, on: Address) -> Self {
        Self { address: endpoint.address, on, port: endpoint.port, protocol, end: End::Internal as u8 }
    }

    /// The key of an external endpoint.
    #[must_use]
    pub const fn external(protocol: u8, endpoint: Endpoint) -> Self {
        let on = Address::UNSPECIFIED;
        Self { address: endpoint.address, on, port: endpoint.port, protocol, end: End::External as u8 }
    }

    /// The protocol, where it is a tracked one.
    #[must_use]
    pub const fn protocol(&self) -> Option<Protocol> {
        Protocol::from_number(self.protocol)
    }
}

/// Value of the `MAPPING` map: the other end, and how many flows stand on it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Mapping {
    /// Address of the other end.
    pub address: Address,
    /// Port of the other end.
    pub port: Port,
    /// [`MappingFlags`] bits.
    pub flags: u16,
    /// Flows on this mapping; only the internal entry counts. Not above zero means none.
    pub flows: i32,
    /// Jiffies (low 32 bits) when the last flow was opened or removed.
    pub last_used: u32,
}

const _: () = assert!(size_of::<Mapping>() == 16);

/// Bits of [`Mapping::flags`].
#[derive(Clone, Copy, Debug)]
pub struct MappingFlags;

impl MappingFlags {
    /// The external endpoint is shared with another guest's mapping because the pool was full.
    pub const OVERLOADED: u16 = 1;
}

impl Mapping {
    /// The other end.
    #[must_use]
    pub const fn other(&self) -> Endpoint {
        Endpoint::new(self.address, self.port)
    }
}

/// Value of the `PORT_OWNER` map: who had an external port last. It outlives the `MAPPING` map's entries where somebody removes
/// those by hand; whoever had the port finds it again, and nobody else gets it before it has rested.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct PortOwner {
    /// The external address.
    pub on: Address,
    /// The internal address; unspecified for nobody.
    pub address: Address,
    /// The internal port.
    pub port: Port,
    /// Zero.
    pub reserved: u16,
    /// Jiffies when somebody else was first refused the port although no mapping had it, its lowest bit set; 0 for never.
    pub orphaned: u32,
}

const _: () = assert!(size_of::<PortOwner>() == 16);

impl PortOwner {
    /// At the place of TCP's port 0, which is nobody's: the flow table has its sentinel ([`crate::flow::FlowKey::SENTINEL`]), so that
    /// its absence means something.
    pub const WATCHED: Self = Self { orphaned: 1, ..Self::NOBODY };

    /// Nobody.
    pub const NOBODY: Self = Self {
        on: Address::UNSPECIFIED,
        address: Address::UNSPECIFIED,
        port: Port::new(0),
        reserved: 0,
        orphaned: 0,
    };

    /// One who has it.
    #[must_use]
    pub const fn new(on: Address, internal: Endpoint) -> Self {
        Self { on, address: internal.address, port: internal.port, reserved: 0, orphaned: 0 }
    }

    /// The internal endpoint.
    #[must_use]
    pub const fn internal(&self) -> Endpoint {
        Endpoint::new(self.address, self.port)
    }
}
