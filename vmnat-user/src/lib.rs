//! The user half of vmnat as a library.

pub mod agent;
pub mod change;
pub mod cli;
pub mod conntrack;
pub mod dataplane;
pub mod error;
pub mod exit;
pub mod facts;
pub mod flows;
pub mod forwards;
pub mod host_ports;
pub mod journal;
pub mod kernel_log;
pub mod launch;
pub mod leases;
pub mod link;
mod netlink;
pub mod paths;
pub mod plan;
pub mod rawbpf;
pub mod reconcile;
pub mod report;
pub mod state;
pub mod sysctl;
pub mod tables;
pub mod takeover;
pub mod teardown;
