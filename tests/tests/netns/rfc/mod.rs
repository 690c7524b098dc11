//! What the RFCs ask of a NAT: a scenario for each requirement that docs/rfc-compliance.md says is met.

mod icmp;
mod ports;
mod scene;
mod tcp;
mod tcp_sequences;
mod timers;
mod udp;
