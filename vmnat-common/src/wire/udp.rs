//! UDP (RFC 768).

/// Bytes of the header.
pub const LEN: usize = network_types::udp::UdpHdr::LEN;

/// Offset of the source port; the destination port follows it.
pub const SOURCE: usize = 0;

/// Offset of the destination port.
pub const DESTINATION: usize = 2;

/// Offset of the checksum; zero there means that none was computed.
pub const CHECKSUM: usize = 6;
