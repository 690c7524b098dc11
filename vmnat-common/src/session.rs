//! The session: what a flow's packets become. Two entries make a conversation, one a direction.
//!
//! Each direction writes only its own entry (last seen, TCP bits, counters), so two CPUs hardly ever fight over one cache line.
//! With its key it is an entry of the flow table ([`crate::flow_table::Entry`]), 64 bytes, which are one line. So what can be computed is not
//! kept (the differences that the rewrite makes to checksums), and of the counters the lower halves alone: what few directions have of the
//! upper ones is in a [`Carry`] beside the table.

use bytemuck::{Pod, Zeroable};

use crate::endpoint::{Address, Endpoint, Mac, Port};

/// Value of the `FLOW` map: the rewrite, the way out, and the life of one direction.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Session {
    /// What replaces the near address: the external one outbound, the internal one inbound.
    pub address: Address,
    /// What replaces the near port or identifier.
    pub port: Port,
    /// [`crate::tcp_state::Seen`] bits of this direction, and [`Self::CARRIES`].
    pub tcp_seen: u8,
    /// [`Flags`] bits.
    pub flags: u8,
    /// Interface index the packet leaves by; with [`Flags::VIA_NEIGHBOUR`] inbound it is the bridge.
    pub out_if: u32,
    /// Interface index the packet must arrive by: the guest's port outbound, the uplink inbound.
    pub in_if: u32,
    /// Outbound: next hop of the cached route. Inbound: see [`Session::forward`].
    pub next_hop: Address,
    /// Outbound: the destination MAC (the bridge's) that frames must carry. Inbound: the one that is written.
    pub destination_mac: Mac,
    /// Outbound: the guest's MAC that frames must carry. Inbound: the bridge's, which is written.
    pub source_mac: Mac,
    /// Largest IP packet of the way out, bytes.
    pub mtu: u16,
    /// [`crate::settings::Settings::epoch`] at which route and lease were last checked.
    pub epoch: u16,
    /// Jiffies (low 32 bits) of the last packet.
    pub last_seen: u32,
    /// Packets of this direction, lower half.
    pub packets: u32,
    /// Bytes of this direction, as IP carries them, lower half.
    pub bytes: u32,
}

const _: () = assert!(size_of::<Session>() == 48);

/// Bits of [`Session::flags`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags;

impl Flags {
    /// Opened from outside through a port forward.
    pub const FORWARDED: u8 = 1;
    /// Taken over from the kernel's connection tracking.
    pub const IMPORTED: u8 = 2;
    /// Inbound: the guest's port is not known; the neighbour table of the bridge delivers.
    pub const VIA_NEIGHBOUR: u8 = 4;
    /// The flow holds a count on its [`crate::mapping::Mapping`].
    pub const MAPPED: u8 = 8;
    /// The host's own, seen on its way out: an uplink's entry without a guest's, which keeps guests off the tuple.
    pub const HOST: u8 = 16;
    /// A guest's direction whose remote is an external endpoint of another guest, or of the same one: the packet turns
    /// round on the host, and the uplink's entry of the remote's own session takes it on.
    pub const HAIRPIN: u8 = 32;
    /// The direction that opened a TCP flow: its handshake is not complete, and the flow counts as half open.
    pub const HALF_OPEN: u8 = 64;
    /// A guest's direction of a session that the world has opened: it stays on the uplink that it came in by, whatever
    /// the host's routes prefer.
    pub const ANSWERS: u8 = 128;
}

/// Value of the `FLOW_CARRY` map, by slot of the flow table: the upper halves of a session's counters. Of no meaning where the session does
/// not say that it has one ([`Session::CARRIES`]), so that nobody need clear it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Carry {
    /// Packets, upper half.
    pub packets: u32,
    /// Bytes, upper half.
    pub bytes: u32,
}

/// What went in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes, as IP carries them.
    pub bytes: u64,
}

impl Traffic {
    /// The upper halves of these counters, and the lower ones of packets and bytes.
    #[must_use]
    pub const fn split(self) -> (Carry, [u32; 2]) {
        let ([packets, more_packets], [bytes, more_bytes]) = (halves(self.packets), halves(self.bytes));
        (Carry { packets: more_packets, bytes: more_bytes }, [packets, bytes])
    }
}

/// The lower and the upper half.
#[expect(clippy::cast_possible_truncation, reason = "that is what is asked for")]
const fn halves(number: u64) -> [u32; 2] {
    [number as u32, (number >> 32) as u32]
}

impl Session {
    /// Bit of [`Self::tcp_seen`] beside those of [`crate::tcp_state::Seen`]: the counters have a [`Carry`].
    pub const CARRIES: u8 = 0x80;

    /// True when the counters have a [`Carry`].
    #[must_use]
    pub const fn carries(&self) -> bool {
        self.tcp_seen & Self::CARRIES != 0
    }

    /// What went in this direction, with what is carried.
    #[must_use]
    pub const fn traffic(&self, carry: Carry) -> Traffic {
        Traffic {
            packets: (carry.packets as u64) << 32 | self.packets as u64,
            bytes: (carry.bytes as u64) << 32 | self.bytes as u64,
        }
    }

    /// True when a packet of this direction was seen.
    #[must_use]
    pub const fn has_packets(&self) -> bool {
        self.packets != 0 || self.carries()
    }

    /// What replaces the near endpoint.
    #[must_use]
    pub const fn rewritten(&self) -> Endpoint {
        Endpoint::new(self.address, self.port)
    }

    /// Inbound, of a session with [`Flags::FORWARDED`]: the number of its port forward.
    #[must_use]
    pub const fn forward(&self) -> u32 {
        self.next_hop.to_wire()
    }

    /// Notes the number of the port forward.
    pub const fn set_forward(&mut self, id: u32) {
        self.next_hop = Address::from_wire(id);
    }

    /// True when the flag is set.
    #[must_use]
    pub const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn counters_are_what_their_halves_are_together(packets in any::<u64>(), bytes in any::<u64>()) {
            let counts = Traffic { packets, bytes };
            let (carry, [packets, bytes]) = counts.split();
            let session = Session { packets, bytes, ..Session::zeroed() };
            prop_assert_eq!(session.traffic(carry), counts);
        }
    }
}
