//! What the RFCs ask of a NAT: a scenario for each requirement that docs/rfc-compliance.md says is met.

mod churn;
mod compliance;
mod forged;
mod host;
mod icmp;
mod ip;
mod offload;
mod ports;
mod scene;
mod stun;
mod tcp;
mod tcp_sequences;
mod timers;
mod udp;
