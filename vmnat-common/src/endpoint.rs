//! Addresses, ports and protocols as packets carry them: network byte order, aligned for one-word access.

use bytemuck::{Pod, Zeroable};

/// An IPv4 address in network byte order.
///
/// Aligned to four so that the BPF back end moves it as one word instead of four bytes.
#[repr(C, align(4))]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct Address([u8; 4]);

impl Address {
    /// 0.0.0.0, which also means "any" and "none".
    pub const UNSPECIFIED: Self = Self([0; 4]);

    /// Takes the octets in the order they are written.
    #[must_use]
    pub const fn new(octets: [u8; 4]) -> Self {
        Self(octets)
    }

    /// The octets in the order they are written.
    #[must_use]
    pub const fn octets(self) -> [u8; 4] {
        self.0
    }

    /// Takes the word as it lies in a packet (network order in memory).
    #[must_use]
    pub const fn from_wire(word: u32) -> Self {
        Self(word.to_ne_bytes())
    }

    /// The word as it lies in a packet (network order in memory).
    #[must_use]
    pub const fn to_wire(self) -> u32 {
        u32::from_ne_bytes(self.0)
    }

    /// True for 0.0.0.0.
    #[must_use]
    pub const fn is_unspecified(self) -> bool {
        self.to_wire() == 0
    }

    /// True where no kernel forwards: 0.0.0.0, 127/8, 224/4 and the limited broadcast.
    /// Source: RFC 1812 section 5.3.7, RFC 6890.
    #[must_use]
    pub const fn is_never_forwarded(self) -> bool {
        let first = self.0[0];
        self.is_unspecified() || first == 127 || (first >= 224 && first < 240) || self.to_wire() == u32::MAX
    }

    /// True for 0/8 and 240/4, which no public router forwards (RFC 6890) and Linux does where a route leads there.
    #[must_use]
    pub const fn is_reserved(self) -> bool {
        self.0[0] == 0 || self.0[0] >= 240
    }

    /// True for 169.254/16, which stays on its link (RFC 3927 section 2.7).
    #[must_use]
    pub const fn is_link_local(self) -> bool {
        self.0[0] == 169 && self.0[1] == 254
    }
}

impl From<core::net::Ipv4Addr> for Address {
    fn from(address: core::net::Ipv4Addr) -> Self {
        Self(address.octets())
    }
}

impl From<Address> for core::net::Ipv4Addr {
    fn from(address: Address) -> Self {
        Self::from(address.0)
    }
}

/// A TCP or UDP port, or an ICMP query's identifier, in network byte order.
#[repr(C, align(2))]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct Port([u8; 2]);

impl Port {
    /// Takes a number in host order.
    #[must_use]
    pub const fn new(number: u16) -> Self {
        Self(number.to_be_bytes())
    }

    /// The number in host order.
    #[must_use]
    pub const fn number(self) -> u16 {
        u16::from_be_bytes(self.0)
    }

    /// Takes the half-word as it lies in a packet.
    #[must_use]
    pub const fn from_wire(half: u16) -> Self {
        Self(half.to_ne_bytes())
    }

    /// The half-word as it lies in a packet.
    #[must_use]
    pub const fn to_wire(self) -> u16 {
        u16::from_ne_bytes(self.0)
    }
}

/// An Ethernet address.
#[repr(C, align(2))]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Mac([u8; 6]);

impl Mac {
    /// All zero: unknown, or an interface without Ethernet.
    pub const ZERO: Self = Self([0; 6]);

    /// Takes the bytes in transmission order.
    #[must_use]
    pub const fn new(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// The bytes in transmission order.
    #[must_use]
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }

    /// True when the group bit is set (multicast and broadcast).
    #[must_use]
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }
}

/// The protocols that vmnat tracks by port or identifier, as IP numbers. All others are tracked by address alone.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// ICMP queries, tracked by identifier.
    Icmp = 1,
    /// TCP.
    Tcp = 6,
    /// UDP.
    Udp = 17,
    /// DCCP, whose ports are tracked and never changed.
    Dccp = 33,
    /// SCTP, whose ports are tracked and never changed: its checksum covers the whole packet (RFC 9260 section 6.8).
    Sctp = 132,
    /// UDP-Lite, whose ports are tracked and never changed.
    UdpLite = 136,
}

impl Protocol {
    /// Every tracked protocol.
    pub const ALL: [Self; 6] = [Self::Icmp, Self::Tcp, Self::Udp, Self::Dccp, Self::Sctp, Self::UdpLite];

    /// The protocol of an IP number, where vmnat tracks it.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Icmp),
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            33 => Some(Self::Dccp),
            132 => Some(Self::Sctp),
            136 => Some(Self::UdpLite),
            _ => None,
        }
    }

    /// The IP number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The name that people write: `icmp`, `tcp`, `udp`, `dccp`, `sctp`, `udplite`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Icmp => "icmp",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Dccp => "dccp",
            Self::Sctp => "sctp",
            Self::UdpLite => "udplite",
        }
    }
}

/// True when an external port may differ from the guest's; then a mapping gives each internal endpoint its own. The ports of all
/// other protocols stay, and a tuple that another guest holds is refused.
#[must_use]
pub const fn may_change_port(protocol: u8) -> bool {
    protocol == Protocol::Tcp.number()
        || protocol == Protocol::Udp.number()
        || protocol == Protocol::Icmp.number()
}

/// An address with a port.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// The address.
    pub address: Address,
    /// The port or ICMP identifier.
    pub port: Port,
}

impl Endpoint {
    /// Joins both.
    #[must_use]
    pub const fn new(address: Address, port: Port) -> Self {
        Self { address, port }
    }
}

mod text {
    use core::fmt;

    use super::{Address, Endpoint, Mac, Port, Protocol};

    impl fmt::Display for Address {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            core::net::Ipv4Addr::from(*self).fmt(f)
        }
    }

    impl fmt::Debug for Address {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            fmt::Display::fmt(self, f)
        }
    }

    impl fmt::Display for Port {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.number().fmt(f)
        }
    }

    impl fmt::Debug for Port {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            fmt::Display::fmt(self, f)
        }
    }

    impl fmt::Display for Mac {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            for (index, byte) in self.bytes().iter().enumerate() {
                let separator = if index == 0 { "" } else { ":" };
                write!(f, "{separator}{byte:02x}")?;
            }
            Ok(())
        }
    }

    impl fmt::Debug for Mac {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            fmt::Display::fmt(self, f)
        }
    }

    impl fmt::Display for Endpoint {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{}:{}", self.address, self.port)
        }
    }

    impl fmt::Debug for Endpoint {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            fmt::Display::fmt(self, f)
        }
    }

    impl fmt::Display for Protocol {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.name())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_octets_are_the_same_bytes() {
        let address = Address::new([192, 168, 122, 10]);
        assert_eq!(Address::from_wire(address.to_wire()), address);
        assert_eq!(bytemuck::bytes_of(&address), [192, 168, 122, 10]);
        assert_eq!(bytemuck::bytes_of(&Port::new(0x1234)), [0x12, 0x34]);
        assert_eq!(Port::from_wire(Port::new(8080).to_wire()).number(), 8080);
    }

    #[test]
    fn addresses_that_no_router_forwards_are_known() {
        for octets in [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 251], [239, 1, 1, 1], [255, 255, 255, 255]] {
            assert!(Address::new(octets).is_never_forwarded(), "{octets:?}");
        }
        for octets in [[0, 0, 2, 10], [240, 0, 0, 1], [255, 255, 255, 254]] {
            let address = Address::new(octets);
            assert!(address.is_reserved() && !address.is_never_forwarded(), "{octets:?}");
        }
        for octets in [[1, 1, 1, 1], [10, 0, 0, 1], [192, 168, 122, 1], [223, 255, 255, 255]] {
            let address = Address::new(octets);
            assert!(!address.is_reserved() && !address.is_never_forwarded(), "{octets:?}");
        }
    }

    #[test]
    fn protocol_numbers_round_trip() {
        for protocol in Protocol::ALL {
            assert_eq!(Protocol::from_number(protocol.number()), Some(protocol));
        }
        assert_eq!(Protocol::from_number(47), None);
    }
}
