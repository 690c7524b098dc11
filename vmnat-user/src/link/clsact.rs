//! Hooks as filters in a clsact queueing discipline (before Linux 6.6, or where tcx is not wanted).

use std::{collections::HashSet, mem, os::fd::AsFd as _};

use anyhow::{Context as _, Result};
use aya::programs::{
    Link as _, SchedClassifier,
    tc::{
        NlOptions, SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions, TcHandle, qdisc_add_clsact,
    },
};
use futures::TryStreamExt as _;
use netlink_packet_route::tc::TcHandle as QdiscHandle;
use rtnetlink::Handle;

use super::{Hook, Point, Synced, admit};
use crate::{
    dataplane::program,
    facts,
    paths::Instance,
    rawbpf,
    state::{FilterRecord, State},
};

pub(super) async fn sync(
    instance: &Instance,
    handle: &Handle,
    state: &mut State,
    wanted: &[Hook],
) -> Result<Synced> {
    let mut synced = Synced::default();
    forget_what_is_gone(handle, state).await;
    let places = wanted.iter().map(|hook| (hook.interface.clone(), hook.ifindex, hook.point));
    adopt(instance, state, places.collect());
    for hook in wanted {
        match settle(instance, state, hook).with_context(|| format!("attach {hook}")) {
            Ok(change) => synced.changes.extend(change),
            Err(error) => {
                synced.failures.push(error);
                synced.missing.push(hook.clone());
            }
        }
    }
    let is_wanted = |record: &FilterRecord| {
        wanted.iter().any(|hook| hook.ifindex == record.ifindex && hook.point == record.point)
    };
    let (kept, unwanted) = mem::take(&mut state.filters).into_iter().partition(is_wanted);
    state.filters = kept;
    remove(unwanted, state, &mut synced);
    remove_qdiscs(handle, state, &mut synced).await;
    Ok(synced)
}

pub(super) async fn detach_all(instance: &Instance, handle: &Handle, state: &mut State) -> Synced {
    let mut synced = Synced::default();
    forget_what_is_gone(handle, state).await;
    let interfaces = nix::net::if_::if_nameindex().into_iter().flat_map(|all| {
        all.iter().map(|one| (one.name().to_string_lossy().into_owned(), one.index())).collect::<Vec<_>>()
    });
    let places = interfaces.flat_map(|(name, index)| Point::ALL.map(|point| (name.clone(), index, point)));
    adopt(instance, state, places.collect());
    let mut filters = mem::take(&mut state.filters);
    filters.reverse();
    remove(filters, state, &mut synced);
    remove_qdiscs(handle, state, &mut synced).await;
    synced
}

/// Puts on record the queueing disciplines that [`settle`] will add.
pub(super) fn foresee(state: &mut State, wanted: &[Hook]) {
    for hook in wanted {
        // An `ingress` one of somebody else's is in its place, and serves ports and bridges.
        let is_free = || {
            let others = [facts::has_clsact(hook.ifindex), facts::has_plain_ingress(hook.ifindex)];
            others.into_iter().all(|has| has.is_ok_and(|has| !has))
        };
        if !state.qdiscs.contains_key(&hook.ifindex) && is_free() {
            state.qdiscs.insert(hook.ifindex, hook.interface.clone());
        }
    }
}

/// The kernel's numbers of this instance's programs, and their names.
#[must_use]
pub fn own_programs(instance: &Instance) -> Vec<(u32, &'static str)> {
    let id = |name: &'static str| {
        let fd = rawbpf::object_get(&instance.program(name)).ok()?;
        Some((rawbpf::program_id(fd.as_fd()).ok()?, name))
    };
    program::ALL.into_iter().filter_map(id).collect()
}

/// Puts on record the filters of this instance's programs that are on none, as a command leaves them that is killed
/// between a filter and its record.
fn adopt(instance: &Instance, state: &mut State, places: Vec<(String, u32, Point)>) {
    let own = own_programs(instance);
    for (interface, ifindex, point) in places {
        // The interface may have neither hook nor discipline.
        for filter in facts::filters(ifindex, point).unwrap_or_default() {
            let is_known = state.filters.iter().any(|record| {
                let place = (record.ifindex, record.point, record.priority, record.handle);
                place == (ifindex, point, filter.preference, filter.handle)
            });
            let found = own.iter().find(|(id, _)| Some(*id) == filter.program_id);
            if let (false, Some((program_id, name))) = (is_known, found) {
                state.filters.push(FilterRecord {
                    interface: interface.clone(),
                    ifindex,
                    point,
                    priority: filter.preference,
                    handle: filter.handle,
                    program: (*name).to_owned(),
                    program_id: *program_id,
                });
            }
        }
    }
}

/// Makes one hook what it should be; tells what was changed.
fn settle(instance: &Instance, state: &mut State, hook: &Hook) -> Result<Option<String>> {
    let pin = instance.program(hook.program);
    let program_id = rawbpf::program_id(rawbpf::object_get(&pin)?.as_fd())?;
    let same = |record: &&mut FilterRecord| record.ifindex == hook.ifindex && record.point == hook.point;
    if let Some(record) = state.filters.iter_mut().find(same) {
        record.interface.clone_from(&hook.interface);
        if record.program_id == program_id {
            return Ok(None);
        }
        let mut program = SchedClassifier::from_pin(&pin)?;
        let link = known(record)?;
        let id = program.attach_to_link(link)?;
        mem::forget(program.take_link(id)?);
        record.program_id = program_id;
        return Ok(Some(format!("replaced {hook}")));
    }
    admit(instance, state, std::slice::from_ref(hook))?;
    match qdisc_add_clsact(&hook.interface) {
        Ok(()) => drop(state.qdiscs.insert(hook.ifindex, hook.interface.clone())),
        // Another's, or an earlier hook's: if it is not there, the attachment says so.
        Err(error) => tracing::debug!("clsact of {}: {error}", hook.interface),
    }
    let mut program = SchedClassifier::from_pin(&pin)?;
    let id = attach_ahead(&mut program, hook)?;
    let link = program.take_link(id)?;
    state.filters.push(FilterRecord {
        interface: hook.interface.clone(),
        ifindex: hook.ifindex,
        point: hook.point,
        priority: link.priority()?,
        handle: link.handle()?.into(),
        program: hook.program.to_owned(),
        program_id,
    });
    // Dropping the link would detach the filter, which shall outlive this process.
    mem::forget(link);
    Ok(Some(format!("attached {hook}")))
}

/// Attaches with the best preference that is free. A preference belongs to one kind of filter, so one that holds another
/// kind is refused; 0 lets the kernel choose, behind every other.
fn attach_ahead(program: &mut SchedClassifier, hook: &Hook) -> Result<SchedClassifierLinkId> {
    let mut attach = |priority| {
        let options = TcAttachOptions::Netlink(NlOptions { priority, ..NlOptions::default() });
        program.attach_with_options(&hook.interface, hook.point.attach_type(), options)
    };
    for priority in 1..=8 {
        if let Ok(id) = attach(priority) {
            return Ok(id);
        }
    }
    Ok(attach(0)?)
}

fn known(record: &FilterRecord) -> Result<SchedClassifierLink> {
    let handle = TcHandle::from(record.handle);
    let point = record.point.attach_type();
    Ok(SchedClassifierLink::attached(&record.interface, point, record.priority, handle, None)?)
}

fn remove(records: Vec<FilterRecord>, state: &mut State, synced: &mut Synced) {
    for record in records {
        let what = format!("{} of {}", record.point.name(), record.interface);
        match known(&record).and_then(|link| Ok(link.detach()?)) {
            Ok(()) => synced.changes.push(format!("detached {what}")),
            Err(error) => {
                synced.failures.push(error.context(format!("detach {what}")));
                state.filters.push(record);
            }
        }
    }
}

/// Drops the records of interfaces and filters that do not exist any more.
async fn forget_what_is_gone(handle: &Handle, state: &mut State) {
    let interfaces: HashSet<u32> = state.filters.iter().map(|record| record.ifindex).collect();
    let mut live = HashSet::new();
    for ifindex in interfaces {
        for point in Point::ALL {
            let filters = filters_at(handle, ifindex, point).await;
            live.extend(filters.into_iter().map(|(priority, handle)| (ifindex, point, priority, handle)));
        }
    }
    state
        .filters
        .retain(|record| live.contains(&(record.ifindex, record.point, record.priority, record.handle)));
}

/// Preference and handle of each filter at a hook; none where the interface or the hook does not exist.
async fn filters_at(handle: &Handle, ifindex: u32, point: Point) -> Vec<(u16, u32)> {
    let Ok(index) = i32::try_from(ifindex) else { return Vec::new() };
    let mut filters = handle.traffic_filter(index);
    let request = match point {
        Point::Ingress => filters.get().ingress(),
        Point::Egress => filters.get().egress(),
    };
    let mut found = Vec::new();
    let mut answers = std::pin::pin!(request.execute());
    while let Ok(Some(message)) = answers.try_next().await {
        let handle = (u32::from(message.header.handle.major) << 16) | u32::from(message.header.handle.minor);
        let priority = u16::try_from(message.header.info >> 16).unwrap_or_default();
        if handle != 0 {
            found.push((priority, handle));
        }
    }
    found
}

/// Removes the queueing disciplines that vmnat added and nobody uses.
async fn remove_qdiscs(handle: &Handle, state: &mut State, synced: &mut Synced) {
    for (ifindex, name) in mem::take(&mut state.qdiscs) {
        if state.filters.iter().any(|record| record.ifindex == ifindex) {
            state.qdiscs.insert(ifindex, name);
            continue;
        }
        let mut others = false;
        for point in Point::ALL {
            others |= !filters_at(handle, ifindex, point).await.is_empty();
        }
        let Ok(index) = i32::try_from(ifindex) else { continue };
        if others {
            tracing::warn!("the clsact queueing discipline of {name} stays: others have put filters there");
            continue;
        }
        match delete_clsact(handle, index).await {
            Ok(()) => synced.changes.push(format!("removed the clsact queueing discipline of {name}")),
            Err(error) if is_gone(&error) => {}
            Err(error) => synced.failures.push(
                anyhow::Error::new(error).context(format!("remove the clsact queueing discipline of {name}")),
            ),
        }
    }
}

async fn delete_clsact(handle: &Handle, index: i32) -> Result<(), rtnetlink::Error> {
    let mut request = handle.qdisc().del(index);
    let header = &mut request.message_mut().header;
    // TC_H_CLSACT:0 under the parent TC_H_CLSACT.
    header.handle = QdiscHandle { major: 0xffff, minor: 0 };
    header.parent = QdiscHandle { major: 0xffff, minor: 0xfff1 };
    request.execute().await
}

/// True when interface or discipline do not exist any more.
fn is_gone(error: &rtnetlink::Error) -> bool {
    let rtnetlink::Error::NetlinkError(message) = error else { return false };
    let code = message.raw_code().unsigned_abs();
    [libc::ENODEV, libc::ENOENT, libc::EINVAL].iter().any(|gone| gone.unsigned_abs() == code)
}
