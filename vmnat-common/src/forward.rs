//! The port forward: an external port that leads to a guest.

use bytemuck::{Pod, Zeroable};

use crate::endpoint::{Address, Endpoint, Port};

/// Key of the `FORWARD` map: an external endpoint.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct ForwardKey {
    /// The external address that packets are sent to.
    pub address: Address,
    /// The external port.
    pub port: Port,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
}

const _: () = assert!(size_of::<ForwardKey>() == 8);

impl ForwardKey {
    /// A key from its parts.
    #[must_use]
    pub const fn new(protocol: u8, external: Endpoint) -> Self {
        Self { address: external.address, port: external.port, protocol, reserved: 0 }
    }
}

/// Value of the `FORWARD` map: the guest's endpoint, and counts.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Forward {
    /// The guest.
    pub address: Address,
    /// The guest's port.
    pub port: Port,
    /// Zero.
    pub reserved: u16,
    /// Stable number that user space gave it.
    pub id: u32,
    /// Interface index of the guest's bridge.
    pub bridge: u32,
    /// Connections opened through it.
    pub connections: u64,
}

const _: () = assert!(size_of::<Forward>() == 24);

impl Forward {
    /// The guest's endpoint.
    #[must_use]
    pub const fn target(&self) -> Endpoint {
        Endpoint::new(self.address, self.port)
    }
}
