//! Names of the maps, as `vmnat-ebpf/src/maps.rs` declares them.

/// Flows.
pub const FLOW: &str = "FLOW";
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
/// The settings.
pub const SETTINGS: &str = "SETTINGS";
/// Counters.
pub const OUTCOMES: &str = "OUTCOMES";

/// All of them.
pub const ALL: [&str; 24] = [
    FLOW,
    MAPPING,
    NETWORK,
    UNTRANSLATED,
    ACCESS,
    ACCESS_RANGE,
    BRIDGE_PORT,
    UPLINK,
    GATEWAY,
    NEXT_HOP,
    FORWARD,
    FORWARD_ACTIVE,
    FORWARD_PORT,
    FORWARD_SOURCE,
    FORWARD_COUNT,
    HOST_PEER,
    FRAGMENT,
    GUEST,
    LEASE,
    STATION,
    SERVICE,
    PORT_POOL,
    SETTINGS,
    OUTCOMES,
];
