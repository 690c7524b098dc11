//! The lease: where a guest's address lives.

use bytemuck::{Pod, Zeroable};

use crate::endpoint::Mac;

/// Value of the `LEASE` map, keyed by the guest's [`crate::Address`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Lease {
    /// Interface index of the guest's bridge port; 0 while unknown.
    pub port: u32,
    /// Interface index of the bridge.
    pub bridge: u32,
    /// The guest's MAC.
    pub mac: Mac,
    /// [`LeaseFlags`] bits.
    pub flags: u16,
    /// Jiffies (low 32 bits) when it was learned or confirmed.
    pub last_seen: u32,
}

const _: () = assert!(size_of::<Lease>() == 20);

/// Bits of [`Lease::flags`]: where the fact comes from.
#[derive(Clone, Copy, Debug)]
pub struct LeaseFlags;

impl LeaseFlags {
    /// Learned in the kernel from the guest's own ARP or IPv4 traffic.
    pub const FROM_TRAFFIC: u16 = 1;
    /// Read from the host's neighbour table.
    pub const FROM_NEIGHBOUR: u16 = 2;
    /// User space says that the address was given to this MAC: by a DHCP server, or by the operator. While the port is one of
    /// the bridge's, nobody else takes the address.
    pub const BOUND: u16 = 4;
    /// Beside [`Self::BOUND`]: by this port alone.
    pub const PORT_BOUND: u16 = 8;
}
