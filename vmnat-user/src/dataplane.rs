//! The kernel half, embedded: its names, its loading, its pins.

/// The object that `build.rs` built.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/vmnat-dataplane"));

/// Names of the maps, as `vmnat-ebpf/src/maps.rs` declares them.
pub mod map {
    /// Flows.
    pub const FLOW: &str = "FLOW";
    /// Mappings.
    pub const MAPPING: &str = "MAPPING";
    /// Networks.
    pub const NETWORK: &str = "NETWORK";
    /// Bridges and their ports.
    pub const BRIDGE_PORT: &str = "BRIDGE_PORT";
    /// Uplinks.
    pub const UPLINK: &str = "UPLINK";
    /// Port forwards.
    pub const FORWARD: &str = "FORWARD";
    /// Leases.
    pub const LEASE: &str = "LEASE";
    /// Port bits.
    pub const PORT_POOL: &str = "PORT_POOL";
    /// The settings.
    pub const SETTINGS: &str = "SETTINGS";
    /// Counters.
    pub const OUTCOMES: &str = "OUTCOMES";
}

/// Names of the programs, as `vmnat-ebpf/src/main.rs` declares them.
pub mod program {
    /// Ingress of a bridge's port.
    pub const OUTBOUND_PORT: &str = "outbound_port";
    /// Ingress of a bridge.
    pub const OUTBOUND_BRIDGE: &str = "outbound_bridge";
    /// Ingress of an uplink.
    pub const INBOUND: &str = "inbound";
    /// Egress of an uplink.
    pub const GUARD: &str = "guard";
    /// Removes flows.
    pub const REAPER: &str = "reaper";
    /// Tells jiffies.
    pub const CLOCK: &str = "clock";
}
