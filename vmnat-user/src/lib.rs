//! The user half of vmnat as a library.

pub mod conntrack;
pub mod dataplane;
pub mod error;
pub mod exit;
pub mod facts;
pub mod forwards;
pub mod link;
pub mod host_ports;
mod netlink;
pub mod paths;
pub mod rawbpf;
pub mod state;
pub mod sysctl;
pub mod tables;
