//! The quiet room: a network namespace of vmnat's own with an unmodified stack, for the few packets that need one.
//!
//! Three pairs of interfaces lead there, and whatever comes in by one of them leaves by a fixed other: what a guest sends comes
//! in by the inner pair and leaves by the outer one, what the world sends the other way round, and what comes in by the third is
//! prohibited. The room cuts packets to the size of the way out, puts fragments in order, and writes ICMP errors, from
//! [`ADDRESS`].

use bytemuck::{Pod, Zeroable};

use crate::endpoint::{Address, Mac};

/// The room's own address, from which its ICMP errors come: the IPv4 dummy address (RFC 7600), which no network routes.
pub const ADDRESS: Address = Address::new([192, 0, 0, 8]);

/// MAC of the room's end of the inner pair, to which frames of guests are addressed.
pub const INNER_MAC: Mac = Mac::new([0x02, 0x76, 0x6d, 0x6e, 0x00, 0x01]);

/// MAC of the room's end of the outer pair, to which frames of the world are addressed.
pub const OUTER_MAC: Mac = Mac::new([0x02, 0x76, 0x6d, 0x6e, 0x00, 0x02]);

/// MAC of the room's end of the third pair, to which frames are addressed that are refused.
pub const REFUSING_MAC: Mac = Mac::new([0x02, 0x76, 0x6d, 0x6e, 0x00, 0x03]);

/// The host's ends of the pairs, by interface index; all zero while there is no room.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Room {
    /// The inner pair: frames of guests go out by it, what the world sent comes in by it.
    pub inner: u32,
    /// The outer pair: frames of the world go out by it, what guests sent comes in by it.
    pub outer: u32,
    /// The third pair: frames that are refused go out by it.
    pub refusing: u32,
    /// Zero.
    pub reserved: u32,
}

impl Room {
    /// True when there is a room.
    #[must_use]
    pub const fn exists(&self) -> bool {
        self.inner != 0 && self.outer != 0
    }
}
