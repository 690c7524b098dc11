//! Reconcile: makes maps, hooks and kernel settings what state and interfaces say; the only thing that does.
//!
//! It may run at any time and any number of times: what is right already is not touched, and every change is
//! told. Maps are filled before the first hook is attached. Flows are told to look at their way again
//! (`Settings::generation`) only when something they depend on has changed.

mod access;
mod forwards;
mod leases;
mod limits;
pub mod settings;
mod stations;
pub mod sysctls;

use std::{collections::HashMap, fmt::Debug, hash::Hash, net::Ipv4Addr};

use anyhow::{Context as _, Result};
use bytemuck::Pod;
use ipnet::Ipv4Net;
use rtnetlink::Handle;
use tracing::warn;
use vmnat_common::{
    Address,
    flow::{FlowKey, Side},
    network::{Network, NetworkKey},
    reap::{Mode, Verdict},
    session::{Flags, Session},
    uplink::Uplink,
};

use crate::{
    dataplane::heritage::{self, Edition},
    facts::{self, Facts},
    leases::Directory,
    link::{self, Point},
    paths::Instance,
    plan::{self, Circumstances, Plan},
    room, services,
    state::{Filtering, Lock, State},
    tables::{Table, Tables},
};

/// What a reconcile did.
#[derive(Debug, Default)]
pub struct Reconciled {
    /// A line for each change that an operator would want to know of.
    pub changes: Vec<String>,
    /// The same for port forwards; one line for all where there are many.
    pub forwards: Vec<String>,
    /// What could not be done at single interfaces.
    pub failures: Vec<anyhow::Error>,
    /// The hooks that were wanted.
    pub hooks: Vec<link::Hook>,
}

/// Makes everything true.
///
/// # Errors
/// When the networks overlap, or the kernel refuses a map's change. What fails at one interface alone is in
/// [`Reconciled::failures`].
pub async fn reconcile(
    instance: &Instance,
    handle: &Handle,
    tables: &Tables,
    state: &mut State,
    facts: &Facts,
    lock: &Lock,
) -> Result<Reconciled> {
    let mut done = Reconciled::default();
    let both = async {
        let plan = fill(instance, tables, state, facts, lock, &mut done)?;
        attach(instance, handle, tables, state, &plan, lock, &mut done).await
    };
    let outcome = both.await;
    note_failure(state, outcome.as_ref().err());
    outcome.map(|()| done)
}

/// Puts on record that a reconcile was broken off: `status` tells it, and the next one makes up for it.
pub fn note_failure(state: &mut State, error: Option<&anyhow::Error>) {
    const BROKEN_OFF: &str = "not everything is true that was asked for, and it is tried again: ";
    let Some(error) = error else { return };
    state.unfinished = true;
    state.warnings.retain(|warning| !warning.starts_with(BROKEN_OFF));
    state.warnings.push(format!("{BROKEN_OFF}{error:#}"));
}

/// The first half of [`reconcile`]: the quiet room, and maps.
///
/// # Errors
/// As [`reconcile`].
pub fn fill(
    instance: &Instance,
    tables: &Tables,
    state: &mut State,
    facts: &Facts,
    lock: &Lock,
    done: &mut Reconciled,
) -> Result<Plan> {
    // Refuse what cannot be before anything is touched.
    let outline = plan::plan(state, facts, &Circumstances::default())?;
    limits::check(tables, &outline)?;
    let (now, boot) = (crate::forwards::now(), crate::forwards::boot_now()?);
    done.forwards.extend(crate::forwards::drop_expired(state, now, boot));
    let directory = |state: &State| Directory::gather(state, facts, tables);
    crate::forwards::refresh(state, directory)?;
    state.dhcp_leases = instance.dhcp_leases();
    sysctls::survey(state, facts, done);
    let loopback_is_strict = services::loopback::settle(state, !outline.service.is_empty(), lock, done);
    let room = room::settle(instance, tables, facts, &outline)?;
    done.changes.extend(room.changes);
    let circumstances = Circumstances {
        obstructed: obstructed(instance, state, facts),
        closed: sysctls::closed(state),
        room: room.ends,
        loopback_is_strict,
    };
    let mut plan = plan::plan(state, facts, &circumstances)?;
    plan.warnings.extend(room.warnings);
    plan.warnings.extend(services::warnings(&plan.service, loopback_is_strict));
    if let (true, [(_, name)]) = (state.uplinks.is_empty(), &plan.uplinks[..]) {
        state.followed.clone_from(name);
    }
    settings::settle(instance, tables, state)?;
    let moved = settle_maps(tables, state, &plan, facts, done)?;
    let (leases, full) = leases::settle(tables, &plan, facts, &Directory::given(state, facts))?;
    plan.warnings.extend(full);
    plan.warnings.extend(stations::settle(tables, &plan, facts)?);
    // A reconcile that was broken off may have written maps, and then told no flow.
    if moved || leases || state.unfinished {
        tables.bump_generation()?;
    }
    Ok(plan)
}

/// The second half of [`reconcile`]: hooks, and then the kernel setting that makes guests routable, and the way to the quiet
/// room.
///
/// # Errors
/// As [`reconcile`].
pub async fn attach(
    instance: &Instance,
    handle: &Handle,
    tables: &Tables,
    state: &mut State,
    plan: &Plan,
    lock: &Lock,
    done: &mut Reconciled,
) -> Result<()> {
    link::foresee(state, &plan.hooks);
    lock.note_records(state)?;
    let synced = link::sync(instance, handle, state, &plan.hooks).await?;
    done.changes.extend(synced.changes);
    if synced.failures.is_empty() {
        sysctls::turn_on(state, done);
    }
    done.failures.extend(synced.failures);
    let stands = |room: &&room::Ends| room.hooks().iter().all(|hook| !synced.missing.contains(hook));
    match plan.room.as_ref().filter(stands) {
        Some(room) => room::open(tables, room)?,
        None => room::close(tables)?,
    }
    state.warnings.clone_from(&plan.warnings);
    state.warnings.extend(link::overtaken(instance, state, &plan.hooks));
    done.hooks.clone_from(&plan.hooks);
    match link::sync_host(instance, !plan.forward.is_empty()) {
        Ok(changes) => done.changes.extend(changes),
        Err(error) => state.warnings.push(format!(
            "the host itself cannot use its port forwards, only guests and the world can: {error:#}"
        )),
    }
    state.warnings.extend(done.failures.iter().map(|failure| format!("{failure:#}")));
    // Where an old program still stands, it needs its maps.
    if done.failures.is_empty() && heritage::finish(instance, &Edition::this())? {
        done.changes.push("took over flows and mappings into the maps of this version".to_owned());
    }
    state.unfinished = false;
    Ok(())
}

/// Checks that a state can be made true with these interfaces.
///
/// # Errors
/// [`crate::error::Error::Overlap`].
pub fn check(state: &State, facts: &Facts) -> Result<()> {
    plan::plan(state, facts, &Circumstances::default())?;
    Ok(())
}

/// Checks also that the kernel has the kind of hook, and that every hook of bridges and uplinks may be this instance's.
///
/// # Errors
/// As [`check`], [`crate::error::Error::NoTcx`] and [`crate::error::Error::Taken`].
pub fn admit(instance: &Instance, state: &State, facts: &Facts) -> Result<()> {
    link::check_mode(state.hook)?;
    let plan = plan::plan(state, facts, &Circumstances::default())?;
    Ok(link::admit(instance, state, &plan.hooks)?)
}

/// Removes every flow that `is_doomed` picks by its guest-side entry; tells how many.
///
/// # Errors
/// What the kernel answers.
pub fn flush(tables: &Tables, is_doomed: impl Fn(&FlowKey, &Session) -> bool) -> Result<usize> {
    let mut doomed = Vec::new();
    for batch in tables.flows() {
        let guests = batch?.into_iter().filter(|(key, _)| key.side == Side::Guest as u8);
        doomed.extend(guests.filter(|(key, session)| is_doomed(key, session)).map(|(key, _)| key));
    }
    let verdicts = tables.reap(Mode::Remove, &doomed)?;
    Ok(verdicts.into_iter().filter(|verdict| *verdict == Verdict::Removed).count())
}

/// Ports with something of the operator's behind their hook: an ingress filter that is not vmnat's own, or rules of
/// nftables.
fn obstructed(instance: &Instance, state: &State, facts: &Facts) -> HashMap<u32, String> {
    let own = link::own_programs(instance);
    let bridges = state.bridges.iter().filter_map(|bridge| facts.link(&bridge.name));
    let bridges = bridges.chain(plan::uplinks(state, facts).into_iter().filter(|uplink| uplink.is_bridge));
    let rules = facts::port_rules();
    let rules = rules.inspect_err(|error| warn!("the rules of nftables cannot be listed: {error}"));
    let rules = rules.unwrap_or_default();
    let mut obstructed = HashMap::new();
    for (bridge, port) in
        bridges.flat_map(|bridge| facts.ports_of(bridge.index).map(move |port| (bridge, port)))
    {
        // The port may be gone by now.
        let filters = facts::filters(port.index, Point::Ingress).unwrap_or_default();
        let foreign = filters.into_iter().find(|filter| {
            let is_own = own.iter().any(|(id, _)| Some(*id) == filter.program_id);
            !is_own
                && !state.filters.iter().any(|own| {
                    own.ifindex == port.index
                        && own.priority == filter.preference
                        && own.handle == filter.handle
                })
        });
        if let Some(filter) = foreign {
            obstructed.insert(port.index, format!("its ingress has a {} filter", filter.kind));
        } else if let Some(rules) = rules.concerning(&port.name, &bridge.name) {
            obstructed.insert(port.index, rules);
        }
    }
    obstructed
}

/// Fills the maps; true when flows must look at their way again.
fn settle_maps(
    tables: &Tables,
    state: &State,
    plan: &Plan,
    facts: &Facts,
    done: &mut Reconciled,
) -> Result<bool> {
    let uplinks = tables.uplink.entries()?;
    let networks = tables.network.entries()?;
    let mut moved = false;
    let mut note = |lines: Vec<String>| {
        moved |= !lines.is_empty();
        done.changes.extend(lines);
    };
    note(settle(&tables.uplink, &plan.uplink, |index, value| {
        format!("uplink {} with address {}", facts.name_of(*index), value.address)
    })?);
    note(settle(&tables.gateway, &plan.gateway, |index, router| {
        let name = facts.name_of(*index);
        if router.is_unspecified() {
            format!("answers by uplink {name}")
        } else {
            format!("answers by uplink {name} through {router}")
        }
    })?);
    let lists = access::settle(tables, plan)?;
    let has_lists = !lists.is_empty() || state.unfinished;
    note(lists);
    note(settle(&tables.bridge_port, &plan.bridge_port, |index, value| {
        let name = facts.name_of(*index);
        if *index == value.bridge {
            format!("bridge {name}")
        } else {
            format!("port {name} of {}", facts.name_of(value.bridge))
        }
    })?);
    note(settle(&tables.network, &plan.network, |key, value| {
        let (bridge, filtering) = (facts.name_of(value.bridge), Filtering::of_flags(value.flags).name());
        format!("network {}/{} behind {bridge}, {filtering} filtering", key.address, key.prefix)
    })?);
    let untranslated: Vec<_> = plan.untranslated.iter().map(|key| (*key, 1)).collect();
    note(settle(&tables.untranslated, &untranslated, |key, _| {
        format!("no translation towards {}/{}", key.address, key.prefix)
    })?);
    done.changes.extend(settle(&tables.service, &plan.service, |key, _| {
        let (bridge, protocol) = (facts.name_of(key.bridge), services::protocol_name(key.protocol));
        format!("service {}/{protocol} at {} for guests of {bridge}", key.port, key.address)
    })?);
    done.forwards.extend(forwards::settle(tables, plan)?);
    if has_lists {
        let ended = access::end_forbidden(tables, plan)?;
        if ended > 0 {
            done.changes.push(format!("ended {ended} flows that the access lists forbid"));
        }
    }
    let flushed = flush_orphans(tables, &uplinks, &networks, state, plan, facts)?;
    if flushed > 0 {
        done.changes.push(format!("removed {flushed} flows of what is gone"));
    }
    Ok(moved)
}

/// Makes a map hold exactly these entries; a line for each that came or went.
fn settle<K, V>(
    table: &Table<K, V>,
    wanted: &[(K, V)],
    label: impl Fn(&K, &V) -> String,
) -> Result<Vec<String>>
where
    K: Pod + Eq + Hash + Debug,
    V: Pod + PartialEq,
{
    let wanted: HashMap<K, V> = wanted.iter().copied().collect();
    let present: HashMap<K, V> = table.entries()?.into_iter().collect();
    let mut lines = Vec::new();
    for (key, value) in &present {
        if !wanted.contains_key(key) {
            table.remove(key).with_context(|| format!("remove {}", label(key, value)))?;
            lines.push(format!("removed {}", label(key, value)));
        }
    }
    for (key, value) in &wanted {
        let before = present.get(key);
        if before != Some(value) {
            table.set(key, value).with_context(|| format!("write {}", label(key, value)))?;
            let verb = if before.is_some() { "changed" } else { "added" };
            lines.push(format!("{verb} {}", label(key, value)));
        }
    }
    lines.sort_unstable();
    Ok(lines)
}

/// Removes the flows whose external address, uplink or network has gone. Those of a bridge that is deleted or down stay: it may
/// be about to come back, as when libvirt restarts a network, and where the host knew nothing of them, it would reset what
/// the world still sends. So do those of an uplink that is deleted, until it is there again: with another address they go.
fn flush_orphans(
    tables: &Tables,
    uplinks: &[(u32, Uplink)],
    networks: &[(NetworkKey, Network)],
    state: &State,
    plan: &Plan,
    facts: &Facts,
) -> Result<usize> {
    let is_awaited = plan::lacks_uplink(state, facts);
    let has_address = |address| plan.uplink.iter().any(|(_, uplink)| uplink.address == address);
    let kept = |index: u32, address| {
        let is_gone = facts.link_at(index).is_none();
        // Made again, an interface has another number; its flows find their way by the address.
        let is_there = plan.uplink.iter().any(|(kept, uplink)| *kept == index && uplink.address == address);
        is_there || (is_gone && (is_awaited || has_address(address)))
    };
    // What turns round on the host leaves by no uplink; the external address is an uplink's or a port forward's.
    let external = |address: Address| {
        let forwarded = plan.forward.iter().map(|forward| forward.external().1.address);
        plan.uplink.iter().map(|(_, uplink)| uplink.address).chain(forwarded).any(|found| found == address)
    };
    let is_new = |index: &u32| !uplinks.iter().any(|(known, _)| known == index);
    let lost_uplink = uplinks.iter().any(|(index, uplink)| !kept(*index, uplink.address))
        || plan.uplink.iter().any(|(index, _)| is_new(index));
    let planned = |key: &NetworkKey| plan.network.iter().any(|(kept, _)| kept == key);
    let waits = |network: &Network| facts.link_at(network.bridge).is_none_or(|bridge| !bridge.up);
    let (waiting, gone): (Vec<_>, Vec<_>) =
        networks.iter().filter(|(key, _)| !planned(key)).partition(|(_, network)| waits(network));
    if !lost_uplink && gone.is_empty() {
        return Ok(0);
    }
    let networks = plan.network.iter().chain(waiting);
    let guests: Vec<Ipv4Net> = networks.filter_map(|(key, _)| subnet(*key)).collect();
    flush(tables, |key, session| {
        let has_network = guests.iter().any(|network| network.contains(&Ipv4Addr::from(key.source)));
        let has_exit = if session.address == key.source {
            // Across networks: its peer's must be there, too.
            guests.iter().any(|network| network.contains(&Ipv4Addr::from(key.destination)))
        } else if session.has(Flags::HAIRPIN) {
            external(session.address)
        } else if session.has(Flags::FORWARDED) {
            // A forward stands at all addresses of an uplink.
            let index = session.out_if;
            let is_there = plan.uplink.iter().any(|(kept, _)| *kept == index);
            (external(session.address) && is_there) || (!is_there && kept(index, session.address))
        } else {
            kept(session.out_if, session.address)
        };
        !has_network || !has_exit
    })
}

fn subnet(key: NetworkKey) -> Option<Ipv4Net> {
    Ipv4Net::new(key.address.into(), u8::try_from(key.prefix).ok()?).ok()
}
