//! What an instance is asked to be, and what it must put back: the file in `/run`, and the lock around it.
//!
//! Port forwards that outlive the instance are read and written with it, and kept in a file of their own.
//!
//! The kernel's maps and links are the running state; this is the wish, plus the records that `down` needs. It is
//! written whole to a temporary file, synced and renamed, so a reader never sees half of it.

pub mod kept;
mod lock;
mod records;
mod wish;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::Ipv4Addr,
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

pub use self::{
    lock::Lock,
    records::{FilterRecord, HookMode, SysctlRecord},
    wish::{Binding, Bridge, Filtering, GuestQuotas, PoolRange},
};
use crate::{
    access::Rule,
    config::FileLayer,
    error::Error,
    forwards::{
        Expiry, PortForward, Resolved,
        store::{self, Store},
    },
    paths::Instance,
    whole_file,
};

/// Version of the file's format.
const VERSION: u32 = 1;

/// Flows that the table holds unless `--flows` says otherwise.
pub const DEFAULT_FLOWS: u32 = 262_144;

/// Wish and records of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    version: u32,
    /// Fingerprint of the kernel half that is loaded.
    pub object: String,
    /// The programs log.
    pub kernel_log: bool,
    /// How programs are attached.
    pub hook: HookMode,
    /// Flows that the table holds.
    pub flows: u32,
    /// Timeouts that differ from the defaults, in seconds, by name.
    pub timeouts: BTreeMap<String, u32>,
    /// What each guest may take.
    #[serde(default)]
    pub quotas: GuestQuotas,
    /// The external ports from which guests get theirs.
    #[serde(default)]
    pub pool: PoolRange,
    /// Bridges.
    pub bridges: Vec<Bridge>,
    /// Uplinks by name; empty: the interface of the default route.
    pub uplinks: Vec<String>,
    /// The interface that was last followed as the default route's; it stays while there is none.
    #[serde(default)]
    pub followed: String,
    /// The addresses as which guests are seen, of uplinks where it is not the primary one.
    #[serde(default)]
    pub externals: BTreeMap<String, Ipv4Addr>,
    /// Port forwards. In this file those that end with the instance; the others are in [`store`].
    pub forwards: Vec<PortForward>,
    /// The number that the next port forward gets.
    pub next_forward: u32,
    /// When port forwards end by the kernel's clock, by number.
    #[serde(default)]
    pub expiries: BTreeMap<u32, Expiry>,
    /// Addresses of the guests that port forwards lead to by name or MAC, by number.
    #[serde(default)]
    pub resolved: BTreeMap<u32, Resolved>,
    /// Lease files to look at before all others.
    #[serde(default)]
    pub lease_files: Vec<PathBuf>,
    /// The file of the leases that the agent gives.
    #[serde(default)]
    pub dhcp_leases: PathBuf,
    /// Addresses that the operator has given to guests.
    #[serde(default)]
    pub bindings: Vec<Binding>,
    /// Destinations that guests reach without translation.
    #[serde(default)]
    pub untranslated: Vec<Ipv4Net>,
    /// What guests may reach, and who may call them.
    #[serde(default)]
    pub access: Vec<Rule>,
    /// What of all this files of the configuration say.
    #[serde(default)]
    pub file: FileLayer,
    /// Kernel settings to put back.
    pub sysctls: Vec<SysctlRecord>,
    /// The loopback's setting that services need, to put back.
    #[serde(default)]
    pub loopback: Option<crate::sysctl::Change>,
    /// Filters to remove.
    pub filters: Vec<FilterRecord>,
    /// Interfaces that got their clsact queueing discipline from vmnat, by index and name.
    pub qdiscs: BTreeMap<u32, String>,
    /// Where the agent logs: a path, or `journal:` and the identifier.
    pub log: String,
    /// Milliseconds between two looks for flows that have expired.
    pub reap_interval_ms: u64,
    /// What the last reconcile could not do, one sentence each.
    pub warnings: Vec<String>,
    /// True where the last reconcile was broken off: the next one makes up for what follows from maps that it had written.
    #[serde(default)]
    pub unfinished: bool,
    /// True where this `up` mounted the BPF file system.
    pub mounted_bpffs: bool,
}

impl State {
    /// The state of an instance that has nothing yet.
    #[must_use]
    pub fn new(hook: HookMode) -> Self {
        Self {
            version: VERSION,
            object: String::new(),
            kernel_log: false,
            hook,
            flows: DEFAULT_FLOWS,
            timeouts: BTreeMap::new(),
            quotas: GuestQuotas::default(),
            pool: PoolRange::default(),
            bridges: Vec::new(),
            uplinks: Vec::new(),
            followed: String::new(),
            externals: BTreeMap::new(),
            forwards: Vec::new(),
            next_forward: 1,
            expiries: BTreeMap::new(),
            resolved: BTreeMap::new(),
            lease_files: Vec::new(),
            dhcp_leases: PathBuf::new(),
            bindings: Vec::new(),
            untranslated: Vec::new(),
            access: Vec::new(),
            file: FileLayer::default(),
            sysctls: Vec::new(),
            loopback: None,
            filters: Vec::new(),
            qdiscs: BTreeMap::new(),
            log: String::new(),
            reap_interval_ms: 5_000,
            warnings: Vec::new(),
            unfinished: false,
            mounted_bpffs: false,
        }
    }

    /// The state of an instance that is not running: nothing but the port forwards that outlive it.
    ///
    /// # Errors
    /// As [`store::load`].
    pub fn stored(instance: &Instance, hook: HookMode) -> Result<Self> {
        Self::new(hook).with_stored_forwards(instance)
    }

    /// This state and the port forwards that outlive the instance.
    ///
    /// # Errors
    /// As [`store::load`].
    pub fn with_stored_forwards(mut self, instance: &Instance) -> Result<Self> {
        self.adopt(store::load(instance)?);
        Ok(self)
    }

    /// Takes in the port forwards that outlive the instance.
    fn adopt(&mut self, store: Option<Store>) {
        let Some(Store { next, forwards, .. }) = store else { return };
        let known: BTreeSet<u32> = forwards.iter().map(|forward| forward.id).collect();
        self.forwards.retain(|forward| !known.contains(&forward.id));
        self.forwards.extend(forwards);
        self.forwards.sort_unstable_by_key(|forward| forward.id);
        self.next_forward = self.next_forward.max(next);
    }

    /// Divides the port forwards: what the store holds, and the state that is written beside it.
    fn divide(&self) -> (Store, Self) {
        let mut running = self.clone();
        let (own, kept) = running.forwards.drain(..).partition(|forward| !forward.wish.is_kept());
        running.forwards = own;
        (Store::new(self.next_forward, kept), running)
    }
}

/// Reads the state of an instance.
///
/// # Errors
/// [`Error::NotRunning`] where there is none.
pub fn load(instance: &Instance) -> Result<State> {
    find(instance)?
        .ok_or_else(|| Error::NotRunning { instance: instance.to_string(), option: instance.option() }.into())
}

/// Reads the state of an instance and the port forwards that outlive it, if it is running.
///
/// # Errors
/// When a file cannot be read, or another version wrote it.
pub fn find(instance: &Instance) -> Result<Option<State>> {
    let Some(mut state) = find_running(instance)? else { return Ok(None) };
    state.adopt(store::load(instance)?);
    Ok(Some(state))
}

/// Reads the state without the port forwards that outlive the instance: what `down` needs.
///
/// # Errors
/// When the file cannot be read, or another version wrote it.
pub fn find_running(instance: &Instance) -> Result<Option<State>> {
    let path = instance.state();
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(Error::NotPermitted { what: format!("reading {}", path.display()) }.into());
        }
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    whole_file::parse(&text, VERSION).map(Some).map_err(|why| Error::UnknownLayout { path, why }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_survives_a_round_trip() {
        let mut state = State::new(HookMode::Tcx);
        state
            .bridges
            .push(Bridge { networks: vec!["10.0.0.0/24".parse().unwrap()], ..Bridge::new("virbr0") });
        let wish = crate::forwards::Wish::plain("8080:10.0.0.2:80".parse().unwrap());
        state.forwards.push(PortForward { id: 1, wish });
        state.qdiscs.insert(3, "eth0".into());
        state.timeouts.insert("udp_unreplied".into(), 2);
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state);
    }
}
