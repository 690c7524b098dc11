//! A lab of network namespaces, and what the tests and the demo do in it.
//!
//! ```text
//! guest 1 eth0 --- vnet1 \            VM host                 router                  world
//!  192.168.122.10         virbr0 192.168.122.1     wan0 203.0.113.1   lan0 ------ eth0 198.51.100.10
//! guest 2 eth0 --- vnet2 /  enp3s0 203.0.113.2 ------/ 198.51.100.1  /            .53 DNS-like, .99 a client
//!  192.168.122.11
//! ```
//!
//! Every link is a real veth, every box a namespace of its own that lives as long as its [`lab::Lab`]. `vmnat` itself is
//! the built program, driven through its command line alone.

#![expect(
    clippy::indexing_slicing,
    reason = "a JSON value indexed by a name that it lacks is null, and packet bytes are of a test's own making"
)]
#![expect(
    clippy::arithmetic_side_effects,
    reason = "counts and sizes of a test's own making; an overflow would panic in the debug build that tests run"
)]

pub mod boot;
pub mod fuzz;
pub mod guest;
pub mod hosts;
pub mod lab;
pub mod packages;
