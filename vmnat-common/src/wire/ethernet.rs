//! Ethernet II, and the ARP that guests announce themselves with.

use bytemuck::{Pod, Zeroable};
use network_types::eth::{EthHdr, EtherType};

use crate::endpoint::Mac;

/// Bytes of the header.
pub const LEN: usize = EthHdr::LEN;

/// Offset of the destination address.
pub const DESTINATION: usize = core::mem::offset_of!(EthHdr, dst_addr);

/// Offset of the source address.
pub const SOURCE: usize = core::mem::offset_of!(EthHdr, src_addr);

/// Offset of the type.
pub const TYPE: usize = core::mem::offset_of!(EthHdr, ether_type);

/// `ETH_P_IP` as it lies in a packet; `__sk_buff.protocol` holds it in this form too.
pub const IPV4: u16 = EtherType::Ipv4 as u16;

/// `ETH_P_ARP` as it lies in a packet.
pub const ARP: u16 = EtherType::Arp as u16;

/// The stations of a frame as they lie in it. Aligned to a word, so that all of it is read and compared as three.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Stations {
    /// The receiver's MAC.
    pub destination: Mac,
    /// The sender's MAC.
    pub source: Mac,
}

impl Stations {
    /// None: of a packet without an Ethernet header.
    pub const NONE: Self = Self { destination: Mac::ZERO, source: Mac::ZERO };

    /// Takes the header's first three words as they lie in memory.
    #[must_use]
    pub fn from_words(words: [u32; 3]) -> Self {
        bytemuck::cast(words)
    }

    /// The header's first three words as they lie in memory.
    #[must_use]
    pub fn words(self) -> [u32; 3] {
        bytemuck::cast(self)
    }
}

/// ARP for IPv4 over Ethernet (RFC 826): offsets within the frame.
pub mod arp {
    /// Bytes of the frame that are read.
    pub const END: usize = super::LEN + 28;

    /// Hardware type 1, protocol 0x0800, lengths 6 and 4, as two words in memory order.
    pub const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];

    /// Offset of the hardware type.
    pub const HARDWARE: usize = super::LEN;

    /// Offset of the sender's MAC.
    pub const SENDER_MAC: usize = super::LEN + 8;

    /// Offset of the sender's IPv4 address.
    pub const SENDER_ADDRESS: usize = super::LEN + 14;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ether_types_are_in_memory_order() {
        assert_eq!(IPV4.to_ne_bytes(), [0x08, 0x00]);
        assert_eq!(ARP.to_ne_bytes(), [0x08, 0x06]);
        assert_eq!((DESTINATION, SOURCE, TYPE, LEN), (0, 6, 12, 14));
    }

    #[test]
    fn stations_lie_in_memory_as_they_go_over_the_wire() {
        let bytes: [u8; 12] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
        let words = bytemuck::cast(bytes);
        let stations = Stations::from_words(words);
        assert_eq!(stations.destination.bytes(), bytes[..6]);
        assert_eq!(stations.source.bytes(), bytes[6..]);
        assert_eq!(stations.words(), words);
    }
}
