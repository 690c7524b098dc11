//! The timeout rule: how long a silent conversation is kept.
//!
//! Each default is the longer of netfilter's and the RFC's.

use bytemuck::{Pod, Zeroable};

use crate::{
    endpoint::{Port, Protocol},
    tcp_state::{Seen, Stage, stage},
};

/// Timeouts of every kind of conversation; seconds in configuration, jiffies in the `SETTINGS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Timeouts {
    /// TCP not acknowledged in both directions (RFC 5382 REQ-5: at least four minutes).
    pub tcp_half_open: u32,
    /// TCP established (netfilter: five days; RFC 5382 REQ-5: at least 2 h 4 min).
    pub tcp_established: u32,
    /// TCP with one FIN (RFC 5382 REQ-5: at least four minutes).
    pub tcp_half_closed: u32,
    /// TCP with both FINs.
    pub tcp_closed: u32,
    /// TCP after a reset (RFC 7857 section 2.2: four minutes).
    pub tcp_reset: u32,
    /// UDP seen in one direction only (RFC 4787 REQ-5: at least two minutes).
    pub udp_unreplied: u32,
    /// UDP seen in both directions (RFC 4787 REQ-5 recommends five minutes).
    pub udp_replied: u32,
    /// UDP to port 53 (RFC 4787 REQ-5b allows less for well-known ports).
    pub udp_dns: u32,
    /// ICMP queries (RFC 5508 REQ-2: at least a minute).
    pub icmp: u32,
    /// Anything else.
    pub other: u32,
    /// Rest of a freed external port before another guest gets it (RFC 6888 REQ-8: two minutes).
    pub mapping_rest: u32,
}

impl Timeouts {
    /// The defaults, in seconds.
    pub const SECONDS: Self = Self {
        tcp_half_open: 240,
        tcp_established: 5 * 24 * 3600,
        tcp_half_closed: 240,
        tcp_closed: 120,
        tcp_reset: 240,
        udp_unreplied: 120,
        udp_replied: 300,
        udp_dns: 30,
        icmp: 60,
        other: 600,
        mapping_rest: 120,
    };

    /// The same in jiffies of a kernel with `hertz` of them a second. Saturates below half the range of the
    /// 32-bit clock, so that ages stay comparable.
    #[must_use]
    pub const fn in_jiffies(self, hertz: u32) -> Self {
        const fn jiffies(seconds: u32, hertz: u32) -> u32 {
            let product = (seconds as u64).saturating_mul(hertz as u64);
            #[expect(clippy::cast_possible_truncation, reason = "bounded by the comparison")]
            if product > (i32::MAX as u64) { i32::MAX as u32 } else { product as u32 }
        }
        Self {
            tcp_half_open: jiffies(self.tcp_half_open, hertz),
            tcp_established: jiffies(self.tcp_established, hertz),
            tcp_half_closed: jiffies(self.tcp_half_closed, hertz),
            tcp_closed: jiffies(self.tcp_closed, hertz),
            tcp_reset: jiffies(self.tcp_reset, hertz),
            udp_unreplied: jiffies(self.udp_unreplied, hertz),
            udp_replied: jiffies(self.udp_replied, hertz),
            udp_dns: jiffies(self.udp_dns, hertz),
            icmp: jiffies(self.icmp, hertz),
            other: jiffies(self.other, hertz),
            mapping_rest: jiffies(self.mapping_rest, hertz),
        }
    }

    /// The timeout that applies to a conversation.
    #[must_use]
    pub const fn of(&self, life: &Life) -> u32 {
        match Protocol::from_number(life.protocol) {
            Some(Protocol::Tcp) => match stage(life.outbound_seen, life.inbound_seen) {
                Stage::HalfOpen => self.tcp_half_open,
                Stage::Established => self.tcp_established,
                Stage::HalfClosed => self.tcp_half_closed,
                Stage::Closed => self.tcp_closed,
                Stage::Reset => self.tcp_reset,
            },
            Some(Protocol::Udp) if life.remote_port.number() == 53 => self.udp_dns,
            Some(Protocol::Udp) if life.is_replied => self.udp_replied,
            Some(Protocol::Udp) => self.udp_unreplied,
            Some(Protocol::Icmp) => self.icmp,
            Some(Protocol::Dccp | Protocol::Sctp | Protocol::UdpLite) | None => self.other,
        }
    }
}

/// What the timeout of a conversation depends on, from both of its directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// IP protocol number.
    pub protocol: u8,
    /// The remote's port.
    pub remote_port: Port,
    /// [`Seen`] bits of the guest's direction.
    pub outbound_seen: u8,
    /// [`Seen`] bits of the remote's direction.
    pub inbound_seen: u8,
    /// Both directions have carried a packet.
    pub is_replied: bool,
}

impl Life {
    /// The word for it in listings.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match Protocol::from_number(self.protocol) {
            Some(Protocol::Tcp) => stage(self.outbound_seen, self.inbound_seen).name(),
            _ if self.is_replied => "replied",
            _ => "unreplied",
        }
    }
}

/// Jiffies since `then`; zero when `then` lies ahead, as it may when another CPU has just written it.
#[must_use]
pub const fn age(now: u32, then: u32) -> u32 {
    let age = now.wrapping_sub(then);
    if age > i32::MAX as u32 { 0 } else { age }
}

const _: () = assert!(Seen::RST == 8);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn life(protocol: Protocol, remote_port: u16, seen: (u8, u8), is_replied: bool) -> Life {
        Life {
            protocol: protocol.number(),
            remote_port: Port::new(remote_port),
            outbound_seen: seen.0,
            inbound_seen: seen.1,
            is_replied,
        }
    }

    #[test]
    fn every_kind_has_its_own_timeout() {
        let t = Timeouts::SECONDS;
        assert_eq!(t.of(&life(Protocol::Tcp, 80, (Seen::SYN, 0), false)), 240);
        assert_eq!(t.of(&life(Protocol::Tcp, 80, (3, 3), true)), 432_000);
        assert_eq!(t.of(&life(Protocol::Tcp, 80, (7, 3), true)), 240);
        assert_eq!(t.of(&life(Protocol::Tcp, 80, (7, 7), true)), 120);
        assert_eq!(t.of(&life(Protocol::Tcp, 80, (3, 11), true)), 240);
        assert_eq!(t.of(&life(Protocol::Udp, 5000, (0, 0), false)), 120);
        assert_eq!(t.of(&life(Protocol::Udp, 5000, (0, 0), true)), 300);
        assert_eq!(t.of(&life(Protocol::Udp, 53, (0, 0), true)), 30);
        assert_eq!(t.of(&life(Protocol::Icmp, 8, (0, 0), true)), 60);
    }

    #[test]
    fn jiffies_never_pass_half_the_clock() {
        let t = Timeouts { tcp_established: u32::MAX, ..Timeouts::SECONDS }.in_jiffies(1000);
        assert_eq!(t.tcp_established, i32::MAX as u32);
        assert_eq!(t.icmp, 60_000);
    }

    proptest! {
        #[test]
        fn age_survives_the_wrap_and_never_runs_backwards(then in any::<u32>(), passed in 0..i32::MAX as u32) {
            prop_assert_eq!(age(then.wrapping_add(passed), then), passed);
            prop_assert_eq!(age(then, then.wrapping_add(passed.max(1))), 0);
        }
    }
}
