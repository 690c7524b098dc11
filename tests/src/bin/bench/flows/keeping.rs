//! What keeping flows takes: memory, a listing, and their end when they expire.

use std::{
    fs,
    os::fd::AsRawFd as _,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use vmnat_tests::lab::vmnat;
use vmnat_user::{dataplane::map, flows, paths::Instance, rawbpf::object_get};

use super::crowd::{Crowd, SHARED_PORTS, conntrack_limit};
use crate::{
    forwarding::Forwarding,
    goal::{Bound, Goal},
    report::{table, thousands},
    statistics::Series,
};

/// Most bytes of kernel memory that a flow may take, mappings apart.
const MOST_BYTES: f64 = 320.0;

/// What was measured.
#[derive(Debug)]
pub struct Kept {
    flows: u32,
    bytes: f64,
    mapping_bytes: f64,
    masquerade_bytes: f64,
    masquerade_flows: u32,
    /// What `vmnat` was asked, the seconds that it took, and the mebibytes of its process.
    listings: Vec<(&'static str, Series, f64)>,
    expiry: Series,
}

/// Measures with a rig that is full to the brim, which it leaves empty.
pub fn measure(crowd: &Crowd, flows: u32, rounds: usize) -> Result<Kept> {
    let tables = crowd.tables.as_ref().context("not vmnat")?;
    let instance: Instance = crowd.rig.instance.parse()?;
    let per_flow =
        |name: &str| -> Result<f64> { Ok(bytes_of(&instance, name)? as f64 / f64::from(flows + 1)) };
    let (masquerade_flows, masquerade_bytes) = masquerade_bytes(flows)?;
    let mut kept = Kept {
        flows,
        bytes: per_flow(map::FLOW)? + per_flow(map::FLOW_GROUP)? + per_flow(map::FLOW_CARRY)?,
        mapping_bytes: per_flow(map::MAPPING)?,
        masquerade_bytes,
        masquerade_flows,
        listings: Vec::new(),
        expiry: Series::default(),
    };
    for (what, arguments) in [
        ("flows --count", &["flows", "--count"][..]),
        ("flows", &["flows"]),
        ("flows --json", &["flows", "--json"]),
    ] {
        println!("flows: `vmnat {what}` of {}", thousands(flows));
        let (mut seconds, mut most) = (Series::default(), 0.0_f64);
        for _ in 0..rounds {
            let (took, mebibytes) = run(crowd, arguments)?;
            seconds.0.push(took);
            most = most.max(mebibytes);
        }
        kept.listings.push((what, seconds, most));
    }
    let settings = tables.settings()?;
    for round in 0..rounds {
        println!("flows: expiry of {}, round {} of {rounds}", thousands(flows), round + 1);
        if round > 0 {
            crowd.fill(SHARED_PORTS, 0, flows)?;
        }
        let mut short = settings;
        (short.timeouts.udp_unreplied, short.timeouts.udp_replied) = (1, 1);
        tables.set_settings(&short)?;
        // A jiffy and more for the last of them.
        std::thread::sleep(std::time::Duration::from_millis(50));
        let begun = Instant::now();
        let expired = flows::expire(tables, tables.clock()?.stamp())?;
        kept.expiry.0.push(begun.elapsed().as_secs_f64());
        tables.set_settings(&settings)?;
        ensure!(expired.removed >= u64::from(flows), "of {flows} flows {} expired", expired.removed);
        ensure!(crowd.flows()? == 0, "flows are left");
    }
    Ok(kept)
}

/// Bytes of kernel memory of a map, by the kernel's own account (`memlock` of its fdinfo, `htab_map_mem_usage`).
fn bytes_of(instance: &Instance, name: &str) -> Result<u64> {
    let map = object_get(&instance.map(name))?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    let line =
        info.lines().find_map(|line| line.strip_prefix("memlock:")).context("fdinfo has no memlock")?;
    line.trim().parse().context("memlock")
}

/// What connection tracking takes for a flow: the growth of the kernel's slabs, and the flow's share of the hash table.
fn masquerade_bytes(wanted: u32) -> Result<(u32, f64)> {
    let limit = u32::try_from(conntrack_limit()?).unwrap_or(u32::MAX);
    let flows = wanted.min(limit.saturating_sub(1_000));
    let crowd = Crowd::new(Forwarding::Masquerade, 0)?;
    let before = unreclaimable_slabs()?;
    crowd.fill(SHARED_PORTS, 0, flows)?;
    let after = unreclaimable_slabs()?;
    let buckets = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_buckets")?;
    let table = buckets.trim().parse::<f64>()? * size_of::<usize>() as f64;
    Ok((flows, (after - before + table) / f64::from(flows.max(1))))
}

/// Bytes of the kernel's slabs that it cannot take back (`SUnreclaim`).
fn unreclaimable_slabs() -> Result<f64> {
    let info = fs::read_to_string("/proc/meminfo")?;
    let line = info.lines().find_map(|line| line.strip_prefix("SUnreclaim:")).context("no SUnreclaim")?;
    let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes * 1024.0)
}

/// Seconds of a call of `vmnat` whose output goes nowhere, and the most mebibytes that its process took.
fn run(crowd: &Crowd, arguments: &[&str]) -> Result<(f64, f64)> {
    let mut command = Command::new(vmnat::program()?);
    command.args(["--instance", &crowd.rig.instance]).args(arguments).stdout(Stdio::null());
    let begun = Instant::now();
    let child = crowd.rig.host.run(|| command.spawn())?;
    let (mut status, pid) = (0, i32::try_from(child.id())?);
    // SAFETY: all-zero is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live variables, and the child is ours.
    let waited = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
    let seconds = begun.elapsed().as_secs_f64();
    ensure!(waited == pid && status == 0, "`vmnat {}` failed", arguments.join(" "));
    Ok((seconds, usage.ru_maxrss as f64 / 1024.0))
}

/// What came of it, for people, for programs, and as goals.
pub fn describe(kept: &Kept) -> ([String; 2], Value, Vec<Goal>) {
    let Kept { flows, bytes, mapping_bytes, masquerade_bytes, masquerade_flows, listings, expiry } = kept;
    let row = |what: String, bytes: f64| [what, format!("{bytes:.0}")];
    let memory = [
        row(format!("vmnat, {} flows", thousands(*flows)), *bytes),
        row("vmnat, its mappings besides".to_owned(), *mapping_bytes),
        row(format!("nft masquerade, {} flows", thousands(*masquerade_flows)), *masquerade_bytes),
    ];
    let mut calls: Vec<_> = listings
        .iter()
        .map(|(what, seconds, mebibytes)| {
            [format!("`vmnat {what}`"), seconds.written(2), format!("{mebibytes:.0}")]
        })
        .collect();
    calls.push(["all expire at once: the agent's own pass".to_owned(), expiry.written(2), String::new()]);
    let goal = Goal {
        what: format!("bytes of kernel memory a flow, mappings apart, of {MOST_BYTES}"),
        ratio: bytes / MOST_BYTES,
        bound: Bound::AtMost(1.0),
    };
    let heading = format!("{} flows", thousands(*flows));
    let data = json!({
        "flows": flows, "bytes_a_flow": bytes, "mapping_bytes_a_flow": mapping_bytes,
        "masquerade": { "flows": masquerade_flows, "bytes_a_flow": masquerade_bytes },
        "listings": listings.iter().map(|(what, seconds, mebibytes)| {
            json!({ "call": what, "seconds": seconds.json(), "peak_mebibytes": mebibytes })
        }).collect::<Vec<_>>(),
        "expiry_seconds": expiry.json(),
    });
    let tables = [
        table(&["kernel memory", "bytes a flow"], &memory),
        table(&[&heading[..], "seconds", "peak MiB of the process"], &calls),
    ];
    (tables, data, vec![goal])
}
