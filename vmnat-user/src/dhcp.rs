//! Addresses for guests whose host's own DHCP server is kept from them by INPUT rules, or is not there.
//!
//! A part of the agent: a server at each bridge (`server`) that stays silent while another one is heard. Its socket sees frames before
//! the firewall's INPUT, and sends past its OUTPUT. Without the agent nobody gets a lease or renews one; guests keep those they have.

mod book;
mod choice;
mod frame;
mod libvirt;
mod network;
mod ports;
mod question;
mod reply;
mod server;
mod socket;
mod spec;

use std::{
    collections::BTreeMap,
    fs,
    net::Ipv4Addr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

pub(crate) use self::book::Book;
pub use self::spec::{DhcpRange, DhcpWish};
#[cfg(any(test, fuzzing))]
pub(crate) use self::{
    frame::{Carried, read as read_frame},
    libvirt::read as read_libvirt,
    question::{Heard, read as read_message},
};
use self::{
    network::{Network, networks},
    server::{Mode, Server},
};
use crate::{facts::Facts, paths::Instance, state::State, whole_file::Staged};

/// What is said of the server at a bridge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DhcpRow {
    /// Name of the bridge.
    pub bridge: String,
    /// Addresses that are given.
    pub ranges: Vec<String>,
    /// `listening`, `serving`, `quiet`, or `paused` without the agent.
    pub mode: String,
    /// The other server that was heard.
    pub server: Option<Ipv4Addr>,
}

/// What the servers of all bridges share.
#[derive(Debug)]
struct Shared {
    book: Mutex<Book>,
    /// The book's file.
    leases: PathBuf,
    modes: Mutex<BTreeMap<String, (String, Option<Ipv4Addr>)>>,
    /// Where `status` finds the modes.
    told: PathBuf,
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells `status` what the server at a bridge does.
    fn report(&self, bridge: &str, mode: Mode) {
        let said = match mode {
            Mode::Listening => ("listening".to_owned(), None),
            Mode::Serving => ("serving".to_owned(), None),
            Mode::Quiet { server, .. } => ("quiet".to_owned(), server),
        };
        let mut modes = self.modes.lock().unwrap_or_else(PoisonError::into_inner);
        modes.insert(bridge.to_owned(), said);
        let staged = Staged::document(&self.told, &*modes).map_err(Into::into);
        if let Err(error) = staged.and_then(Staged::commit) {
            debug!("cannot write {}: {error:#}", self.told.display());
        }
    }
}

/// The servers of an instance.
#[derive(Debug, Default)]
pub struct Dhcp {
    shared: Option<Arc<Shared>>,
    servers: BTreeMap<String, Serving>,
}

/// A server; it ends with the value.
#[derive(Debug)]
struct Serving {
    network: Network,
    _task: JoinSet<()>,
}

impl Dhcp {
    /// Serves the networks that it should, and no other.
    pub fn settle(&mut self, instance: &Instance, state: &State, facts: &Facts) {
        let wanted = networks(state, facts);
        self.servers.retain(|_, serving| wanted.contains(&serving.network));
        for network in wanted {
            let name = network.bridge.clone();
            if self.servers.contains_key(&name) {
                continue;
            }
            let opened = self.shared(instance).and_then(|shared| Ok(Server::open(network.clone(), shared)?));
            match opened {
                Ok(server) => {
                    info!("DHCP for guests of {name} where no other server is heard");
                    let mut task = JoinSet::new();
                    task.spawn(server.run());
                    self.servers.insert(name, Serving { network, _task: task });
                }
                Err(error) => warn!("no DHCP for guests of {name}: {error:#}"),
            }
        }
    }

    fn shared(&mut self, instance: &Instance) -> anyhow::Result<Arc<Shared>> {
        if let Some(shared) = &self.shared {
            return Ok(Arc::clone(shared));
        }
        let leases = instance.dhcp_leases();
        let book = Mutex::new(Book::load(&leases)?);
        let shared = Arc::new(Shared { book, leases, modes: Mutex::default(), told: instance.dhcp() });
        self.shared = Some(Arc::clone(&shared));
        Ok(shared)
    }
}

/// What the servers do, for listings.
#[must_use]
pub fn rows(instance: &Instance, state: &State, facts: &Facts, agent_runs: bool) -> Vec<DhcpRow> {
    let text = fs::read_to_string(instance.dhcp()).unwrap_or_default();
    let told: BTreeMap<String, (String, Option<Ipv4Addr>)> = serde_json::from_str(&text).unwrap_or_default();
    let row = |network: Network| {
        let (mode, server) = match told.get(&network.bridge) {
            Some(told) if agent_runs => told.clone(),
            _ => ("paused".to_owned(), None),
        };
        let ranges = network.ranges.iter().map(ToString::to_string).collect();
        DhcpRow { bridge: network.bridge, ranges, mode, server }
    };
    networks(state, facts).into_iter().map(row).collect()
}

/// A line for each bridge.
#[must_use]
pub fn text(rows: &[DhcpRow]) -> String {
    let line = |row: &DhcpRow| {
        let DhcpRow { bridge, ranges, mode, server } = row;
        let does = match mode.as_str() {
            "serving" => "given by the agent, because no other server answers".to_owned(),
            "quiet" => match server {
                Some(server) => format!("left to {server}, which answers"),
                None => "left to another server, which answers".to_owned(),
            },
            "listening" => "given by the agent where no other server answers".to_owned(),
            _ => "not given while the agent does not run".to_owned(),
        };
        let ranges = if ranges.is_empty() { "static leases".to_owned() } else { ranges.join(", ") };
        format!("DHCP         {ranges} to guests of {bridge}: {does}\n")
    };
    rows.iter().map(line).collect()
}
