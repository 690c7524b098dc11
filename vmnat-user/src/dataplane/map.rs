//! Names and types of the maps, as `vmnat-ebpf/src/maps.rs` declares them.

/// Flows: the slots of the flow table.
pub const FLOW: &str = "FLOW";
/// Groups of the flow table.
pub const FLOW_GROUP: &str = "FLOW_GROUP";
/// Upper halves of flows' counters.
pub const FLOW_CARRY: &str = "FLOW_CARRY";
/// Mappings.
pub const MAPPING: &str = "MAPPING";
/// Networks.
pub const NETWORK: &str = "NETWORK";
/// Destinations without translation.
pub const UNTRANSLATED: &str = "UNTRANSLATED";
/// Access lists.
pub const ACCESS: &str = "ACCESS";
/// Ranges of access lists.
pub const ACCESS_RANGE: &str = "ACCESS_RANGE";
/// Bridges and their ports.
pub const BRIDGE_PORT: &str = "BRIDGE_PORT";
/// Uplinks.
pub const UPLINK: &str = "UPLINK";
/// Routers behind uplinks.
pub const GATEWAY: &str = "GATEWAY";
/// Headers of frames to next hops.
pub const NEXT_HOP: &str = "NEXT_HOP";
/// Port forwards.
pub const FORWARD: &str = "FORWARD";
/// Which of the port forwards are in use.
pub const FORWARD_ACTIVE: &str = "FORWARD_ACTIVE";
/// Ports that some port forward has.
pub const FORWARD_PORT: &str = "FORWARD_PORT";
/// Sources that may use a port forward.
pub const FORWARD_SOURCE: &str = "FORWARD_SOURCE";
/// What went through port forwards.
pub const FORWARD_COUNT: &str = "FORWARD_COUNT";
/// Where sockets of the host had wanted to go.
pub const HOST_PEER: &str = "HOST_PEER";
/// Fragments of datagrams on their way.
pub const FRAGMENT: &str = "FRAGMENT";
/// What guests have taken of what all share.
pub const GUEST: &str = "GUEST";
/// Leases.
pub const LEASE: &str = "LEASE";
/// Stations.
pub const STATION: &str = "STATION";
/// Services of the gateways.
pub const SERVICE: &str = "SERVICE";
/// Port bits.
pub const PORT_POOL: &str = "PORT_POOL";
/// Who had each port last.
pub const PORT_OWNER: &str = "PORT_OWNER";
/// The settings.
pub const SETTINGS: &str = "SETTINGS";
/// Counters.
pub const OUTCOMES: &str = "OUTCOMES";

/// What a map is: its type and its flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Entries by key, all of them preallocated.
    Hash,
    /// Entries by number.
    Array,
    /// Entries by number, which processes may map into their memory.
    MappedArray,
    /// Entries by number, for each CPU its own.
    PerCpuArray,
    /// As a hash; the oldest entries give way.
    LruHash,
    /// Entries by prefix, allocated as they come.
    LpmTrie,
}

impl Kind {
    /// What the kernel calls the type (`enum bpf_map_type`).
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::Hash => 1,
            Self::Array | Self::MappedArray => 2,
            Self::PerCpuArray => 6,
            Self::LruHash => 9,
            Self::LpmTrie => 11,
        }
    }

    /// The flags with which such a map is made: `BPF_F_NO_PREALLOC` for a trie, `BPF_F_MMAPABLE`, or none.
    #[must_use]
    pub const fn flags(self) -> u32 {
        match self {
            Self::LpmTrie => 1,
            Self::MappedArray => 1 << 10,
            _ => 0,
        }
    }
}

/// All of them.
pub const ALL: [(&str, Kind); 27] = [
    (FLOW, Kind::MappedArray),
    (FLOW_GROUP, Kind::MappedArray),
    (FLOW_CARRY, Kind::Array),
    (MAPPING, Kind::Hash),
    (NETWORK, Kind::LpmTrie),
    (UNTRANSLATED, Kind::LpmTrie),
    (ACCESS, Kind::LpmTrie),
    (ACCESS_RANGE, Kind::Array),
    (BRIDGE_PORT, Kind::Hash),
    (UPLINK, Kind::Hash),
    (GATEWAY, Kind::Hash),
    (NEXT_HOP, Kind::Array),
    (FORWARD, Kind::Array),
    (FORWARD_ACTIVE, Kind::Array),
    (FORWARD_PORT, Kind::Array),
    (FORWARD_SOURCE, Kind::LpmTrie),
    (FORWARD_COUNT, Kind::Hash),
    (HOST_PEER, Kind::LruHash),
    (FRAGMENT, Kind::LruHash),
    (GUEST, Kind::Hash),
    (LEASE, Kind::Hash),
    (STATION, Kind::Hash),
    (SERVICE, Kind::Hash),
    (PORT_POOL, Kind::Array),
    (PORT_OWNER, Kind::Array),
    (SETTINGS, Kind::Array),
    (OUTCOMES, Kind::PerCpuArray),
];
