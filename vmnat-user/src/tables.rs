//! The pinned maps of an instance, and the two programs that user space runs itself.

mod access;
mod forwards;
mod table;

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use bytemuck::Zeroable as _;
use vmnat_common::{
    Address, Endpoint, Outcome,
    access::{AccessKey, AccessList, AccessRange},
    bridge::BridgePort,
    flow::FlowKey,
    forward::{Active, Forward, ForwardCount, SourceKey},
    host::{HostPeer, HostPeerKey},
    lease::Lease,
    mapping::{Mapping, MappingKey, PortOwner},
    network::{Network, NetworkKey},
    port_range::{OWNERS, owner_index},
    quota::Guest,
    reap::{self, Mode, Verdict},
    service::{Service, ServiceKey},
    session::Session,
    settings::Settings,
    station::{Station, StationKey},
    uplink::Uplink,
};

pub(crate) use self::table::not_a_map;
pub use self::table::{Table, unless_full};
use crate::{
    dataplane::{heritage, map, program},
    error::Error,
    flow_table::{Batches, FlowTable},
    paths::Instance,
    rawbpf,
};

/// Number of counters.
pub const OUTCOMES: usize = Outcome::COUNT as usize;

/// Every pinned map of a running instance.
#[derive(Debug)]
pub struct Tables {
    /// Flows, two entries a conversation.
    pub flow: FlowTable,
    /// Mappings, two entries each.
    pub mapping: Table<MappingKey, Mapping>,
    /// Networks.
    pub network: Table<NetworkKey, Network>,
    /// Destinations that guests reach without translation.
    pub untranslated: Table<NetworkKey, u32>,
    access: Table<AccessKey, AccessList>,
    access_range: Table<u32, AccessRange>,
    /// Bridges and their ports, by interface index.
    pub bridge_port: Table<u32, BridgePort>,
    /// Uplinks, by interface index.
    pub uplink: Table<u32, Uplink>,
    /// Routers behind uplinks, by interface index.
    pub gateway: Table<u32, Address>,
    /// Sources that may use a port forward.
    pub forward_source: Table<SourceKey, u32>,
    /// What went through each port forward, by its number.
    pub forward_count: Table<u32, ForwardCount>,
    /// Where sockets of the host had wanted to go.
    pub host_peer: Table<HostPeerKey, HostPeer>,
    /// What guests have taken of what all share.
    pub guest: Table<Address, Guest>,
    /// Leases.
    pub lease: Table<Address, Lease>,
    /// Stations of the bridges.
    pub station: Table<StationKey, Station>,
    /// Services of the gateways that guests may use.
    pub service: Table<ServiceKey, Service>,
    /// Words of port bits.
    pub port_pool: Table<u32, u64>,
    /// Who had each port last.
    pub port_owner: Table<u32, PortOwner>,
    forward: Table<u32, Forward>,
    forward_active: Table<u32, Active>,
    forward_port: Table<u32, u64>,
    settings: Table<u32, Settings>,
    outcomes: Table<u32, u64>,
    reaper: OwnedFd,
    clock: OwnedFd,
}

/// What the kernel's clocks say at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// `jiffies64`.
    pub jiffies: u64,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub monotonic_ns: u64,
}

impl Clock {
    /// The low 32 bits of the jiffies, as flows and leases store them.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the low bits are what is asked for")]
    pub const fn stamp(&self) -> u32 {
        self.jiffies as u32
    }
}

impl Tables {
    /// Opens the maps and the programs of an instance.
    ///
    /// # Errors
    /// [`Error::NotRunning`] when nothing is pinned, [`Error::HiddenPins`] when something should be, [`Error::NotPermitted`] without the privilege, and
    /// [`Error::UnknownLayout`] when another version pinned it.
    pub fn open(instance: &Instance) -> Result<Self> {
        match std::fs::metadata(instance.map(map::SETTINGS)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let what = format!("reading the maps of instance \"{instance}\"");
                return Err(Error::NotPermitted { what }.into());
            }
            Err(_) if let Some(error) = heritage::unknown(instance) => return Err(error.into()),
            Err(_) if instance.state().exists() => {
                let option = instance.option();
                return Err(Error::HiddenPins { instance: instance.to_string(), option }.into());
            }
            Err(_) => {
                let option = instance.option();
                return Err(Error::NotRunning { instance: instance.to_string(), option }.into());
            }
        }
        let program = |name| {
            let pin = instance.program(name);
            rawbpf::object_get(&pin).with_context(|| format!("open the program {}", pin.display()))
        };
        Ok(Self {
            flow: FlowTable::open(instance)?,
            mapping: Table::open(instance, map::MAPPING)?,
            network: Table::open(instance, map::NETWORK)?,
            untranslated: Table::open(instance, map::UNTRANSLATED)?,
            access: Table::open(instance, map::ACCESS)?,
            access_range: Table::open(instance, map::ACCESS_RANGE)?,
            bridge_port: Table::open(instance, map::BRIDGE_PORT)?,
            uplink: Table::open(instance, map::UPLINK)?,
            gateway: Table::open(instance, map::GATEWAY)?,
            forward: Table::open(instance, map::FORWARD)?,
            forward_active: Table::open(instance, map::FORWARD_ACTIVE)?,
            forward_port: Table::open(instance, map::FORWARD_PORT)?,
            forward_source: Table::open(instance, map::FORWARD_SOURCE)?,
            forward_count: Table::open(instance, map::FORWARD_COUNT)?,
            host_peer: Table::open(instance, map::HOST_PEER)?,
            guest: Table::open(instance, map::GUEST)?,
            lease: Table::open(instance, map::LEASE)?,
            station: Table::open(instance, map::STATION)?,
            service: Table::open(instance, map::SERVICE)?,
            port_pool: Table::open(instance, map::PORT_POOL)?,
            port_owner: Table::open(instance, map::PORT_OWNER)?,
            settings: Table::open(instance, map::SETTINGS)?,
            outcomes: Table::open(instance, map::OUTCOMES)?,
            reaper: program(program::REAPER)?,
            clock: program(program::CLOCK)?,
        })
    }

    /// Notes who has a mapping, as the programs do.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn note_owner(&self, protocol: u8, internal: Endpoint, external: Endpoint) -> io::Result<()> {
        let index = owner_index(protocol, external.port.number());
        if index >= OWNERS {
            return Ok(());
        }
        self.port_owner.set(&index, &PortOwner::new(external.address, internal))
    }

    /// False where other maps are pinned by now than those that are open here.
    ///
    /// # Errors
    /// When the kernel does not tell of an open map.
    pub fn is_pinned(&self, instance: &Instance) -> io::Result<bool> {
        let own = rawbpf::map_shape(self.flow.fd().as_fd())?;
        let Ok(pinned) = rawbpf::object_get(&instance.map(map::FLOW)) else { return Ok(true) };
        Ok(rawbpf::map_shape(pinned.as_fd())?.id == own.id)
    }

    /// True where somebody has emptied the flow table: its sentinel was there, and is not.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn is_emptied(&self) -> io::Result<bool> {
        Ok(self.is_watched()? && self.flow.get(&FlowKey::SENTINEL)?.is_none())
    }

    /// True where the flow table has had its sentinel.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn is_watched(&self) -> io::Result<bool> {
        Ok(self.port_owner.get(&0)? == Some(PortOwner::WATCHED))
    }

    /// Puts the flow table's sentinel in its place.
    ///
    /// # Errors
    /// What the kernel answers; `E2BIG` where the table is full.
    pub fn set_sentinel(&self) -> io::Result<()> {
        let sentinel = Session::zeroed();
        self.flow.insert(&FlowKey::SENTINEL, &sentinel)?;
        self.port_owner.set(&0, &PortOwner::WATCHED)
    }

    /// Every entry of `FLOW`, both sides, a batch at a time.
    #[must_use]
    pub const fn flows(&self) -> Batches<'_> {
        self.flow.batches()
    }

    /// The settings.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn settings(&self) -> Result<Settings> {
        self.settings.get(&0)?.context("the settings have no entry")
    }

    /// Replaces the settings.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn set_settings(&self, settings: &Settings) -> Result<()> {
        self.settings.set(&0, settings).context("write the settings")
    }

    /// Makes every flow check its way once more.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn bump_generation(&self) -> Result<()> {
        let mut settings = self.settings()?;
        settings.generation = settings.generation.wrapping_add(1);
        self.set_settings(&settings)
    }

    /// The counters by [`Outcome::index`], summed over the CPUs.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn outcomes(&self) -> Result<[u64; OUTCOMES]> {
        let cpus = aya::util::nr_cpus().map_err(|(what, error)| anyhow::anyhow!("{what}: {error}"))?;
        let mut sums = [0_u64; OUTCOMES];
        for (sum, index) in sums.iter_mut().zip(0_u32..) {
            let values = rawbpf::lookup_per_cpu(self.outcomes.fd.as_fd(), index, cpus)?;
            *sum = values.into_iter().fold(0, u64::wrapping_add);
        }
        Ok(sums)
    }

    /// Lets the reaper look at each key and, as `mode` says, remove it; a verdict for each key.
    ///
    /// # Errors
    /// What `BPF_PROG_TEST_RUN` answers.
    pub fn reap(&self, mode: Mode, keys: &[FlowKey]) -> Result<Vec<Verdict>> {
        let mut verdicts = Vec::with_capacity(keys.len());
        for letter in keys.chunks(reap::BATCH) {
            let mut frame = letter_of(mode, letter);
            rawbpf::test_run(self.reaper.as_fd(), &mut frame).context("run the reaper")?;
            verdicts.extend(verdicts_of(&frame).take(letter.len()));
        }
        Ok(verdicts)
    }

    /// Lets the reaper remove the mappings among `keys` (internal ends) that hold no flow and have rested.
    ///
    /// # Errors
    /// What `BPF_PROG_TEST_RUN` answers.
    pub fn reap_mappings(&self, keys: &[MappingKey]) -> Result<Vec<Verdict>> {
        let slots: Vec<FlowKey> = keys.iter().map(slot_of).collect();
        self.reap(Mode::Mapping, &slots)
    }

    /// Asks the kernel's clocks.
    ///
    /// # Errors
    /// What `BPF_PROG_TEST_RUN` answers.
    pub fn clock(&self) -> Result<Clock> {
        let mut frame = [0_u8; 64];
        rawbpf::test_run(self.clock.as_fd(), &mut frame).context("run the clock")?;
        let word = |at: usize| {
            frame.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u64::from_ne_bytes(*bytes))
        };
        Ok(Clock { jiffies: word(16), monotonic_ns: word(24) })
    }

    /// Finds how many jiffies a second has (`CONFIG_HZ`), in about a tenth of a second.
    ///
    /// # Errors
    /// When the clock stands still.
    pub fn find_hertz(&self) -> Result<u32> {
        let start = self.next_tick()?;
        std::thread::sleep(Duration::from_millis(100));
        let end = self.next_tick()?;
        let ticks = end.jiffies.saturating_sub(start.jiffies);
        let nanoseconds = end.monotonic_ns.saturating_sub(start.monotonic_ns);
        Ok(nearest_hertz(ticks, nanoseconds))
    }

    fn next_tick(&self) -> Result<Clock> {
        let first = self.clock()?;
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(1) {
            let clock = self.clock()?;
            if clock.jiffies != first.jiffies {
                return Ok(clock);
            }
        }
        bail!("the kernel's jiffies did not move for a second")
    }
}

/// The `CONFIG_HZ` that comes nearest to so many ticks in so many nanoseconds.
fn nearest_hertz(ticks: u64, nanoseconds: u64) -> u32 {
    const OFFERED: [u32; 6] = [100, 250, 300, 500, 1000, 1024];
    let measured = ticks.saturating_mul(1_000_000_000).checked_div(nanoseconds).unwrap_or_default();
    OFFERED.into_iter().min_by_key(|hertz| u64::from(*hertz).abs_diff(measured)).unwrap_or(250)
}

fn letter_of(mode: Mode, keys: &[FlowKey]) -> Vec<u8> {
    let mut frame = vec![0_u8; reap::HEADER];
    if let Some(byte) = frame.get_mut(reap::MODE_OFFSET) {
        *byte = mode as u8;
    }
    if let Some(byte) = frame.get_mut(reap::COUNT_OFFSET) {
        *byte = u8::try_from(keys.len()).unwrap_or(u8::MAX);
    }
    frame.extend_from_slice(bytemuck::cast_slice(keys));
    // The program reads slots of a full letter, whatever the count.
    let full = reap::BATCH.saturating_mul(size_of::<FlowKey>()).saturating_add(reap::HEADER);
    frame.resize(full, 0);
    frame
}

/// The answers in a letter; a key that the reaper did not look at is kept.
fn verdicts_of(frame: &[u8]) -> impl Iterator<Item = Verdict> + '_ {
    let slots = frame.get(reap::HEADER..).unwrap_or_default().chunks_exact(size_of::<FlowKey>());
    slots.map(|slot| match bytemuck::pod_read_unaligned::<FlowKey>(slot).reserved {
        1 => Verdict::Removed,
        3 => Verdict::Absent,
        _ => Verdict::Kept,
    })
}

/// A mapping's key in the first eight bytes of a slot.
fn slot_of(key: &MappingKey) -> FlowKey {
    let mut slot = [0_u8; size_of::<FlowKey>()];
    let bytes = bytemuck::bytes_of(key);
    for (to, from) in slot.iter_mut().zip(bytes) {
        *to = *from;
    }
    bytemuck::pod_read_unaligned(&slot)
}

#[cfg(test)]
mod tests {
    use vmnat_common::{Port, Protocol};

    use super::*;

    #[test]
    fn letter_carries_mode_count_and_keys() {
        let key = FlowKey::guest(
            Protocol::Udp,
            Endpoint::default(),
            Endpoint::new(Address::new([1, 2, 3, 4]), Port::new(53)),
        );
        let frame = letter_of(Mode::Remove, &[key, key]);
        assert_eq!((frame[reap::MODE_OFFSET], frame[reap::COUNT_OFFSET]), (1, 2));
        assert_eq!(&frame[reap::HEADER..reap::HEADER + 16], bytemuck::bytes_of(&key));
        assert!(verdicts_of(&frame).take(2).all(|verdict| verdict == Verdict::Kept));
    }

    #[test]
    fn hertz_is_found_from_a_rough_measurement() {
        for hertz in [100_u64, 250, 300, 1000] {
            let ticks = hertz / 10;
            assert_eq!(u64::from(nearest_hertz(ticks, 100_400_000)), hertz);
        }
    }
}
