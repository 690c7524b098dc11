//! The kernel half, embedded: its names, its loading, its pins.
//!
//! Maps are created and pinned once and outlive every process. aya re-uses a pinned map without comparing its
//! layout, and a value of another size would overwrite memory, so each pin is compared with the object's own
//! declaration before aya sees it ([`heritage`]). Programs are pinned too: later commands attach them without loading
//! anything. A newer object replaces them under the running links (`link`), atomically.

pub mod heritage;
pub mod map;

use std::{
    fs::{self, DirBuilder},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::Path,
};

use anyhow::{Context as _, Result, anyhow};
use aya::{
    Ebpf, EbpfLoader,
    pin::PinError,
    programs::{CgroupSockAddr, ProgramError, SchedClassifier},
};
use nix::{
    mount::{MsFlags, mount, umount},
    sys::statfs::{FsType, statfs},
};

use vmnat_common::flow_table::{GROUP, groups_for, lines_for};

use self::heritage::{Edition, Heritage};
use crate::{
    error::Error,
    paths::{BPF_FS, Instance},
    rawbpf::MapShape,
};

/// The object that `build.rs` built.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/vmnat-dataplane"));

/// `BPF_FS_MAGIC` of `linux/magic.h`.
const BPF_FS_MAGIC: FsType = FsType(0xcafe_4a11);

/// The oldest kernel that is supported.
const OLDEST: (u32, u32) = (6, 1);

/// Names of the programs, as `vmnat-ebpf/src/main.rs` declares them.
pub mod program {
    use aya::programs::CgroupSockAddrAttachType;

    /// Ingress of a bridge's port.
    pub const OUTBOUND_PORT: &str = "outbound_port";
    /// Ingress of a bridge.
    pub const OUTBOUND_BRIDGE: &str = "outbound_bridge";
    /// Ingress of an uplink.
    pub const INBOUND: &str = "inbound";
    /// Ingress of an uplink without Ethernet header.
    pub const INBOUND_BARE: &str = "inbound_bare";
    /// Ingress of a port of an uplink that is a bridge.
    pub const INBOUND_PORT: &str = "inbound_port";
    /// Ingress of an uplink that is a bridge.
    pub const INBOUND_BRIDGE: &str = "inbound_bridge";
    /// Egress of an uplink.
    pub const GUARD: &str = "guard";
    /// Egress of an uplink without Ethernet header.
    pub const GUARD_BARE: &str = "guard_bare";
    /// Ingress of the inner way out of the quiet room: what the world sent.
    pub const ROOM_INWARD: &str = "room_inward";
    /// Ingress of the outer way out of the quiet room: what guests sent.
    pub const ROOM_OUTWARD: &str = "room_outward";
    /// Removes flows.
    pub const REAPER: &str = "reaper";
    /// Tells jiffies.
    pub const CLOCK: &str = "clock";

    /// All classifiers.
    pub const ALL: [&str; 12] = [
        OUTBOUND_PORT,
        OUTBOUND_BRIDGE,
        INBOUND,
        INBOUND_BARE,
        INBOUND_PORT,
        INBOUND_BRIDGE,
        GUARD,
        GUARD_BARE,
        ROOM_INWARD,
        ROOM_OUTWARD,
        REAPER,
        CLOCK,
    ];

    /// A program of the host's own sockets.
    #[derive(Clone, Copy, Debug)]
    pub struct HostProgram {
        /// Its name.
        pub name: &'static str,
        /// Which call of a socket it sees.
        pub attach_type: CgroupSockAddrAttachType,
        /// The word for that call.
        pub point: &'static str,
    }

    /// All programs of the host's own sockets. What restores an address stands before what changes it.
    pub const HOST: [HostProgram; 4] = [
        host("host_peer", "getpeername4", CgroupSockAddrAttachType::GetPeerName4),
        host("host_receive", "recvmsg4", CgroupSockAddrAttachType::UDPRecvMsg4),
        host("host_send", "sendmsg4", CgroupSockAddrAttachType::UDPSendMsg4),
        host("host_connect", "connect4", CgroupSockAddrAttachType::Connect4),
    ];

    const fn host(
        name: &'static str,
        point: &'static str,
        attach_type: CgroupSockAddrAttachType,
    ) -> HostProgram {
        HostProgram { name, attach_type, point }
    }
}

/// What a load may vary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Flows that the table holds.
    pub flows: u32,
    /// The programs log to the agent.
    pub kernel_log: bool,
}

/// A name for this very object, to tell whether another one is loaded.
#[must_use]
pub fn fingerprint() -> String {
    let mut hasher = DefaultHasher::new();
    OBJECT.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Refuses kernels that are too old to try.
///
/// # Errors
/// [`Error::KernelTooOld`].
pub fn check_kernel() -> Result<()> {
    let release = release();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < OLDEST {
        return Err(Error::KernelTooOld { release, why: "it is older than 6.1".into() }.into());
    }
    Ok(())
}

/// Mounts the BPF file system where nobody has; true when it did.
///
/// # Errors
/// [`Error::NoBpfFs`] when that is not possible.
pub fn ensure_bpffs() -> Result<bool> {
    let mounted = statfs(BPF_FS).is_ok_and(|info| info.filesystem_type() == BPF_FS_MAGIC);
    if mounted {
        return Ok(false);
    }
    mount(Some("bpf"), BPF_FS, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .map_err(|error| Error::NoBpfFs { why: error.desc().to_owned() })?;
    Ok(true)
}

/// Unmounts the BPF file system that [`ensure_bpffs`] mounted, unless somebody else uses it by now; true when it did.
#[must_use]
pub fn release_bpffs() -> bool {
    // The kernel itself puts `maps.debug` and `progs.debug` there.
    let is_kernels = |name: &std::ffi::OsStr| name.to_string_lossy().ends_with(".debug");
    let Ok(entries) = fs::read_dir(BPF_FS) else { return false };
    // The listing is consumed: one that is still open would itself keep the file system busy.
    let others = entries.filter(|entry| entry.as_ref().map_or(true, |entry| !is_kernels(&entry.file_name())));
    others.count() == 0 && umount(BPF_FS).is_ok()
}

/// True when every map and every program of the instance is pinned.
#[must_use]
pub fn is_pinned(instance: &Instance) -> bool {
    let maps = map::ALL.iter().all(|(name, _)| instance.map(name).exists());
    let programs = program::ALL.into_iter().chain(program::HOST.map(|host| host.name));
    maps && programs.into_iter().all(|name| instance.program(name).exists())
}

/// Compares what is pinned with what [`load`] would make of it; changes nothing.
///
/// # Errors
/// [`Error::UnknownLayout`] for a pinned map that differs, or pins of a version from which no way leads here.
pub fn check(instance: &Instance, options: LoadOptions) -> Result<()> {
    let edition = Edition::this();
    Heritage::survey(instance, &edition, &shapes(&edition, &sizes(options))?).map(drop)
}

/// Loads the embedded object, with the maps that are pinned already, and pins everything. What another version has pinned
/// stays until [`heritage::finish`].
///
/// # Errors
/// As [`check`]; [`Error::KernelTooOld`] when the verifier refuses a program, [`Error::NotPermitted`] without the
/// privilege.
pub fn load(instance: &Instance, options: LoadOptions) -> Result<()> {
    load_edition(instance, options, &Edition::this())
}

/// [`load`], of another kernel half than the embedded one; the instance is to be of its schema.
///
/// # Errors
/// As [`load`].
pub fn load_edition(instance: &Instance, options: LoadOptions, edition: &Edition<'_>) -> Result<()> {
    let sizes = sizes(options);
    let shapes = shapes(edition, &sizes)?;
    let mut heritage = Heritage::survey(instance, edition, &shapes)?;
    heritage.take_over(instance, edition, &shapes)?;
    let mut ebpf = create(instance, options, edition, &sizes)?;
    heritage::flow_table(&instance.maps())?
        .context("the flow table is not pinned")?
        .seed()
        .context("seed the flow table")?;
    heritage.copy(instance, edition, &map::ALL)?;
    for name in program::ALL {
        let classifier = classifier(&mut ebpf, name)?;
        classifier.load().map_err(|error| refused(name, &error))?;
        pin(&instance.program(name), |path| classifier.pin(path))?;
    }
    for host in program::HOST {
        let program = ebpf.program_mut(host.name);
        let program = program.with_context(|| format!("the object has no program {}", host.name))?;
        let program: &mut CgroupSockAddr = program.try_into()?;
        program.load().map_err(|error| refused(host.name, &error))?;
        pin(&instance.program(host.name), |path| program.pin(path))?;
    }
    Ok(())
}

/// Makes the directories of the pins, as far as they are missing.
///
/// # Errors
/// What the file system answers.
pub fn make_directories(instance: &Instance) -> Result<()> {
    for directory in [instance.maps(), instance.programs(), instance.links(), instance.host_links()] {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        made.with_context(|| format!("make {}", directory.display()))?;
    }
    Ok(())
}

/// Removes every pin of the instance, of this schema and any other; false when there was none.
///
/// # Errors
/// What the file system answers.
pub fn unpin(instance: &Instance) -> io::Result<bool> {
    match fs::remove_dir_all(instance.pins()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    }
    // Another instance may have its pins there.
    let _ = fs::remove_dir(Path::new(BPF_FS).join("vmnat"));
    Ok(true)
}

/// How many groups the flow table has, of two entries a flow.
fn flow_groups(options: LoadOptions) -> u32 {
    groups_for(options.flows.max(1).saturating_mul(2))
}

/// The sizes of maps that depend on the options.
fn sizes(options: LoadOptions) -> [(&'static str, u32); 4] {
    let groups = flow_groups(options);
    [
        (map::FLOW, groups.saturating_mul(GROUP)),
        (map::FLOW_GROUP, lines_for(groups)),
        (map::FLOW_CARRY, groups.saturating_mul(GROUP)),
        // A guest's endpoint talks to several remotes; with two entries each, a quarter is plenty.
        (map::MAPPING, options.flows.saturating_div(2).max(1024)),
    ]
}

fn create(
    instance: &Instance,
    options: LoadOptions,
    edition: &Edition<'_>,
    sizes: &[(&'static str, u32)],
) -> Result<Ebpf> {
    let level: u8 = if options.kernel_log { u8::MAX } else { 0 };
    let groups = flow_groups(options);
    let pins = map::ALL.map(|(name, _)| (name, instance.map(name)));
    let mut loader = EbpfLoader::new();
    loader.override_global(aya_log::LEVEL, &level, false);
    loader.override_global("FLOW_GROUPS", &groups, true);
    for (name, path) in &pins {
        loader.map_pin_path(name, path.as_path());
    }
    for (name, size) in sizes {
        loader.map_max_entries(name, *size);
    }
    loader.load(edition.object).map_err(|error| {
        if is_permission(&error) {
            return Error::NotPermitted { what: "creating BPF maps".into() }.into();
        }
        anyhow!(error).context("create the maps")
    })
}

/// What each map is to look like.
fn shapes(edition: &Edition<'_>, sizes: &[(&'static str, u32)]) -> Result<Vec<(&'static str, MapShape)>> {
    let object = aya_obj::Object::parse(edition.object).context("read the kernel half")?;
    let shape = |name: &'static str| {
        let declared = object.maps.get(name).with_context(|| format!("the object declares no map {name}"))?;
        let size = sizes.iter().find(|(sized, _)| *sized == name).map(|(_, size)| *size);
        let shape = MapShape {
            kind: declared.map_type(),
            key_size: declared.key_size(),
            value_size: declared.value_size(),
            max_entries: size.unwrap_or_else(|| declared.max_entries()),
            flags: declared.map_flags(),
            id: 0,
        };
        Ok((name, shape))
    };
    map::ALL.into_iter().map(|(name, _)| shape(name)).collect()
}

fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program = ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?;
    Ok(program.try_into()?)
}

/// Pins under a name of its own first, so that a pinned program is replaced in one step.
fn pin(path: &Path, pin_at: impl FnOnce(&Path) -> Result<(), PinError>) -> Result<()> {
    let next = path
        .with_extension("")
        .with_file_name(format!("{}-next", path.file_name().unwrap_or_default().to_string_lossy()));
    let _ = fs::remove_file(&next);
    pin_at(&next).with_context(|| format!("pin {}", next.display()))?;
    fs::rename(&next, path).with_context(|| format!("pin {}", path.display()))
}

/// What a refusal of the verifier means for the operator.
fn refused(name: &str, error: &ProgramError) -> anyhow::Error {
    let text = match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
            let tail = lines.get(lines.len().saturating_sub(6)..).unwrap_or_default();
            format!("{io_error}; the verifier's last words: {}", tail.join(" | "))
        }
        other => other.to_string(),
    };
    if is_permission(error) {
        return Error::NotPermitted { what: format!("loading the program {name} ({text})") }.into();
    }
    if let Some(error) = out_of_memory(error) {
        return anyhow::Error::new(error).context(format!("load the program {name}"));
    }
    Error::KernelTooOld { release: release(), why: format!("it refuses the program {name}: {text}") }.into()
}

/// True when the kernel said `EPERM`; the verifier says `EACCES`.
fn is_permission(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) == Some(libc::EPERM) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The kernel's answer where it lacks memory, which says nothing about the program.
fn out_of_memory(error: &ProgramError) -> Option<io::Error> {
    let ProgramError::LoadError { io_error, .. } = error else { return None };
    io_error.raw_os_error().filter(|number| *number == libc::ENOMEM).map(io::Error::from_raw_os_error)
}

/// The kernel's own name of its version (`uname -r`).
pub(crate) fn release() -> String {
    nix::sys::utsname::uname()
        .map_or_else(|_| "unknown".into(), |name| name.release().to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_has_every_map_and_program() {
        let object = aya_obj::Object::parse(OBJECT).unwrap();
        for (name, kind) in map::ALL {
            let declared = &object.maps[name];
            assert_eq!((declared.map_type(), declared.map_flags()), (kind.number(), kind.flags()), "{name}");
        }
        for name in program::ALL.into_iter().chain(program::HOST.map(|host| host.name)) {
            assert!(object.programs.contains_key(name), "{name}");
        }
    }
}
