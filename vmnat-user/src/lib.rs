//! The user half of vmnat as a library.

pub mod dataplane;
pub mod error;
pub mod exit;
pub mod facts;
mod netlink;
pub mod paths;
pub mod rawbpf;
pub mod tables;
