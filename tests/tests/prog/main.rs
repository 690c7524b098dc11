//! The prog tier: the verified object through `BPF_PROG_TEST_RUN`.
//!
//! Each test destructures what a run gave: the return code, the frame, the counters that moved (no other may), and
//! the sizes of the tables.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test ends where something is not as it must be"
)]

mod access;
mod budget;
mod carry;
mod errors;
mod filtering;
mod flow_table;
mod forwards;
mod fragments;
mod fuzz;
mod guard;
mod hairpin;
mod inbound;
mod leases;
mod mss;
mod next_hop;
mod outbound;
mod ports;
mod protocols;
mod quotas;
mod reaper;
mod rest;
mod rig;
mod services;
mod sums;
mod transport;
