//! UDP-Lite (RFC 3828) and DCCP (RFC 4340), whose headers begin alike: ports, two bytes of their own, checksum.

/// Bytes that hold both ports and the checksum.
pub const LEN: usize = 8;

/// Offset of the checksum, which covers the addresses.
pub const CHECKSUM: usize = 6;
