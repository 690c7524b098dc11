//! A15: what is pinned and has another layout is refused, whatever differs, and what runs stays and forwards.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use aya::maps::MapData;
use vmnat_common::SCHEMA_VERSION;
use vmnat_tests::lab::{Lab, traffic::Traffic, vmnat::Hook};
use vmnat_user::{paths::Instance, rawbpf};

use super::{PATIENCE, census::map_ids, upgrade::another_program};

on_both_hooks!(what_has_another_layout_is_refused);

const ASIDE: &str = "/sys/fs/bpf/aside";
const HASH: u32 = 1;
const LRU_HASH: u32 = 9;
const ARRAY: u32 = 2;
const NO_PREALLOC: u32 = 1;
const MMAPABLE: u32 = 1 << 10;

/// What is pinned under a map's name, and what is said of it.
struct Stranger {
    /// Under whose name.
    map: &'static str,
    /// Type, key, value, entries, flags.
    shape: [u32; 5],
    says: &'static str,
    /// Listings open it too, not only what loads.
    is_listed: bool,
}

fn strangers() -> [Stranger; 8] {
    let stranger = |map, shape, says, is_listed| Stranger { map, shape, says, is_listed };
    [
        stranger("FLOW", [LRU_HASH, 16, 64, 524_288, 0], "its type is 9 instead of 2", true),
        stranger("FLOW", [ARRAY, 4, 64, 524_288, 0], "its set of flags is 0 instead of 1024", true),
        stranger("FLOW_GROUP", [ARRAY, 4, 72, 1_024, MMAPABLE], "its value size is 72 instead of 64", true),
        stranger("FLOW_CARRY", [ARRAY, 4, 16, 1_024, 0], "its value size is 16 instead of 8", true),
        stranger("MAPPING", [HASH, 12, 16, 131_072, NO_PREALLOC], "its set of flags is 1 instead of 0", true),
        stranger("SETTINGS", [ARRAY, 4, 8, 1, 0], "its value size is 8 instead of", true),
        stranger("OUTCOMES", [ARRAY, 4, 8, 512, 0], "its type is 2 instead of 6", true),
        // Only the programs use it.
        stranger("FRAGMENT", [LRU_HASH, 16, 16, 16_384, 0], "instead of", false),
    ]
}

/// For each: 1. it takes the place of the map; 2. another version's `up`, this one's, and listings refuse it, each naming what
/// and what to do; 3. nothing has changed: same agent, same maps and programs, and guests notice nothing.
fn what_has_another_layout_is_refused(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let later = another_program(Path::new("/run/vmnat-later"), &[("LEASE", 32_768)])?;
    let later = later.to_string_lossy();
    let traffic = Traffic::start(&lab)?;
    let (agent, state, maps) = (lab.agent()?, fs::read("/run/vmnat/default/state.json")?, map_ids()?);
    let refuses = |lab: &Lab, command: &[&str], path: &str, says: &str| -> Result<()> {
        let output = lab.host.output(command, "")?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(11), "{command:?} ends with {}: {error}", output.status);
        ensure!(error.contains(path) && error.contains(says) && error.contains("`vmnat down`"), "{error}");
        ensure!(error.trim().lines().count() == 1, "more than a line: {error}");
        Ok(())
    };
    let own = vmnat_tests::lab::vmnat::program()?;
    let own = own.to_string_lossy();
    let own_pins = Instance::default().schema_pins();
    for Stranger { map, shape: [kind, key, value, entries, flags], says, is_listed } in strangers() {
        let pin = own_pins.join("maps").join(map).to_string_lossy().into_owned();
        fs::rename(&pin, ASIDE)?;
        let stranger = aya_obj::Map::new_from_params(kind, key, value, entries, flags);
        MapData::create(stranger, map, None)?.pin(&pin).with_context(|| pin.clone())?;
        refuses(&lab, &[&later, "up"], &pin, says)?;
        if is_listed {
            refuses(&lab, &[&own, "up"], &pin, says)?;
            refuses(&lab, &[&own, "flows"], &pin, says)?;
        }
        fs::rename(ASIDE, &pin)?;
    }
    // No map at all.
    let pin = own_pins.join("maps/FLOW").to_string_lossy().into_owned();
    fs::rename(&pin, ASIDE)?;
    let program = rawbpf::object_get(&own_pins.join("progs/guard"))?;
    rawbpf::object_pin(std::os::fd::AsFd::as_fd(&program), Path::new(&pin))?;
    refuses(&lab, &[&later, "up"], &pin, "its type")?;
    fs::rename(ASIDE, &pin)?;
    // Pins of versions that nobody knows.
    let (ours, later_schema) = (SCHEMA_VERSION, SCHEMA_VERSION + 1);
    let says = format!("schema {later_schema}, and this program's of schema {ours}");
    for (name, says) in [(&*format!("v{later_schema}"), &*says), ("v0", "schema 0"), ("x", "no schema's")] {
        let folder = format!("/sys/fs/bpf/vmnat/default/{name}");
        fs::create_dir(&folder)?;
        refuses(&lab, &[&later, "up"], &folder, says)?;
        fs::remove_dir(&folder)?;
    }
    // A map that is missing is told as such.
    fs::rename(&pin, ASIDE)?;
    let error = lab.vmnat_refused(&["flows"])?;
    ensure!(error.contains(&format!("there is no map {pin}")) && error.contains("`vmnat up`"), "{error}");
    fs::rename(ASIDE, &pin)?;

    ensure!(lab.agent()? == agent, "another agent runs");
    ensure!(fs::read("/run/vmnat/default/state.json")? == state, "the state has changed");
    ensure!(map_ids()? == maps, "a map was made anew");
    traffic.moves(PATIENCE)?;
    let report = traffic.finish()?;
    println!("{hook:?}, unknown layouts refused: {report}");
    report.assert_unnoticed(0)?;
    lab.assert_invariants()
}
