//! What arrives at the uplink.

use anyhow::Result;
use vmnat_common::Outcome;
use vmnat_tests::lab::{
    EXTERNAL, ROUTER_MAC, SERVER, UPLINK_MAC,
    frame::{Ends, Ipv4, Packet},
    guest_address, octets,
};

use super::set::{ASKED, SHIFT, Set, UNASKED};
use crate::program::{self, Instruction};

/// Bytes of a frame, without the frame check sequence.
pub const FRAME: usize = 64;

/// Bytes before the payload: Ethernet, IPv4, UDP.
const HEADERS: usize = 42;

const REMOTE_PORT: u16 = 7_000;

/// Most conversations that a turn opens: with those of the warm-up, half of what the flow table holds.
const OPENINGS: u32 = 60_000;

/// A kind of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// Of one conversation, which its first packet opened through the forward.
    Established,
    /// Each of a new conversation through the forward.
    Opening,
    /// Of no conversation and for no forward: the host's own.
    Own,
}

impl Traffic {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Established, Self::Opening, Self::Own];

    /// What tables call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Established => "packets of one conversation",
            Self::Opening => "packets that open conversations",
            Self::Own => "the host's own packets",
        }
    }

    /// The sets of forwards that it meets.
    pub const fn sets(self) -> &'static [Set] {
        match self {
            Self::Established | Self::Opening => &Set::LEADING,
            Self::Own => &Set::ALL,
        }
    }

    /// How many packets a turn has, where so many were asked for.
    pub fn packets(self, asked: u32) -> u32 {
        if self == Self::Opening { asked.min(OPENINGS) } else { asked }
    }

    /// How many conversations that many packets open at most.
    pub const fn conversations(self, packets: u32) -> u32 {
        match self {
            Self::Established => 1,
            Self::Opening => packets,
            Self::Own => 0,
        }
    }

    /// What becomes of each packet.
    pub const fn outcome(self) -> Outcome {
        match self {
            Self::Established | Self::Opening => Outcome::TranslatedInbound,
            Self::Own => Outcome::NoFlow,
        }
    }

    /// The frame that the generator writes.
    pub fn frame(self) -> Result<Vec<u8>> {
        let (source, from, to) = match self {
            Self::Established => (octets(SERVER)?, REMOTE_PORT, ASKED),
            Self::Opening => ([10, 0, 0, 0], 0, ASKED),
            Self::Own => (octets(SERVER)?, REMOTE_PORT, UNASKED),
        };
        let ends = Ends { from_mac: ROUTER_MAC, to_mac: UPLINK_MAC, source, destination: octets(EXTERNAL)? };
        let mut packet = Packet::udp(ends, from, to, &[0x5a; FRAME - HEADERS]);
        // A checksum of zero is none (RFC 768); it would be another one for every source.
        packet.checksum_at = packet.checksum_at.filter(|_| self != Self::Opening);
        Ok(packet.bytes())
    }

    /// The program that writes frames.
    pub fn generator(self, frame: &[u8]) -> Vec<Instruction> {
        match self {
            Self::Opening => program::stranger_generator(frame),
            Self::Established | Self::Own => program::generator(frame),
        }
    }

    /// True when a packet is what must reach the guest.
    pub fn is_right(self, packet: &Ipv4) -> bool {
        let Some((from, to)) = packet.ports() else { return false };
        let is_remote = match self {
            Self::Established => {
                octets(SERVER).is_ok_and(|server| packet.source == server) && from == REMOTE_PORT
            }
            Self::Opening => packet.source.first() == Some(&10) && from >= 1_024,
            Self::Own => false,
        };
        let is_guest = octets(&guest_address(1)).is_ok_and(|guest| packet.destination == guest);
        is_remote && is_guest && to == ASKED + SHIFT && packet.header_is_sound && packet.body_is_sound
    }
}
