//! SCTP (RFC 9260). Its ports lie where TCP's do; its checksum is a CRC of the packet without addresses.

/// Bytes of the common header.
pub const LEN: usize = 12;
