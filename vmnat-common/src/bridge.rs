//! The bridge and its ports, as the outbound programs need them when a flow is opened.

use bytemuck::{Pod, Zeroable};

use crate::endpoint::Mac;

/// Value of the `BRIDGE_PORT` map, keyed by interface index (u32); the bridge itself has an entry too.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct BridgePort {
    /// Interface index of the bridge.
    pub bridge: u32,
    /// The bridge's MAC: frames to it are routed, all others are bridged.
    pub mac: Mac,
    /// Largest IP packet that the bridge carries, bytes.
    pub mtu: u16,
    /// [`BridgePortFlags`] bits.
    pub flags: u32,
}

const _: () = assert!(size_of::<BridgePort>() == 16);

/// Bits of [`BridgePort::flags`].
#[derive(Clone, Copy, Debug)]
pub struct BridgePortFlags;

impl BridgePortFlags {
    /// The entry is the bridge's own.
    pub const IS_BRIDGE: u32 = 1;
    /// Frames may be redirected straight to this port: it forwards, is not isolated, filters no VLANs.
    pub const DIRECT: u32 = 2;
    /// The host forwarded nothing from this bridge before vmnat turned `forwarding` on for it, so what vmnat
    /// does not translate must not find an exit that was closed.
    pub const HOST_DID_NOT_FORWARD: u32 = 4;
    /// The bridge is an uplink, and this one of its ports: by it comes the world.
    pub const OF_UPLINK: u32 = 8;
    /// Guests may use the addresses alone that were given to them ([`crate::lease::LeaseFlags::BOUND`]).
    pub const STRICT: u32 = 16;
    /// There are access lists for its guests.
    pub const ACCESS: u32 = 32;
}
