//! What both halves of vmnat agree on.
//!
//! The kernel half fetches bytes and this crate says what they mean: how headers decode ([`wire`]), what a
//! flow, a mapping, a network, a port forward and a lease look like in a BPF map, and the rules that can be
//! stated without a kernel (port choice, TCP stages, timeouts, checksum arithmetic, outcomes).
//!
//! Every map key and value is `Pod`: its derive refuses padding, so the bytes that the kernel stores are the
//! bytes that user space reads. Sizes of the hot types are asserted beside them. Integers are host order;
//! [`Address`] and [`Port`] hold network order.
//!
//! [`SCHEMA_VERSION`] stands in the pin path and in [`settings::Settings`]; it changes with every layout.
#![cfg_attr(not(test), no_std)]

pub mod access;
pub mod bridge;
pub mod catalogue;
pub mod checksum;
pub mod endpoint;
pub mod flow;
pub mod flow_table;
pub mod forward;
pub mod fragment;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod host;
pub mod lease;
pub mod mapping;
pub mod network;
pub mod next_hop;
pub mod outcome;
pub mod port_range;
pub mod quota;
pub mod reap;
pub mod room;
pub mod service;
pub mod session;
pub mod settings;
pub mod station;
pub mod tcp_state;
pub mod timeout;
pub mod uplink;
pub mod wire;

pub use crate::{
    endpoint::{Address, Endpoint, Mac, Port, Protocol},
    outcome::Outcome,
};

/// Version of every layout in this crate; part of the pin path (`/sys/fs/bpf/vmnat/<instance>/v<N>`).
pub const SCHEMA_VERSION: u32 = 3;
