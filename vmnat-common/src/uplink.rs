//! The uplink: an interface by which translated packets leave.

use bytemuck::{Pod, Zeroable};

use crate::endpoint::{Address, Mac};

/// Value of the `UPLINK` map, keyed by interface index (u32).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Uplink {
    /// The external address; unspecified while the interface has none, and then no flow is opened.
    pub address: Address,
    /// Largest IP packet, bytes.
    pub mtu: u16,
    /// The interface's own MAC; zero without Ethernet.
    pub mac: Mac,
    /// [`UplinkFlags`] bits.
    pub flags: u32,
}

const _: () = assert!(size_of::<Uplink>() == 16);

/// Bits of [`Uplink::flags`].
#[derive(Clone, Copy, Debug)]
pub struct UplinkFlags;

impl UplinkFlags {
    /// The interface carries IP without an Ethernet header (tun, `WireGuard`, ppp).
    pub const NO_ETHERNET: u32 = 1;
}
