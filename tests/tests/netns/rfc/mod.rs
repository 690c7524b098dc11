//! What the RFCs ask of a NAT: a scenario for each requirement that docs/rfc-compliance.md says is met.

#![expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "frames are of a test's own making, and a test ends where one is not as it must be"
)]

mod churn;
mod compliance;
mod forged;
mod fragments;
mod fuzz;
mod host;
mod icmp;
mod ip;
mod offload;
mod options;
mod ports;
mod room;
mod scene;
mod stun;
mod tcp;
mod tcp_sequences;
mod timers;
mod udp;
