//! Who had a port last. It is known beside the flow table and `MAPPING`, which somebody may empty: where that happens,
//! no port comes to another guest before it has rested (RFC 6888 REQ-8), and conversations go on where they were.
//!
//! Asked only when a mapping is claimed, and for segments from the world while the flow table's sentinel is missing.

use aya_ebpf::bindings::BPF_NOEXIST;
use vmnat_common::{
    Port,
    endpoint::Endpoint,
    flow::FlowKey,
    mapping::{Mapping, MappingKey, PortOwner},
    port_range::owner_index,
    settings::Settings,
    timeout::age,
};

use crate::{
    flow_table, mapping,
    maps::{MAPPING, PORT_OWNER},
    settings,
};

#[inline(always)]
fn of(protocol: u8, port: Port) -> Option<&'static mut PortOwner> {
    let owner = PORT_OWNER.get_ptr_mut(owner_index(protocol, port.number()))?;
    // SAFETY: the kernel keeps an array's element readable and writable for the program's run. Two CPUs that write at once leave
    // a mixture of two owners at worst, for which the port rests.
    Some(unsafe { &mut *owner })
}

/// True where the port was another's, whose mapping is there, or has gone without the port having rested.
#[inline(always)]
pub fn keeps_from(settings: &Settings, key: &FlowKey, external: Endpoint) -> bool {
    let Some(owner) = of(key.protocol, external.port) else { return false };
    if owner.address.is_unspecified()
        || owner.on != external.address
        || owner.internal() == key.source_endpoint()
    {
        return false;
    }
    // SAFETY: only whether there is one matters.
    if unsafe { MAPPING.get(MappingKey::external(key.protocol, external)) }.is_some() {
        return true;
    }
    let now = settings::jiffies() as u32;
    if owner.orphaned == 0 {
        owner.orphaned = now | 1;
    }
    age(now, owner.orphaned) < settings.timeouts.mapping_rest
}

/// Notes a mapping that was claimed.
#[inline(always)]
pub fn note(protocol: u8, internal: Endpoint, external: Endpoint) {
    if let Some(owner) = of(protocol, external.port) {
        *owner = PortOwner::new(external.address, internal);
    }
}

/// Forgets a mapping that was released after its rest.
#[inline(always)]
pub fn forget(protocol: u8, internal: Endpoint, external: Endpoint) {
    if let Some(owner) = of(protocol, external.port)
        && owner.on == external.address
        && owner.internal() == internal
    {
        owner.address = vmnat_common::Address::UNSPECIFIED;
    }
}

/// While the flow table's sentinel is missing: whose the external endpoint of an uplink's tuple was, address before port in
/// wire order; zero for nobody's. A mapping that was removed is put back.
#[inline(never)]
pub fn recall(key: &FlowKey) -> u64 {
    if PORT_OWNER.get(0).is_none_or(|mark| mark.orphaned == 0)
        || has_sentinel()
        || !mapping::is_in_pool(key.protocol, key.destination_port)
    {
        return 0;
    }
    let external = key.destination_endpoint();
    // SAFETY: as in `filtering::owner`.
    let mapped = unsafe { MAPPING.get(MappingKey::external(key.protocol, external)) };
    let internal = match mapped {
        Some(mapping) => mapping.other(),
        None => match put_back(key.protocol, external) {
            Some(internal) => internal,
            None => return 0,
        },
    };
    u64::from(internal.address.to_wire()) << 16 | u64::from(internal.port.to_wire())
}

#[inline(always)]
fn has_sentinel() -> bool {
    flow_table::find(&FlowKey::SENTINEL).is_some()
}

/// Makes the mapping of a port's last owner again.
#[inline(always)]
fn put_back(protocol: u8, external: Endpoint) -> Option<Endpoint> {
    let owner = of(protocol, external.port)?;
    if owner.address.is_unspecified() || owner.on != external.address {
        return None;
    }
    let internal = owner.internal();
    let last_used = settings::jiffies() as u32;
    let end = |to: Endpoint| Mapping { address: to.address, port: to.port, flags: 0, flows: 0, last_used };
    let outer = MappingKey::external(protocol, external);
    MAPPING.insert(outer, end(internal), u64::from(BPF_NOEXIST)).ok()?;
    let inner = MappingKey::internal(protocol, internal, external.address);
    if MAPPING.insert(inner, end(external), u64::from(BPF_NOEXIST)).is_err() {
        // It has another port by now.
        let _ = MAPPING.remove(outer);
        return None;
    }
    owner.orphaned = 0;
    Some(internal)
}
