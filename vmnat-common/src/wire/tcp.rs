//! TCP (RFC 9293).

/// Bytes of the header without options.
pub const LEN: usize = network_types::tcp::TcpHdr::LEN;

/// Offset of the source port; the destination port follows it.
pub const SOURCE: usize = 0;

/// Offset of the destination port.
pub const DESTINATION: usize = 2;

/// Offset of the flags that [`crate::tcp_state::flag`] names.
pub const FLAGS: usize = 13;

/// Offset of the checksum.
pub const CHECKSUM: usize = 16;

/// Most options that a header can hold, each of one byte.
pub const MOST_OPTIONS: u32 = 40;

/// Ends the list of options.
pub const OPTION_END: u8 = 0;

/// Fills a byte between options.
pub const OPTION_NONE: u8 = 1;

/// Announces the largest segment: kind, a length of four, two bytes.
pub const OPTION_MSS: u8 = 2;
