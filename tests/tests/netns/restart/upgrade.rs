//! A15: another program over the maps of the one that runs, under verified traffic: later and earlier, with the same layout,
//! with another number of entries, and with another layout of the flows themselves.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use vmnat_common::{flow::FlowKey, session::Session};
use vmnat_tests::lab::{Lab, SERVER_ECHO, client, traffic::Traffic, vmnat, vmnat::Hook};
use vmnat_user::{
    change,
    dataplane::{
        self, LoadOptions, OBJECT,
        heritage::{self, Edition, Heir, Step},
        map::Kind,
    },
    facts, link,
    paths::Instance,
    plan::{self, Circumstances},
    rawbpf::Entry,
    state,
};

use super::{PATIENCE, census::map_ids};

on_both_hooks!(a_later_program_and_an_earlier_one_take_over_unnoticed, flows_of_a_changed_layout_live_on,);

/// In the debug information of the kernel half, which nothing reads: with another letter the object is another one.
const MARK: &[u8] = b"clang LLVM (rustc";

const PINS: &str = "/sys/fs/bpf/vmnat/default";

/// A map as an object declares it: type, key, value, entries, flags.
type Declared = [u32; 5];

fn bytes_of(declared: Declared) -> Vec<u8> {
    declared.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// Writes other bytes of the same number; the former ones must be there just once.
fn replace(bytes: &mut [u8], from: &[u8], to: &[u8]) -> Result<()> {
    let windows = bytes.windows(from.len()).enumerate();
    let places: Vec<usize> = windows.filter(|(_, window)| *window == from).map(|(at, _)| at).collect();
    let [at] = places[..] else { bail!("{} places of {from:?}", places.len()) };
    bytes[at..at + to.len()].copy_from_slice(to);
    Ok(())
}

/// The kernel halves in a program; one that is built for debugging has two.
fn kernel_halves(program: &mut [u8]) -> Vec<&mut [u8]> {
    // The linker keeps the alignment of `include_bytes_aligned!`.
    const ALIGNMENT: usize = 8;
    let (mut halves, mut rest) = (Vec::new(), program);
    loop {
        let mut places = (0..rest.len().saturating_sub(OBJECT.len())).step_by(ALIGNMENT);
        let Some(at) = places.find(|at| rest[*at..].starts_with(OBJECT)) else { return halves };
        let (half, behind) = rest.split_at_mut(at).1.split_at_mut(OBJECT.len().next_multiple_of(ALIGNMENT));
        halves.push(half);
        rest = behind;
    }
}

/// Declares a map otherwise in a kernel half, wherever it lies in these bytes.
fn declare_otherwise(bytes: &mut [u8], (from, to): (Declared, Declared)) -> Result<()> {
    replace(bytes, &bytes_of(from), &bytes_of(to))
}

/// How the object declares a map.
fn declared(name: &str) -> Result<Declared> {
    let object = aya_obj::Object::parse(OBJECT)?;
    let map = object.maps.get(name).with_context(|| format!("no map {name}"))?;
    Ok([map.map_type(), map.key_size(), map.value_size(), map.max_entries(), map.map_flags()])
}

/// Another version of the program: another kernel half, some of whose maps hold another number of entries.
pub(super) fn another_program(path: &Path, sizes: &[(&str, u32)]) -> Result<PathBuf> {
    let mut bytes = fs::read(vmnat::program()?)?;
    let mark = [b"k", &MARK[1..]].concat();
    let halves = kernel_halves(&mut bytes);
    ensure!(
        !halves.is_empty(),
        "the program was not built together with the tests: it has another kernel half"
    );
    for half in halves {
        replace(half, MARK, &mark).context("the kernel half has no name of its compiler")?;
        for (name, entries) in sizes {
            let from = declared(name)?;
            let [kind, key, value, _, flags] = from;
            declare_otherwise(half, (from, [kind, key, value, *entries, flags]))?;
        }
    }
    fs::write(path, bytes)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(path.to_owned())
}

fn up_by(lab: &Lab, program: &Path) -> Result<String> {
    lab.host.exec(&[&program.to_string_lossy(), "up"])
}

fn agents_program(lab: &Lab) -> Result<PathBuf> {
    Ok(fs::read_link(format!("/proc/{}/exe", lab.agent()?))?)
}

fn schemas() -> Result<Vec<String>> {
    let entries = fs::read_dir(PINS)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    entries.collect()
}

/// 1. a later program whose tables of guests and leases have another size: flows and
///    mappings are the very same maps, those others are copied, and the agent is the new one; 2. back to the earlier program.
fn a_later_program_and_an_earlier_one_take_over_unnoticed(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let own = vmnat::program()?.canonicalize()?;
    let later = another_program(Path::new("/run/vmnat-later"), &[("GUEST", 8_192), ("LEASE", 32_768)])?;
    let traffic = Traffic::start(&lab)?;
    let pinned = schemas()?;
    let mut before = map_ids()?;
    for program in [&later, &own, &later] {
        let leases = lab.rows(&["leases"])?.len();
        let printed = up_by(&lab, program)?;
        ensure!(printed.contains("replaced the programs under their hooks"), "{printed}");
        ensure!(agents_program(&lab)? == *program, "another agent runs");
        ensure!(schemas()? == pinned, "former pins are left: {:?}", schemas()?);
        let now = map_ids()?;
        let same = |name: &str| before.get(name) == now.get(name);
        ensure!(same("FLOW") && same("MAPPING"), "flows or mappings were made anew");
        ensure!(!same("GUEST") && !same("LEASE"), "the maps of another size are the old ones");
        ensure!(lab.rows(&["leases"])?.len() >= leases, "leases have gone");
        before = now;
        traffic.moves(PATIENCE)?;
    }
    let report = traffic.finish()?;
    println!("{hook:?}, two upgrades and a downgrade: {report}");
    report.assert_unnoticed(3)?;
    lab.assert_invariants()
}

/// Eight bytes longer at its end.
#[expect(clippy::unnecessary_wraps, reason = "the type of `Heir::Entries`")]
fn lengthened(key: &[u8], value: &[u8]) -> Option<Entry> {
    Some((key.to_vec(), [value, &[0; 8]].concat()))
}

/// Eight bytes longer, before what its counters carry.
fn lengthened_flow(key: &[u8], value: &[u8]) -> Option<Entry> {
    let (session, carry) = value.split_at_checked(size_of::<Session>())?;
    Some((key.to_vec(), [session, &[0; 8], carry].concat()))
}

fn longer(declared: Declared) -> (Declared, Declared) {
    let [kind, key, value, entries, flags] = declared;
    (declared, [kind, key, value + 8, entries, flags])
}

/// A kernel half of the next schema, in which flows and mappings are longer, takes over: 1. every stream, port and datagram
/// lives on in the new maps, and new flows open; 2. this version's program refuses what it does not know, and all goes on;
/// 3. its `down` removes all.
fn flows_of_a_changed_layout_live_on(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up_with(hook, &["--flows", "4096"])?;
    let (flow, mapping) = (declared("FLOW")?, declared("MAPPING")?);
    let mut object = OBJECT.to_vec();
    declare_otherwise(&mut object, longer(flow))?;
    declare_otherwise(&mut object, longer(mapping))?;
    let schema = vmnat_common::SCHEMA_VERSION;
    let (key_size, value_size) = (u32::try_from(size_of::<FlowKey>())?, u32::try_from(size_of::<Session>())?);
    ensure!(flow[2] == key_size + value_size, "a flow is {} bytes", flow[2]);
    let changed = [
        ("FLOW", Heir::Entries { kind: Kind::MappedArray, key_size, value_size, rewrite: lengthened_flow }),
        (
            "MAPPING",
            Heir::Entries {
                kind: Kind::Hash,
                key_size: mapping[1],
                value_size: mapping[2],
                rewrite: lengthened,
            },
        ),
    ];
    let steps = [Step { from: schema, changed: &changed }];
    let next = Edition { object: &object, schema: schema + 1, steps: &steps };

    let traffic = Traffic::start(&lab)?;
    // As a command does first.
    lab.kill_agent()?;
    let before = map_ids()?;
    lab.host.run(|| take_over(&next))?;
    ensure!(schemas()? == [format!("v{}", schema + 1)], "{:?}", schemas()?);
    let now = map_ids()?;
    let same = |name: &str| before.get(name) == now.get(name);
    ensure!(!same("FLOW") && !same("MAPPING") && same("GUEST") && same("NETWORK"), "{before:?} and {now:?}");
    traffic.moves(PATIENCE)?;

    for arguments in [&["up"][..], &["status"], &["flows"], &["dnat", "add", "9000:192.168.122.10:80"]] {
        lab.refused_with(11, arguments)?;
        let error = lab.vmnat_refused(arguments)?;
        let said =
            format!("{PINS}/v{} has an unknown layout (its maps are of schema {}", schema + 1, schema + 1);
        ensure!(error.contains(&said) && error.contains("`vmnat down`"), "{error}");
    }
    traffic.moves(PATIENCE)?;
    ensure!(map_ids()? == now, "a refusal has changed maps");
    client::converse(lab.guest(2)?, SERVER_ECHO)?;
    let report = traffic.finish()?;
    println!("{hook:?}, a changed layout of flows: {report}");
    report.assert_unnoticed(1)?;
    lab.vmnat_ok(&["down"])?;
    ensure!(!Path::new(PINS).exists(), "pins are left");
    lab.up(hook)?;
    lab.assert_invariants()
}

/// What `up` does with a program of that edition, on a thread in the host's namespace.
fn take_over(edition: &Edition<'_>) -> Result<()> {
    let instance = Instance::default().of_schema(edition.schema);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let handle = change::connect()?;
        let lock = state::Lock::take(&instance)?;
        let mut state = state::load(&instance)?;
        let facts = facts::gather(&handle).await?;
        let options = LoadOptions { flows: state.flows, kernel_log: false };
        dataplane::load_edition(&instance, options, edition)?;
        let plan = plan::plan(&state, &facts, &Circumstances::default())?;
        let room: Vec<link::Hook> = room_hooks(&facts);
        let hooks = [plan.hooks, room].concat();
        let synced = link::sync(&instance, &handle, &mut state, &hooks).await?;
        ensure!(synced.failures.is_empty(), "{:?}", synced.failures);
        link::sync_host(&instance, true)?;
        ensure!(heritage::finish(&instance, edition)?, "there was nothing to take over");
        // The records of filters.
        lock.save(&state)
    })
}

/// The doors of the quiet room, which reconcile knows only with the maps of its own version.
fn room_hooks(facts: &facts::Facts) -> Vec<link::Hook> {
    let doors = [("vmnat-in", "room_inward"), ("vmnat-out", "room_outward")];
    let hook = |(name, program): (&str, &'static str)| {
        let door = facts.link(name)?;
        Some(link::Hook {
            interface: name.to_owned(),
            ifindex: door.index,
            point: link::Point::Ingress,
            program,
        })
    };
    doors.into_iter().filter_map(hook).collect()
}
