//! The network: a subnet of guests behind a bridge.

use bytemuck::{Pod, Zeroable};

use crate::endpoint::Address;

/// Key of the `NETWORK` longest-prefix map, as `BPF_MAP_TYPE_LPM_TRIE` wants it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct NetworkKey {
    /// Bits of the prefix, 0 to 32.
    pub prefix: u32,
    /// First address.
    pub address: Address,
}

/// Value of the `NETWORK` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Network {
    /// Interface index of the bridge.
    pub bridge: u32,
    /// The host's address in it; unspecified when the bridge has none.
    pub gateway: Address,
    /// [`NetworkFlags`] bits.
    pub flags: u32,
}

/// Bits of [`Network::flags`].
#[derive(Clone, Copy, Debug)]
pub struct NetworkFlags;

impl NetworkFlags {
    /// Filtering is endpoint-independent: whoever calls the external endpoint of a mapping reaches its guest.
    pub const OPEN_TO_ALL: u32 = 1;
}
