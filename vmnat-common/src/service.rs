//! Services of the gateway that guests may use whatever the host's INPUT rules say.

use bytemuck::{Pod, Zeroable};

use crate::endpoint::{Address, Port};

/// Interface index of the loopback: the kernel insists on it in every network namespace (`loopback_net_init()`).
pub const LOOPBACK: u32 = 1;

/// Key of the `SERVICE` map: a service of a bridge's own address. What is not in the map is not opened.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct ServiceKey {
    /// Interface index of the bridge: its guests alone are served.
    pub bridge: u32,
    /// An address of the bridge.
    pub address: Address,
    /// The port.
    pub port: Port,
    /// IP protocol number: TCP or UDP.
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
}

const _: () = assert!(size_of::<ServiceKey>() == 12);

impl ServiceKey {
    /// A key from its parts.
    #[must_use]
    pub const fn new(bridge: u32, address: Address, protocol: u8, port: Port) -> Self {
        Self { bridge, address, port, protocol, reserved: 0 }
    }
}

/// Value of the `SERVICE` map: who answers.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Service {
    /// [`ServiceWay`] as a number.
    pub way: u32,
}

/// Who answers at an allowed service.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceWay {
    /// The host's own server, by way of the loopback.
    Host = 1,
    /// The relay in the quiet room.
    Relay = 2,
    /// The host's own server where a socket waits there, else the relay.
    HostOrRelay = 3,
}

impl ServiceWay {
    /// The map's value.
    #[must_use]
    pub const fn value(self) -> Service {
        Service { way: self as u32 }
    }

    /// What a value of the map means.
    #[must_use]
    pub const fn of(value: Service) -> Option<Self> {
        match value.way {
            1 => Some(Self::Host),
            2 => Some(Self::Relay),
            3 => Some(Self::HostOrRelay),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_and_its_value_are_one() {
        for way in [ServiceWay::Host, ServiceWay::Relay, ServiceWay::HostOrRelay] {
            assert_eq!(ServiceWay::of(way.value()), Some(way));
        }
        assert_eq!(ServiceWay::of(Service { way: 0 }), None);
    }
}
