//! The mapping of an internal endpoint: found, or claimed from the pool. Only when a flow is opened.

use core::{
    ffi::c_void,
    intrinsics::{AtomicOrdering, atomic_xadd},
};

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::generated::{bpf_get_prandom_u32, bpf_loop},
    programs::TcContext,
};
use vmnat_common::{
    Outcome, Port,
    endpoint::Endpoint,
    flow::FlowKey,
    mapping::{Mapping, MappingKey},
    port_range::{NO_POOL, PROBES, PortRange, bit_of, candidate, endpoint_hash, pool_base},
    settings::Settings,
};

use crate::{
    maps::{MAPPING, PORT_POOL},
    owner, settings, socket,
};

/// Finds or claims the external endpoint of the guest's flow `key` on the address that `external` holds, and writes its
/// port there. A mapping whose port a socket of the host holds towards this remote does not serve. The flow is counted on its
/// mapping in advance: who then cannot open it, gives it back.
#[inline(never)]
pub fn find_or_claim(ctx: &TcContext, key: &FlowKey, external: &mut Endpoint) -> Result<(), Outcome> {
    let internal = MappingKey::internal(key.protocol, key.source_endpoint(), external.address);
    if let Some(known) = MAPPING.get_ptr_mut(internal) {
        // SAFETY: as in `of`.
        *external = unsafe { (*known).other() };
        if is_hosts(ctx, key, *external) {
            return Err(Outcome::FlowConflict);
        }
        add_flows(known, *external, 1);
        return Ok(());
    }
    let settings = settings::get()?;
    let mut search = Search {
        ctx,
        settings,
        key,
        range: range(settings, key),
        hash: endpoint_hash(settings.secret, key.protocol, key.source_endpoint()),
        external: *external,
        claimed: false,
    };
    // SAFETY: the callback has the helper's signature and gets the very search that is passed here, which outlives the
    // call. A loop of the language's own would be verified turn by turn, to more than a million instructions.
    unsafe {
        bpf_loop(PROBES, probe as *const () as *mut c_void, (&raw mut search).cast(), 0);
    }
    if !search.claimed {
        return Err(Outcome::PortsExhausted);
    }
    *external = bind(&internal, search.external)?;
    owner::note(key.protocol, key.source_endpoint(), *external);
    Ok(())
}

/// The search for a free port.
struct Search<'a> {
    ctx: &'a TcContext,
    settings: &'a Settings,
    key: &'a FlowKey,
    range: PortRange,
    hash: u32,
    /// The candidate, and the result once `claimed`.
    external: Endpoint,
    claimed: bool,
}

/// One turn of the search: zero goes on, one ends it.
extern "C" fn probe(attempt: u32, search: *mut c_void) -> i64 {
    // SAFETY: `find_or_claim` passes its own search, and nothing else refers to it during the loop.
    let search = unsafe { &mut *search.cast::<Search<'_>>() };
    let key = search.key;
    search.external.port = candidate(attempt, search.range, key.source_port, search.hash, random());
    search.claimed = is_free(search.ctx, search.range, key, search.external)
        && !owner::keeps_from(search.settings, key, search.external)
        && claim(key, search.external);
    i64::from(search.claimed)
}

/// Offers a port for one flow alone, when the mapping's own cannot serve it or the pool is full. Another flow may share it
/// towards other remotes (RFC 7857 section 3). True when the port may be tried.
#[inline(always)]
pub fn offer_overloaded(ctx: &TcContext, key: &FlowKey, external: &mut Endpoint) -> bool {
    let Ok(settings) = settings::get() else { return false };
    let range = range(settings, key);
    external.port = candidate(PROBES, range, key.source_port, 0, random());
    is_free(ctx, range, key, *external)
}

/// Counts a flow more or less on its mapping.
#[inline(always)]
pub fn count_flow(protocol: u8, internal: Endpoint, external: Endpoint, by: i32) {
    let key = MappingKey::internal(protocol, internal, external.address);
    if let Some(mapping) = MAPPING.get_ptr_mut(key) {
        add_flows(mapping, external, by);
    }
}

#[inline(always)]
fn add_flows(mapping: *mut Mapping, external: Endpoint, by: i32) {
    let now = settings::jiffies() as u32;
    // SAFETY: the pointer is the map's. The element may be replaced meanwhile; then a count is off by one, which delays or
    // hastens the end of a mapping but never gives its port away: claims are decided by the external entry.
    unsafe {
        if (*mapping).port == external.port {
            atomic_xadd::<i32, i32, { AtomicOrdering::Relaxed }>(&raw mut (*mapping).flows, by);
            (*mapping).last_used = now;
        }
    }
}

/// True when a socket of the host would receive what the remote sends to the external endpoint.
#[inline(always)]
fn is_hosts(ctx: &TcContext, key: &FlowKey, external: Endpoint) -> bool {
    socket::holding(ctx, key, external) != socket::NONE
}

#[inline(always)]
fn range(settings: &Settings, key: &FlowKey) -> PortRange {
    let pool = PortRange::new(settings.pool_first, settings.pool_last);
    PortRange::for_port(pool_base(key.protocol), key.source_port.number(), pool)
}

/// Whether a guest may keep its port, where the protocol allows no other: not where a port forward has it.
#[inline(always)]
pub fn may_keep(key: &FlowKey) -> bool {
    is_in_pool(key.protocol, key.source_port)
}

/// True when guests may be given the port.
#[inline(always)]
pub fn is_in_pool(protocol: u8, port: Port) -> bool {
    let base = pool_base(protocol);
    let (word, bit) = bit_of(base, port.number());
    base == NO_POOL || PORT_POOL.get(word).is_some_and(|bits| *bits & bit != 0)
}

/// True when guests may be given the port, and no socket of the host holds it towards this remote.
#[inline(always)]
fn is_free(ctx: &TcContext, range: PortRange, key: &FlowKey, external: Endpoint) -> bool {
    range.contains(external.port.number())
        && is_in_pool(key.protocol, external.port)
        && !is_hosts(ctx, key, external)
}

/// Takes the external endpoint for the flow's sender, unless somebody has it.
#[inline(always)]
fn claim(key: &FlowKey, external: Endpoint) -> bool {
    let owner = Mapping {
        address: key.source,
        port: key.source_port,
        flags: 0,
        flows: 0,
        last_used: settings::jiffies() as u32,
    };
    let outer = MappingKey::external(key.protocol, external);
    // Its own half of a mapping whose other half somebody has removed serves as well.
    MAPPING.insert(outer, owner, u64::from(BPF_NOEXIST)).is_ok() || of(&outer) == Some(key.source_endpoint())
}

/// Binds the internal endpoint to what was claimed. Where another CPU was faster, its mapping stands and the claim
/// is given back.
#[inline(always)]
fn bind(internal: &MappingKey, external: Endpoint) -> Result<Endpoint, Outcome> {
    let mapping = Mapping {
        address: external.address,
        port: external.port,
        flags: 0,
        flows: 1,
        last_used: settings::jiffies() as u32,
    };
    if MAPPING.insert(internal, mapping, u64::from(BPF_NOEXIST)).is_ok() {
        return Ok(external);
    }
    let stands = of(internal).ok_or(Outcome::PortsExhausted)?;
    if stands != external {
        let _ = MAPPING.remove(MappingKey::external(internal.protocol, external));
    }
    count_flow(internal.protocol, Endpoint::new(internal.address, internal.port), stands, 1);
    Ok(stands)
}

#[inline(always)]
fn of(internal: &MappingKey) -> Option<Endpoint> {
    // SAFETY: the map is preallocated: a mapping that is removed at this instant may show another's endpoint. The flow's
    // uplink entry is NOEXIST, so the worst is a refused flow.
    unsafe { MAPPING.get(internal) }.map(Mapping::other)
}

#[inline(always)]
fn random() -> u32 {
    // SAFETY: the helper takes nothing.
    unsafe { bpf_get_prandom_u32() }
}
