//! The station: behind which port of its bridge a MAC is.

use bytemuck::{Pod, Zeroable};

use crate::endpoint::Mac;

/// Key of the `STATION` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct StationKey {
    /// Interface index of the bridge.
    pub bridge: u32,
    /// The station.
    pub mac: Mac,
    /// Zero.
    pub reserved: u16,
}

const _: () = assert!(size_of::<StationKey>() == 12);

impl StationKey {
    /// A key from its parts.
    #[must_use]
    pub const fn new(bridge: u32, mac: Mac) -> Self {
        Self { bridge, mac, reserved: 0 }
    }
}

/// Value of the `STATION` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Station {
    /// Interface index of the port.
    pub port: u32,
}
