//! The user half of vmnat as a library.

pub mod agent;
pub mod change;
pub mod cli;
pub mod conntrack;
pub mod dataplane;
pub mod docker;
pub mod error;
pub mod events;
pub mod exit;
pub mod facts;
pub mod flows;
pub mod forwards;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod guests;
pub mod host_ports;
pub mod host_sockets;
pub mod journal;
pub mod kernel_log;
pub mod launch;
pub mod leases;
pub mod link;
mod netlink;
pub mod netns;
pub mod paths;
pub mod plan;
pub mod rawbpf;
pub mod reclaim;
pub mod reconcile;
pub mod report;
pub mod rest;
pub mod room;
pub mod state;
pub mod sysctl;
pub mod tables;
pub mod takeover;
pub mod teardown;
