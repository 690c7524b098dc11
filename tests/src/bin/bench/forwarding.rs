//! The ways to forward that are compared, and the directions.

use crate::hook::ModeHook;

/// How a rig forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    /// Not at all: the sink stands at the very interface that receives.
    Floor,
    /// A tc program of four instructions redirects everything.
    Redirect,
    /// A tc program redirects everything, and the kernel writes the next hop's MAC.
    RedirectToNeighbour,
    /// The uplink is a port of the bridge.
    Bridge,
    /// The kernel routes, without any rule.
    Route,
    /// The kernel routes and nftables masquerades.
    Masquerade,
    /// The kernel routes, with what libvirt's iptables backend installs for its default network.
    Libvirt,
    /// vmnat at the bridge's port.
    Port,
    /// The same without the guard at the uplink's egress.
    Unguarded,
    /// vmnat at the bridge, because the port is isolated.
    BridgeHook,
    /// vmnat of another build at the bridge's port.
    Against,
    /// Whatever an operator's script sets up.
    Hooked(&'static ModeHook),
}

impl Forwarding {
    /// What tables call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor: generator, receive, sink",
            Self::Redirect => "bare redirect, port to port",
            Self::RedirectToNeighbour => "bare redirect to a neighbour",
            Self::Bridge => "plain L2 bridge",
            Self::Route => "plain L3 forward, no rules",
            Self::Masquerade => "nft masquerade",
            Self::Libvirt => "libvirt's iptables rules",
            Self::Port => "vmnat, port hook",
            Self::Unguarded => "vmnat, port hook, without its guard",
            Self::BridgeHook => "vmnat, bridge hook",
            Self::Against => "vmnat of the other build, port hook",
            Self::Hooked(hook) => hook.name.as_str(),
        }
    }

    /// True when a guest's address is replaced.
    pub fn translates(self) -> bool {
        self.is_vmnat() || self.is_tracked() || matches!(self, Self::Hooked(_))
    }

    /// True when netfilter's connection tracking has a part in it.
    pub const fn is_tracked(self) -> bool {
        matches!(self, Self::Masquerade | Self::Libvirt)
    }

    /// True when the kernel is to route.
    pub const fn is_routed(self) -> bool {
        matches!(self, Self::Route | Self::Masquerade | Self::Libvirt)
    }

    /// True when it is vmnat that forwards.
    pub const fn is_vmnat(self) -> bool {
        matches!(self, Self::Port | Self::Unguarded | Self::BridgeHook | Self::Against)
    }
}

/// Which way, seen from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Guest to world.
    Outbound,
    /// World to guest.
    Inbound,
}

impl Direction {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Outbound, Self::Inbound];

    /// The word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}
