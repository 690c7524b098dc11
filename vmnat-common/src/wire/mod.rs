//! How header bytes mean. Offsets are named once; decoders take words that somebody else fetched.

pub mod ethernet;
pub mod icmp;
pub mod ipv4;
pub mod sctp;
pub mod tcp;
pub mod udp;
pub mod udplite;
