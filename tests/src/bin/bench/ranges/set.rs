//! The sets of port forwards that are compared.

use anyhow::Result;
use vmnat_common::{
    Address, Endpoint, Port, Protocol,
    forward::{Forward, place},
};
use vmnat_tests::lab::{EXTERNAL, guest_address, octets};

/// The external port that packets ask for: the middle one of every set.
pub const ASKED: u16 = 25_000;

/// An external port that no set has.
pub const UNASKED: u16 = 60_000;

/// What is added to an external port to make the guest's.
pub const SHIFT: u16 = 10_000;

/// A set of port forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// None.
    Nothing,
    /// One port.
    One,
    /// 10,000 ports in one range.
    Range,
    /// 5,000 forwards of one port each.
    Many,
}

impl Set {
    /// Those that lead somewhere.
    pub const LEADING: [Self; 3] = [Self::One, Self::Range, Self::Many];

    /// Every set.
    pub const ALL: [Self; 4] = [Self::Nothing, Self::One, Self::Range, Self::Many];

    /// [`Set::Range`] as an operator writes it. Without its address it would be an entry for each of the host's, 127.0.0.1
    /// among them.
    pub const RANGE: &str = "203.0.113.2:20000-29999:192.168.122.10:30000-39999/udp";

    /// What tables call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "no forward",
            Self::One => "a forward of one port",
            Self::Range => "a forward of 10,000 ports",
            Self::Many => "5,000 forwards of one port",
        }
    }

    /// First external port, number of forwards, ports of each after its first.
    const fn shape(self) -> (u16, u16, u16) {
        match self {
            Self::Nothing => (ASKED, 0, 0),
            Self::One => (ASKED, 1, 0),
            Self::Range => (ASKED - 5_000, 1, 9_999),
            Self::Many => (ASKED - 2_500, 5_000, 0),
        }
    }

    /// Entries that it must take.
    pub fn entries(self) -> usize {
        usize::from(self.shape().1)
    }

    /// Number of its first forward; no two sets share one, so each set's conversations are counted apart.
    const fn first_id(self) -> u32 {
        match self {
            Self::Nothing => 0,
            Self::One => 1,
            Self::Range => 2,
            Self::Many => 3,
        }
    }

    /// Number of the forward that has the port that is asked for.
    pub fn asked_id(self) -> u32 {
        let (first, _, span) = self.shape();
        self.first_id() + if span == 0 { u32::from(ASKED - first) } else { 0 }
    }

    /// The forwards, sorted, to a guest behind a bridge.
    pub fn forwards(self, bridge: u32) -> Result<Vec<Forward>> {
        let (external, guest) = (Address::new(octets(EXTERNAL)?), Address::new(octets(&guest_address(1))?));
        let (first, count, span) = self.shape();
        let forward = |at: u16| Forward {
            first: place(Protocol::Udp.number(), Endpoint::new(external, Port::new(first + at))),
            address: guest,
            port: Port::new(first + at + SHIFT),
            span,
            id: self.first_id() + u32::from(at),
            bridge,
            expires: 0,
            flags: 0,
        };
        Ok((0..count).map(forward).collect())
    }
}
