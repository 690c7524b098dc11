//! A15: what the versions before have pinned, each in its layout: `up` takes the flows over, and nobody notices.

use std::{fs, os::fd::AsFd as _, path::Path};

use anyhow::{Context as _, Result, ensure};
use aya::maps::MapData;
use bytemuck::{Pod, Zeroable};
use vmnat_common::{
    Address, Mac, Port,
    flow::FlowKey,
    flow_table::{GROUP, groups_for, lines_for},
    session::{Session, Traffic as Counts},
};
use vmnat_tests::lab::{Lab, traffic::Traffic, vmnat::Hook};
use vmnat_user::{flow_table::FlowTable, paths::Instance, rawbpf};

use super::PATIENCE;

on_both_hooks!(flows_of_the_first_layout_live_on, flows_of_the_second_layout_live_on);

const PINS: &str = "/sys/fs/bpf/vmnat/default";
const FLOWS: u32 = 4_096;
const HASH: u32 = 1;
const ARRAY: u32 = 2;
const MMAPABLE: u32 = 1 << 10;

/// What every flow has had, beside what it really had: more than an entry counts today.
const MORE: u64 = 5 << 32;

/// A session of schema 1 and 2.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Whole {
    address: Address,
    port: Port,
    tcp_seen: u8,
    flags: u8,
    out_if: u32,
    in_if: u32,
    next_hop: Address,
    destination_mac: Mac,
    source_mac: Mac,
    diffs: [u16; 2],
    mtu: u16,
    epoch: u16,
    last_seen: u32,
    tag: u32,
    packets: u64,
    bytes: u64,
}

impl Whole {
    fn of(session: &Session, had: Counts) -> Self {
        Self {
            address: session.address,
            port: session.port,
            tcp_seen: session.tcp_seen,
            flags: session.flags,
            out_if: session.out_if,
            in_if: session.in_if,
            next_hop: session.next_hop,
            destination_mac: session.destination_mac,
            source_mac: session.source_mac,
            diffs: [0x1234; 2],
            mtu: session.mtu,
            epoch: session.epoch,
            last_seen: session.last_seen,
            tag: 0x5678,
            packets: had.packets,
            bytes: had.bytes + MORE,
        }
    }
}

type Flows = Vec<(FlowKey, Whole)>;

/// Flows were in a hash.
fn flows_of_the_first_layout_live_on(hook: Hook) -> Result<()> {
    live_on(hook, 1, |flows, maps| {
        let hash = create("FLOW", HASH, 16, 64, 2 * FLOWS, 0)?;
        for (key, session) in flows {
            rawbpf::update(hash.fd().as_fd(), key, session, rawbpf::NOEXIST)?;
        }
        hash.pin(maps.join("FLOW")).context("pin the hash")
    })
}

/// Flows were in a table whose entries had 80 bytes.
fn flows_of_the_second_layout_live_on(hook: Hook) -> Result<()> {
    live_on(hook, 2, |flows, maps| {
        let groups = groups_for(2 * FLOWS);
        let slots = create("FLOW", ARRAY, 4, 80, groups * GROUP, MMAPABLE)?;
        let lines = create("FLOW_GROUP", ARRAY, 4, 64, lines_for(groups), MMAPABLE)?;
        let open = |map: &MapData| -> Result<_> {
            let fd = map.fd().as_fd().try_clone_to_owned()?;
            let shape = rawbpf::map_shape(fd.as_fd())?;
            Ok((fd, shape))
        };
        let table = FlowTable::over(open(&slots)?, &open(&lines)?, None)?;
        table.seed()?;
        for (key, session) in flows {
            ensure!(table.insert_bytes(key, bytemuck::bytes_of(session))?, "{key:?} is there twice");
        }
        slots.pin(maps.join("FLOW"))?;
        lines.pin(maps.join("FLOW_GROUP")).context("pin the groups")
    })
}

fn create(name: &str, kind: u32, key: u32, value: u32, entries: u32, flags: u32) -> Result<MapData> {
    MapData::create(aya_obj::Map::new_from_params(kind, key, value, entries, flags), name, None)
        .with_context(|| format!("create {name}"))
}

/// 1. traffic, and the agent is gone; 2. the pins become those of another schema, with the flows as it had them; 3. `up`: streams, ports
///    and datagrams live on, and counters, too.
fn live_on(hook: Hook, schema: u32, pin: impl FnOnce(&Flows, &Path) -> Result<()>) -> Result<()> {
    let mut lab = Lab::new()?;
    let flows = FLOWS.to_string();
    lab.up_with(hook, &["--flows", &flows])?;
    let traffic = Traffic::start(&lab)?;
    lab.kill_agent()?;
    let table = FlowTable::open(&Instance::default())?;
    let own = Path::new(PINS).join(format!("v{}", vmnat_common::SCHEMA_VERSION));
    let former = Path::new(PINS).join(format!("v{schema}"));
    fs::rename(&own, &former)?;
    let maps = former.join("maps");
    for map in ["FLOW", "FLOW_GROUP", "FLOW_CARRY"] {
        fs::remove_file(maps.join(map))?;
    }
    let mut entries: Flows = Vec::new();
    for (key, session) in table.entries()? {
        entries.push((key, Whole::of(&session, table.traffic(&key, &session)?)));
    }
    pin(&entries, &maps)?;
    let printed = lab.vmnat_ok(&["up", "--flows", &flows])?;
    ensure!(own.exists() && !former.exists(), "the pins are not taken over: {printed}");
    let table = FlowTable::open(&Instance::default())?;
    let mut kept = 0;
    for (key, before) in &entries {
        let Some(session) = table.get(key)? else { continue };
        let now = table.traffic(key, &session)?;
        ensure!(now.bytes >= before.bytes && now.bytes < before.bytes + MORE / 2, "{key:?}: {now:?}");
        ensure!(now.packets >= before.packets && now.packets < 1 << 32, "{key:?}: {now:?}");
        kept += 1;
    }
    // Some may have ended meanwhile.
    ensure!(entries.len() > 20 && kept >= entries.len() * 9 / 10, "{kept} of {} flows", entries.len());
    traffic.moves(PATIENCE)?;
    let mut report = traffic.finish()?;
    println!("{hook:?}, from layout {schema}, {kept} of {} flows: {report}", entries.len());
    // A connection that opens between the copy and `up` is in maps that nobody can find: no earlier version would hide them.
    ensure!(report.fresh.failed.len() <= 1, "new connections failed: {:?}", report.fresh.failed);
    report.fresh.failed.clear();
    report.assert_unnoticed(1)?;
    lab.assert_invariants()
}
