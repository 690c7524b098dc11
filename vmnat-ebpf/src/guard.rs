//! The last look on the way out: nothing leaves an uplink with a guest's source.
//!
//! A translated packet no longer has such a source, so the check of the source alone is the rule. It holds whatever
//! the host's routes and firewall do, and for packets that no other program saw.

use aya_ebpf::{maps::lpm_trie::Key, programs::TcContext};
use vmnat_common::{Outcome, wire::ethernet};

use crate::{maps::NETWORK, parse};

/// The egress program of an uplink. A VLAN tag does not matter here: what leaks with a tag leaks too.
#[inline(always)]
pub fn at_uplink(ctx: &TcContext) -> Result<Outcome, Outcome> {
    if parse::ether_type(ctx) != ethernet::IPV4 {
        return Err(Outcome::NotIpv4);
    }
    let source = parse::source(ctx).ok_or(Outcome::Truncated)?;
    if NETWORK.get(Key::new(32, source)).is_some() { Err(Outcome::LeakedSource) } else { Ok(Outcome::Clean) }
}
