//! Every map that the programs share with each other and with user space; the only place that declares any.
//!
//! Sizes are defaults: the loader may change those of `FLOW`, `FLOW_GROUP` and `MAPPING` before it loads.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray},
};
use vmnat_common::{
    Address, Outcome,
    access::{self, AccessList, AccessRange, Peer},
    bridge::BridgePort,
    flow_table::{Entry, GROUP, Line, groups_for, lines_for},
    forward::{Active, BANK, Forward, ForwardCount, Source},
    fragment::{Fragment, FragmentKey},
    host::{HostPeer, HostPeerKey},
    lease::Lease,
    mapping::{Mapping, MappingKey, PortOwner},
    network::Network,
    next_hop::{NextHop, SLOTS},
    port_range::{OWNERS, POOL_WORDS},
    quota::Guest,
    service::{Service, ServiceKey},
    session::Carry,
    settings::Settings,
    station::{Station, StationKey},
    uplink::Uplink,
};

use crate::{
    flow_table::{PLACES, Search},
    session::Draft,
};

/// Groups of a flow table of the default size.
const GROUPS: u32 = groups_for(2 * 262_144);

/// Groups of the flow table; the loader writes it before it loads.
#[unsafe(no_mangle)]
pub static FLOW_GROUPS: u32 = GROUPS;

/// Flows, two entries each: the slots of the flow table. No allocation on the packet's road, and never an eviction.
#[map]
pub static FLOW: Array<Entry> = Array::with_max_entries(GROUPS * GROUP, BPF_F_MMAPABLE);

/// Groups of the flow table, and in the first line its head.
#[map]
pub static FLOW_GROUP: Array<Line> = Array::with_max_entries(lines_for(GROUPS), BPF_F_MMAPABLE);

/// Upper halves of flows' counters, by slot.
#[map]
pub static FLOW_CARRY: Array<Carry> = Array::with_max_entries(GROUPS * GROUP, 0);

/// Mappings, two entries each.
#[map]
pub static MAPPING: HashMap<MappingKey, Mapping> = HashMap::with_max_entries(2 * 65_536, 0);

/// Subnets of guests.
#[map]
pub static NETWORK: LpmTrie<Address, Network> = LpmTrie::with_max_entries(256, 0);

/// Destinations that guests reach without translation.
#[map]
pub static UNTRANSLATED: LpmTrie<Address, u32> = LpmTrie::with_max_entries(1_024, 0);

/// Where the access list of each prefix is, by bridge and way.
#[map]
pub static ACCESS: LpmTrie<Peer, AccessList> = LpmTrie::with_max_entries(16_384, 0);

/// Ranges of access lists, two banks.
#[map]
pub static ACCESS_RANGE: Array<AccessRange> = Array::with_max_entries(2 * access::BANK, 0);

/// Bridge ports and bridges, by interface index.
#[map]
pub static BRIDGE_PORT: HashMap<u32, BridgePort> = HashMap::with_max_entries(4_096, 0);

/// Uplinks, by interface index.
#[map]
pub static UPLINK: HashMap<u32, Uplink> = HashMap::with_max_entries(64, 0);

/// The router behind an uplink, by interface index, to which answers go that the host's routes would send by another uplink;
/// unspecified where the link has but one other end.
#[map]
pub static GATEWAY: HashMap<u32, Address> = HashMap::with_max_entries(64, 0);

/// The Ethernet header of frames to a next hop, by its slot.
#[map]
pub static NEXT_HOP: Array<NextHop> = Array::with_max_entries(SLOTS, 0);

/// Port forwards, two sorted banks.
#[map]
pub static FORWARD: Array<Forward> = Array::with_max_entries(2 * BANK, 0);

/// Which bank of `FORWARD` is in use.
#[map]
pub static FORWARD_ACTIVE: Array<Active> = Array::with_max_entries(1, 0);

/// One bit a port that some forward has, on whatever address: for all others nothing is searched.
#[map]
pub static FORWARD_PORT: Array<u64> = Array::with_max_entries(POOL_WORDS, 0);

/// Sources that may use a port forward, of those that do not admit all.
#[map]
pub static FORWARD_SOURCE: LpmTrie<Source, u32> = LpmTrie::with_max_entries(65_536, 0);

/// What went through each port forward, by its number.
#[map]
pub static FORWARD_COUNT: HashMap<u32, ForwardCount> = HashMap::with_max_entries(BANK, 0);

/// Where sockets of the host had wanted to go before they were led to a guest. The oldest give way: a socket that is
/// forgotten is told the guest's endpoint as its peer's, nothing more.
#[map]
pub static HOST_PEER: LruHashMap<HostPeerKey, HostPeer> = LruHashMap::with_max_entries(16_384, 0);

/// Where each guest's address lives.
#[map]
pub static LEASE: HashMap<Address, Lease> = HashMap::with_max_entries(16_384, 0);

/// Behind which port each station of a bridge is.
#[map]
pub static STATION: HashMap<StationKey, Station> = HashMap::with_max_entries(16_384, 0);

/// Services of bridges' own addresses that guests may use.
#[map]
pub static SERVICE: HashMap<ServiceKey, Service> = HashMap::with_max_entries(4_096, 0);

/// One bit a port that guests may be given.
#[map]
pub static PORT_POOL: Array<u64> = Array::with_max_entries(POOL_WORDS, 0);

/// Who had each port last.
#[map]
pub static PORT_OWNER: Array<PortOwner> = Array::with_max_entries(OWNERS, 0);

/// The single [`Settings`].
#[map]
pub static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);

/// Packets by [`Outcome`], a counter a CPU.
#[map]
pub static OUTCOMES: PerCpuArray<u64> = PerCpuArray::with_max_entries(Outcome::COUNT, 0);

/// Fragments of datagrams on their way. The oldest give way: a flood of fragments costs fragments, nothing else.
#[map]
pub static FRAGMENT: LruHashMap<FragmentKey, Fragment> = LruHashMap::with_max_entries(16_384, 0);

/// What each guest has taken of what all share, by its address.
#[map]
pub static GUEST: HashMap<Address, Guest> = HashMap::with_max_entries(16_384, 0);

/// What a packet's visit writes down between its stages, a place a CPU.
#[map]
pub static DRAFT: PerCpuArray<Draft> = PerCpuArray::with_max_entries(1, 0);

/// Searches of the flow table in hand, two a CPU.
#[map]
pub static SEARCH: PerCpuArray<Search> = PerCpuArray::with_max_entries(PLACES, 0);
