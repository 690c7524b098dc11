//! What the object may cost: instructions that the verifier walks, and memory of the maps.

use std::os::fd::{AsRawFd as _, OwnedFd};

use aya::{
    EbpfLoader,
    programs::{ProgramError, SchedClassifier},
};
use vmnat_user::{
    dataplane::{self, LoadOptions, OBJECT},
    paths::Instance,
    rawbpf::object_get,
};

use super::rig;

/// Instructions that the verifier may walk for each program. Kernels stop at a million; the budget is what was measured on
/// 6.18, and half as much again for other kernels.
const VERIFIED: [(&str, u32); 12] = [
    ("outbound_port", 180_000),
    ("outbound_bridge", 180_000),
    ("inbound", 60_000),
    ("inbound_bare", 62_000),
    ("inbound_port", 60_000),
    ("inbound_bridge", 60_000),
    ("guard", 40_000),
    ("guard_bare", 40_000),
    ("room_inward", 70_000),
    ("room_outward", 100_000),
    ("reaper", 30_000),
    ("clock", 60),
];

/// Bytes that all maps may take at their default sizes.
const MAP_BYTES: u64 = 112 << 20;

#[test]
fn programs_stay_within_their_budget_of_verified_instructions() -> Result<(), ProgramError> {
    let mut object = load();
    for (name, budget) in VERIFIED {
        let program: &mut SchedClassifier = object.program_mut(name).expect(name).try_into()?;
        program.load()?;
        let walked = program.info()?.verified_instruction_count().expect("kernels from 5.16 tell");
        println!("{name}: {walked} of {budget}");
        assert!(walked <= budget, "{name}: {walked} instructions, the budget is {budget}");
        assert!(
            walked > budget / 3,
            "{name}: {walked} instructions, the budget of {budget} has become too wide"
        );
    }
    Ok(())
}

#[test]
fn maps_stay_within_their_budget_of_memory() {
    rig::isolate();
    let instance = Instance::default();
    dataplane::load(&instance, LoadOptions { flows: 262_144, kernel_log: false })
        .expect("the object loads (as root)");
    let mut sum = 0;
    for (name, _) in dataplane::map::ALL {
        let bytes = memlock(&object_get(&instance.map(name)).unwrap());
        println!("{name}: {} KiB", bytes >> 10);
        sum += bytes;
    }
    assert!(sum <= MAP_BYTES, "{} MiB, the budget is {} MiB", sum >> 20, MAP_BYTES >> 20);
    assert!(sum > MAP_BYTES / 2, "{} MiB, the budget has become too wide", sum >> 20);
}

fn load() -> aya::Ebpf {
    EbpfLoader::new()
        .override_global("AYA_LOG_LEVEL", &0_u8, true)
        .load(OBJECT)
        .expect("the object loads (as root)")
}

/// What the kernel says that a map takes (`memlock` of its fdinfo).
fn memlock(map: &OwnedFd) -> u64 {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd())).unwrap();
    let line = info.lines().find_map(|line| line.strip_prefix("memlock:")).expect("fdinfo has memlock");
    line.trim().parse().unwrap()
}
