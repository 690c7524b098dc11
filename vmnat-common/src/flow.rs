//! The flow: one direction of a conversation, as the hook that sees it first reads it off the wire.

use bytemuck::{Pod, Zeroable};

use crate::endpoint::{Address, Endpoint, Port, Protocol};

/// Which hook reads the tuple: the same conversation has one flow on each side.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// As the guest writes it: source is the internal endpoint.
    Guest = 0,
    /// As it arrives on the uplink: destination is the external endpoint.
    Uplink = 1,
    /// As it comes from a guest of another network, which calls this one by its own address. Nothing that arrives on an uplink
    /// has this side, whatever it bears.
    Across = 2,
}

/// Key of the `FLOW` map: a tuple as it lies on the wire, and the side it is read on.
///
/// An ICMP query has its identifier in the near port and its query type in the far port, so that an echo and a
/// timestamp with one identifier are two flows.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FlowKey {
    /// Source address on the wire.
    pub source: Address,
    /// Destination address on the wire.
    pub destination: Address,
    /// Source port on the wire.
    pub source_port: Port,
    /// Destination port on the wire.
    pub destination_port: Port,
    /// IP protocol number.
    pub protocol: u8,
    /// [`Side`] as a number.
    pub side: u8,
    /// Zero, except in answers of the reaper, where it is a [`crate::reap::Verdict`].
    pub reserved: u16,
}

const _: () = assert!(size_of::<FlowKey>() == 16);

impl FlowKey {
    /// The key of an entry that no packet has. It is put into the table once, and is missing only where somebody has emptied the
    /// table.
    pub const SENTINEL: Self = Self {
        source: Address::UNSPECIFIED,
        destination: Address::UNSPECIFIED,
        source_port: Port::new(0),
        destination_port: Port::new(0),
        protocol: 0,
        side: u8::MAX,
        reserved: 0,
    };

    /// The tuple that a guest's packet carries.
    #[must_use]
    pub const fn guest(protocol: Protocol, internal: Endpoint, remote: Endpoint) -> Self {
        Self::new(protocol.number(), Side::Guest, internal, remote)
    }

    /// The tuple that the remote's packet carries on the uplink.
    #[must_use]
    pub const fn uplink(protocol: Protocol, remote: Endpoint, external: Endpoint) -> Self {
        Self::new(protocol.number(), Side::Uplink, remote, external)
    }

    /// A tuple from its parts.
    #[must_use]
    pub const fn new(protocol: u8, side: Side, source: Endpoint, destination: Endpoint) -> Self {
        Self {
            source: source.address,
            destination: destination.address,
            source_port: source.port,
            destination_port: destination.port,
            protocol,
            side: side as u8,
            reserved: 0,
        }
    }

    /// Source as an endpoint.
    #[must_use]
    pub const fn source_endpoint(&self) -> Endpoint {
        Endpoint::new(self.source, self.source_port)
    }

    /// Destination as an endpoint.
    #[must_use]
    pub const fn destination_endpoint(&self) -> Endpoint {
        Endpoint::new(self.destination, self.destination_port)
    }

    /// The key of the other direction, where this direction's near endpoint (source of a guest's flow,
    /// destination of an uplink's) is rewritten to `rewritten`. A guest that keeps its endpoint talks across networks.
    #[must_use]
    pub const fn reverse(&self, rewritten: Endpoint) -> Self {
        if self.side == Side::Guest as u8 {
            let keeps = self.source.to_wire() == rewritten.address.to_wire()
                && self.source_port.to_wire() == rewritten.port.to_wire();
            let side = if keeps { Side::Across } else { Side::Uplink };
            Self::new(self.protocol, side, self.destination_endpoint(), rewritten)
        } else {
            Self::new(self.protocol, Side::Guest, rewritten, self.source_endpoint())
        }
    }

    /// The near endpoint: the internal one on the guest's side, the external one on the uplink's.
    #[must_use]
    pub const fn near(&self) -> Endpoint {
        if self.side == Side::Guest as u8 { self.source_endpoint() } else { self.destination_endpoint() }
    }

    /// The remote endpoint.
    #[must_use]
    pub const fn remote(&self) -> Endpoint {
        if self.side == Side::Guest as u8 { self.destination_endpoint() } else { self.source_endpoint() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn endpoint() -> impl Strategy<Value = Endpoint> {
        (any::<[u8; 4]>(), any::<u16>()).prop_map(|(a, p)| Endpoint::new(Address::new(a), Port::new(p)))
    }

    proptest! {
        #[test]
        fn reverse_of_reverse_is_self(internal in endpoint(), external in endpoint(), remote in endpoint()) {
            let guest = FlowKey::guest(Protocol::Tcp, internal, remote);
            let uplink = guest.reverse(external);
            prop_assert_eq!(uplink, FlowKey::uplink(Protocol::Tcp, remote, external));
            prop_assert_eq!(uplink.reverse(internal), guest);
        }

        #[test]
        fn near_and_remote_do_not_depend_on_the_side(internal in endpoint(), external in endpoint(), remote in endpoint()) {
            let guest = FlowKey::guest(Protocol::Udp, internal, remote);
            prop_assert_eq!(guest.near(), internal);
            prop_assert_eq!(guest.reverse(external).near(), external);
            prop_assert_eq!(guest.remote(), guest.reverse(external).remote());
        }
    }
}
