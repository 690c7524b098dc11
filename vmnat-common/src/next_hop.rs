//! The next hop's station: the Ethernet header that frames to it leave an uplink with.
//!
//! A direct-mapped cache: where two next hops meet in one slot, one of them goes the longer way. Every word that a reader takes
//! is written by one store, so that a reader on another CPU never sees half of a MAC.

use bytemuck::{Pod, Zeroable};

use crate::{
    endpoint::{Address, Mac},
    wire::ethernet::Stations,
};

/// Slots of the `NEXT_HOP` map.
pub const SLOTS: u32 = 256;

/// Value of the `NEXT_HOP` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct NextHop {
    /// Whose slot it is, as [`hop`] tells.
    pub hop: u64,
    /// Jiffies until which the slot is not looked at again.
    pub until: u64,
    /// The first eight bytes of the header: the destination MAC and two of the source's; zero while the kernel has to resolve the
    /// neighbour.
    pub macs: u64,
    /// The other four bytes of the source MAC.
    pub rest: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<NextHop>() == 32);

/// A number for a next hop behind an uplink.
#[must_use]
pub const fn hop(out_if: u32, address: Address) -> u64 {
    ((out_if as u64) << 32) | address.to_wire() as u64
}

/// The slot of a next hop.
#[must_use]
pub const fn slot(hop: u64) -> u32 {
    // Fibonacci hashing: the upper byte of the product depends on all bits.
    (hop.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u32
}

/// Both MACs of a header, as [`NextHop::macs`] and [`NextHop::rest`] hold them.
#[must_use]
pub fn header(destination: Mac, source: Mac) -> (u64, u32) {
    let [first, second, rest] = Stations { destination, source }.words();
    (bytemuck::cast([first, second]), rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_header_lies_in_memory_as_it_goes_over_the_wire(destination in any::<[u8; 6]>(), source in any::<[u8; 6]>()) {
            let (macs, rest) = header(Mac::new(destination), Mac::new(source));
            let bytes = [&macs.to_ne_bytes()[..], &rest.to_ne_bytes()[..]].concat();
            prop_assert_eq!(bytes, [destination, source].concat());
        }

        #[test]
        fn slots_are_within_the_map(out_if in any::<u32>(), address in any::<[u8; 4]>()) {
            prop_assert!(slot(hop(out_if, Address::new(address))) < SLOTS);
        }
    }

    #[test]
    fn the_stations_of_a_subnet_have_slots_of_their_own() {
        let slots: std::collections::BTreeSet<u32> =
            (1..=64).map(|last| slot(hop(2, Address::new([203, 0, 113, last])))).collect();
        assert!(slots.len() > 48, "{} slots for 64 stations", slots.len());
    }
}
