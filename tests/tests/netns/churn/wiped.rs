//! Somebody empties the maps of flows and ports under load: nobody gets another's port, nothing leaks, and conversations go on.

use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use bytemuck::{Pod, Zeroable as _};
use vmnat_common::{SCHEMA_VERSION, flow_table::Line, mapping::MappingKey};
use vmnat_tests::lab::{
    Lab, SERVER_ECHO,
    client::{Asker, Conversation},
    traffic::Traffic,
    vmnat::{Hook, INSTANCE},
    wait_until,
};
use vmnat_user::{
    dataplane::map,
    flow_table::FlowTable,
    paths::Instance,
    rawbpf,
    tables::{Table, Tables},
};

use super::{PATIENCE, heals};

/// How the maps are emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    EntryByEntry,
    InBatches,
}

#[test]
fn maps_are_wiped_under_load_beside_the_agent() -> Result<()> {
    wiped(true)
}

#[test]
fn maps_are_wiped_under_load_without_an_agent() -> Result<()> {
    wiped(false)
}

/// 1. both guests want port 20000, and guest 1 has it; streams, datagrams and pings go on; 2. flows and mappings are wiped ten times;
///    3. guest 2 asks first, and has the port that it had; guest 1 has its own; no stream died, and `status` has told of it.
fn wiped(with_agent: bool) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up_with(Hook::Tcx, &["--reap-interval", "300ms"])?;
    let (first, second) = (Asker::new(lab.guest(1)?, 20_000)?, Asker::new(lab.guest(2)?, 20_000)?);
    let before = (first.ask(SERVER_ECHO)?, second.ask(SERVER_ECHO)?);
    ensure!(before.0.port() == 20_000 && before.1.port() != 20_000, "{before:?}");
    let traffic = Traffic::start(&lab)?;
    if !with_agent {
        lab.kill_agent()?;
    }
    let tables = Tables::open(&Instance::default())?;
    for round in 0..10 {
        let way = if round % 2 == 0 { Way::EntryByEntry } else { Way::InBatches };
        let gone = wipe_flows(way)? + wipe::<MappingKey>("MAPPING", way)?;
        ensure!(gone > 10, "there were but {gone} entries");
        ensure!(tables.is_emptied()?, "the table does not count as emptied");
        let (second, first) = (second.ask(SERVER_ECHO)?, first.ask(SERVER_ECHO)?);
        ensure!((first, second) == before, "before {before:?}, after {first} and {second}");
        thread::sleep(Duration::from_millis(200));
    }
    traffic.moves(Duration::from_secs(5)).ok();
    let report = traffic.finish()?;
    println!("wiped ten times, agent {}: {report}", if with_agent { "alive" } else { "dead" });
    report.assert_same_ports()?;
    // What the world has opened may be reset: a guest's own segment does not tell by which port forward it was called.
    let is_excused = |death: &&String| death.starts_with("port forward") && death.contains("reset");
    let dead: Vec<_> = report.dead.iter().filter(|death| !is_excused(death)).collect();
    ensure!(dead.is_empty(), "streams died: {dead:?}");
    if with_agent {
        wait_until("a warning of it", PATIENCE, || {
            Ok(lab.vmnat_ok(&["status"])?.contains("another program has emptied the flow table"))
        })?;
        let log = lab.vmnat_ok(&["logs"])?;
        ensure!(log.contains("emptied the flow table"), "the log does not tell: {log}");
    }
    lab.assert_sound_but_for_invalid_packets()
}

/// 1. guest 1 has port 20001, and the tables are wiped; 2. guest 2 wants the port, and does not get it before it has rested, counted
///    from its first wish; 3. then it does. The sentinel is back by then, and `status` is quiet.
#[test]
fn a_port_of_wiped_maps_rests_before_another_guest_has_it() -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up_with(Hook::Tcx, &["--reap-interval", "300ms", "--timeout", "mapping_rest=4"])?;
    let seen = Asker::new(lab.guest(1)?, 20_001)?.ask(SERVER_ECHO)?;
    ensure!(seen.port() == 20_001, "seen as {seen}");
    wipe_flows(Way::InBatches)?;
    wipe::<MappingKey>("MAPPING", Way::InBatches)?;
    let wish = || Asker::new(lab.guest(2)?, 20_001)?.ask(SERVER_ECHO);
    ensure!(wish()?.port() != 20_001, "guest 2 has guest 1's port at once");
    // Its own mapping would keep it where it is.
    let rested = || -> Result<bool> {
        thread::sleep(Duration::from_millis(500));
        wipe_flows(Way::EntryByEntry)?;
        wipe::<MappingKey>("MAPPING", Way::EntryByEntry)?;
        Ok(wish()?.port() == 20_001)
    };
    let since = Instant::now();
    wait_until("the port has rested", PATIENCE, rested)?;
    ensure!(since.elapsed() > Duration::from_secs(2), "after {:?}", since.elapsed());
    let tables = Tables::open(&Instance::default())?;
    wait_until("the sentinel is back", PATIENCE, || Ok(!tables.is_emptied()?))?;
    lab.assert_invariants()
}

/// The pins of the maps go, as an `rm` would have it: 1. what runs goes on; 2. `up` makes new maps, puts the programs that use them under
/// the hooks, and an agent works with them; 3. ports are their owners' still.
#[test]
fn maps_are_replaced_under_load() -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up_with(Hook::Tcx, &["--reap-interval", "300ms"])?;
    let (first, second) = (Asker::new(lab.guest(1)?, 20_000)?, Asker::new(lab.guest(2)?, 20_000)?);
    let before = (first.ask(SERVER_ECHO)?, second.ask(SERVER_ECHO)?);
    let mut conversation = Conversation::open(lab.guest(1)?, SERVER_ECHO)?;
    let path = format!("/var/lib/vmnat/{INSTANCE}/mappings");
    wait_until("the mappings to be written", PATIENCE, || {
        Ok(fs::metadata(&path).is_ok_and(|file| file.len() >= 32 + 3 * 16))
    })?;
    fs::remove_dir_all(format!("/sys/fs/bpf/vmnat/{INSTANCE}/v{SCHEMA_VERSION}/maps"))?;
    conversation.exchange(10_000)?;
    let error = lab.vmnat_refused(&["status"])?;
    ensure!(error.contains("vmnat up"), "it does not say what to do: {error}");
    lab.vmnat_ok(&["up"])?;
    let (second, first) = (second.ask(SERVER_ECHO)?, first.ask(SERVER_ECHO)?);
    ensure!((first, second) == before, "before {before:?}, after {first} and {second}");
    conversation.exchange(10_000)?;
    // The agent lets flows of the new maps expire, and attaches ports with the new programs.
    let number = lab.add_guest()?;
    Conversation::open(lab.guest(number)?, SERVER_ECHO)?.exchange(10_000)?;
    let healed = heals(&lab)?;
    lab.vmnat_ok(&["up", "--timeout", "udp_replied=1", "--timeout", "udp_unreplied=1"])?;
    let is_empty = || Ok(lab.vmnat_ok(&["flows", "--count", "--protocol", "udp"])?.trim() == "0");
    wait_until("flows of the new maps expire", PATIENCE, is_empty)?;
    println!("maps replaced: whole again after {healed:?}");
    lab.assert_sound_but_for_invalid_packets()
}

fn open(map: &str) -> Result<OwnedFd> {
    Ok(rawbpf::object_get(&Instance::default().map(map))?)
}

/// Writes zeros over the groups of the flow table, which is how an array is emptied; in batches over its secret too. Returns how many
/// entries went.
fn wipe_flows(way: Way) -> Result<usize> {
    let instance = Instance::default();
    let gone = FlowTable::open(&instance)?.entries()?.len();
    let lines = Table::<u32, Line>::open(&instance, map::FLOW_GROUP)?;
    let used = lines.entries()?.into_iter().filter(|(_, line)| *line != Line::zeroed());
    let mut numbers: Vec<u32> = used.map(|(number, _)| number).collect();
    if way == Way::InBatches {
        lines.set_all(&numbers, &vec![Line::zeroed(); numbers.len()])?;
    } else {
        numbers.retain(|number| *number > 0);
        for number in &numbers {
            lines.set(number, &Line::zeroed())?;
        }
    }
    Ok(gone)
}

/// Empties a map of what is there at one moment; returns how many entries went.
fn wipe<K: Pod>(map: &str, way: Way) -> Result<usize> {
    let map = open(map)?;
    let mut keys: Vec<K> = Vec::new();
    while let Some(key) = next_key(&map, keys.last()).filter(|_| keys.len() < 100_000) {
        keys.push(key);
    }
    if way == Way::InBatches {
        return Ok(delete_batch(&map, &keys));
    }
    let mut gone = 0;
    for key in &keys {
        gone += usize::from(rawbpf::delete(map.as_fd(), key)?);
    }
    Ok(gone)
}

/// `BPF_MAP_GET_NEXT_KEY` and `BPF_MAP_DELETE_BATCH` of `linux/bpf.h`.
const GET_NEXT_KEY: libc::c_long = 4;
const DELETE_BATCH: libc::c_long = 27;

fn next_key<K: Pod>(map: &OwnedFd, after: Option<&K>) -> Option<K> {
    let mut next = K::zeroed();
    let fd = u64::from(map.as_raw_fd().cast_unsigned());
    let mut attribute =
        [fd, after.map_or(0, |key| (&raw const *key) as u64), (&raw mut next) as u64, 0, 0, 0, 0, 0];
    bpf(GET_NEXT_KEY, &mut attribute).then_some(next)
}

fn delete_batch<K: Pod>(map: &OwnedFd, keys: &[K]) -> usize {
    let fd = u64::from(map.as_raw_fd().cast_unsigned());
    let count = keys.len() as u64;
    // in_batch, out_batch, keys, values, count and map_fd, elem_flags, flags.
    let mut attribute = [0, 0, keys.as_ptr() as u64, 0, count | fd << 32, 0, 0, 0];
    bpf(DELETE_BATCH, &mut attribute);
    usize::try_from(attribute[4] & 0xffff_ffff).unwrap_or(0)
}

fn bpf(command: libc::c_long, attribute: &mut [u64; 8]) -> bool {
    // SAFETY: the attribute is live and as large as stated, and what it points to is as large as the map's keys.
    unsafe { libc::syscall(libc::SYS_bpf, command, attribute.as_mut_ptr(), size_of_val(attribute)) == 0 }
}
