//! The host's own conversations through a port forward, whose sockets are led to the guest before a packet exists.

use bytemuck::{Pod, Zeroable};

use crate::endpoint::{Address, Endpoint, Port};

/// Key of the `HOST_PEER` map: a socket, and the guest's endpoint that it was led to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct HostPeerKey {
    /// The kernel's cookie of the socket.
    pub cookie: u64,
    /// The guest.
    pub address: Address,
    /// The guest's port.
    pub port: Port,
    /// Zero.
    pub reserved: u16,
}

const _: () = assert!(size_of::<HostPeerKey>() == 16);

impl HostPeerKey {
    /// A key from its parts.
    #[must_use]
    pub const fn new(cookie: u64, guest: Endpoint) -> Self {
        Self { cookie, address: guest.address, port: guest.port, reserved: 0 }
    }
}

/// Value of the `HOST_PEER` map: the endpoint that the program had asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct HostPeer {
    /// The address: one of the host's.
    pub address: Address,
    /// The external port.
    pub port: Port,
    /// Zero.
    pub reserved: u16,
}

const _: () = assert!(size_of::<HostPeer>() == 8);
