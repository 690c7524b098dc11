//! Fragments of a datagram: the first one has the ports, the others borrow them from it.

use bytemuck::{Pod, Zeroable};

use crate::endpoint::{Address, Port};

/// Whose look at a fragment an entry is about. A datagram that the quiet room has put in order is looked at a second time.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// From a guest.
    Guest = 0,
    /// From the world.
    Uplink = 1,
    /// From a guest, through the room.
    GuestOrdered = 2,
    /// From the world, through the room.
    UplinkOrdered = 3,
    /// On its way out: which guest's datagram has the identification.
    Claim = 4,
}

/// Key of the `FRAGMENT` map: what all fragments of a datagram share (RFC 791 section 3.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FragmentKey {
    /// Source address on the wire; of a claim, the external one.
    pub source: Address,
    /// Destination address on the wire.
    pub destination: Address,
    /// Identification as it lies in the header.
    pub identification: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// [`Place`] as a number.
    pub place: u8,
}

const _: () = assert!(size_of::<FragmentKey>() == 12);

/// What becomes of a datagram's further fragments.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// They follow the first one.
    Follows = 0,
    /// They are the host's own.
    Hosts = 1,
    /// They wait in the quiet room for the first one.
    Waits = 2,
}

/// Value of the `FRAGMENT` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Fragment {
    /// The tuple's source port; of a claim, zero.
    pub source_port: Port,
    /// The tuple's destination port; of a claim, zero.
    pub destination_port: Port,
    /// The identification that the datagram leaves with, as it lies in the header.
    pub identification: u16,
    /// [`Fate`] as a number.
    pub fate: u8,
    /// Zero.
    pub reserved: u8,
    /// Interface index by which the world's fragments came in; of a claim, the guest's address as it lies in a packet.
    pub via: u32,
    /// Jiffies (low 32 bits) of the first look.
    pub since: u32,
}

const _: () = assert!(size_of::<Fragment>() == 16);

/// Seconds that fragments of one datagram may be apart (`ipfrag_time` of the kernel).
pub const SECONDS: u32 = 30;
