//! A rig with many flows: filled, counted, emptied.
//!
//! Every flow is opened by a live frame of its own, on the road that a guest's packets take; nothing is written into a table past
//! it. The agent is ended, so that nothing expires meanwhile: the dataplane does not need it.

use std::{
    fs, io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use vmnat_common::{
    flow::{FlowKey, Side},
    reap::Mode,
};
use vmnat_tests::lab::wait_until;
use vmnat_user::{
    agent,
    flows::{self, Filter},
    paths::Instance,
    tables::Tables,
};

use crate::{
    cpu,
    forwarding::{Direction, Forwarding},
    program::spread::Numbering,
    rig::Rig,
};

/// Bytes of a frame.
pub const FRAME: usize = 64;

/// 4,096 ports of the guest's, each towards as many remotes as it takes.
pub const SHARED_PORTS: Numbering =
    Numbering { first_port: 20_000, port_bits: 12, first_remote: [10, 64, 0, 0] };

/// A port of its own for each flow, all towards one remote.
pub const OWN_PORTS: Numbering = Numbering { first_port: 2_048, port_bits: 16, first_remote: [10, 64, 0, 0] };

/// Flows that [`OWN_PORTS`] can number: the ports below those that the host itself takes for its calls.
pub const MOST_OWN_PORTS: u32 = 30_000;

/// Flows that vmnat's table holds where nobody says otherwise; it has a quarter as many mappings.
const DEFAULT_CAPACITY: u32 = 262_144;

/// What a rig has room for beside its flows: that of the proof, the host's own, and vmnat's mark of a table that nobody has emptied.
pub const SPARE: u32 = 24;

/// Conversations that the host may have of its own accord.
const CHATTER: u64 = 8;

/// Longer than any run.
const LONG: &str = "36000";

const PATIENCE: Duration = Duration::from_mins(1);

/// A rig that can hold many flows.
#[derive(Debug)]
pub struct Crowd {
    /// The rig, closed by its sinks.
    pub rig: Rig,
    /// vmnat's maps.
    pub tables: Option<Tables>,
}

impl Crowd {
    /// Builds a rig for so many flows.
    pub fn new(forwarding: Forwarding, capacity: u32) -> Result<Self> {
        let mut rig = Rig::new(forwarding, false)?;
        let mut tables = None;
        if forwarding.is_vmnat() {
            // One guest has more flows, and opens them faster, than one guest may.
            let flows = capacity.max(DEFAULT_CAPACITY).to_string();
            rig.up(&["--flows", &flows, "--guest-flows", "0", "--guest-rate", "0"])?;
            rig.converse()?;
            let instance: Instance = rig.instance.parse()?;
            tables = Some(Tables::open(&instance)?);
            ensure!(agent::end(&instance)?, "no agent ran");
        } else {
            rig.start()?;
            rig.converse()?;
            if forwarding.is_tracked() {
                for timeout in ["nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"] {
                    rig.host.set_sysctl(&format!("net/netfilter/{timeout}"), LONG)?;
                }
            }
        }
        rig.close()?;
        Ok(Self { rig, tables })
    }

    /// Opens flows, from the first of these numbers up to the last, and has each answered once.
    pub fn fill(&self, numbering: Numbering, from: u32, to: u32) -> Result<()> {
        let before = self.flows()?;
        for direction in Direction::BOTH {
            let lane = self.rig.ascending_lane(direction, FRAME, numbering, u64::from(from))?;
            self.rig.send(&lane, to - from)?;
        }
        self.expect(before + u64::from(to - from))
    }

    /// Fails unless the table has so many flows. Connection tracking may know some of the host's own besides, or no longer.
    pub fn expect(&self, expected: u64) -> Result<()> {
        let flows = self.flows()?;
        let chatter = if self.rig.forwarding.is_tracked() { CHATTER } else { 0 };
        let is_right = flows.abs_diff(expected) <= chatter || !self.counts();
        ensure!(is_right, "{}: {flows} flows, not {expected}", self.rig.name());
        Ok(())
    }

    /// True when it knows flows at all.
    fn counts(&self) -> bool {
        self.tables.is_some() || self.rig.forwarding.is_tracked()
    }

    /// Flows in the table.
    pub fn flows(&self) -> Result<u64> {
        if let Some(tables) = &self.tables {
            return flows::count(tables, &Filter::default());
        }
        if self.rig.forwarding.is_tracked() {
            return Ok(self.rig.host.sysctl("net/netfilter/nf_conntrack_count")?.parse()?);
        }
        Ok(0)
    }

    /// Makes every flow of vmnat's look its way up with its next packet, and returns the slot in which it then stands. They would do
    /// so every few seconds; `starts` waits until such a slot has just begun.
    pub fn renew(&self, starts: bool) -> Result<u16> {
        let Some(tables) = &self.tables else { return Ok(0) };
        let before = self.slot()?;
        if starts {
            wait_until("the next slot", PATIENCE, || Ok(self.slot()? != before))?;
        }
        tables.bump_generation()?;
        self.slot()
    }

    /// The slot in which no flow of vmnat's looks its way up twice.
    pub fn slot(&self) -> Result<u16> {
        let Some(tables) = &self.tables else { return Ok(0) };
        Ok(tables.settings()?.epoch(tables.clock()?.jiffies))
    }

    /// Removes every flow.
    pub fn clear(&self) -> Result<()> {
        if let Some(tables) = &self.tables {
            return clear_evenly(tables);
        }
        if self.rig.forwarding.is_tracked() {
            self.rig.host.run(flush_conntrack)?;
            wait_until("connection tracking is empty", PATIENCE, || Ok(self.flows()? == 0))?;
            // What was removed is given back to the allocator a grace period later.
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

/// Removes each flow on a CPU, in turns: a hash table keeps free elements by the CPU that freed them
/// (`pcpu_freelist_push`), and a fresh one has them spread over all.
fn clear_evenly(tables: &Tables) -> Result<()> {
    let mut keys: Vec<FlowKey> = Vec::new();
    for batch in tables.flows() {
        keys.extend(batch?.iter().map(|(key, _)| *key).filter(|key| key.side == Side::Guest as u8));
    }
    let cpus = cpu::count()?;
    let share = keys.len().div_ceil(cpus).max(1);
    thread::scope(|scope| {
        let removers: Vec<_> = keys
            .chunks(share)
            .enumerate()
            .map(|(cpu, keys)| {
                scope.spawn(move || {
                    cpu::keep_to(cpu)?;
                    tables.reap(Mode::Remove, keys).map(drop)
                })
            })
            .collect();
        removers
            .into_iter()
            .try_for_each(|remover| remover.join().unwrap_or_else(|reason| std::panic::resume_unwind(reason)))
    })?;
    let left = flows::count(tables, &Filter::default())?;
    ensure!(left == 0, "{left} flows could not be removed");
    Ok(())
}

/// The most entries that connection tracking may have. It is the machine's setting, which a benchmark does not change.
pub fn conntrack_limit() -> Result<u64> {
    let path = "/proc/sys/net/netfilter/nf_conntrack_max";
    fs::read_to_string(path).with_context(|| path.to_owned())?.trim().parse().context("nf_conntrack_max")
}

/// Empties the connection tracking of the caller's network namespace (`IPCTNL_MSG_CT_DELETE` without a tuple).
pub fn flush_conntrack() -> Result<()> {
    // `struct nlmsghdr`: length, type, flags (request, acknowledge), sequence, port; `struct nfgenmsg`: family, version, resource.
    const CT_DELETE: u16 = 0x0102;
    let mut message = 20_u32.to_ne_bytes().to_vec();
    message.extend([CT_DELETE.to_ne_bytes(), 5_u16.to_ne_bytes()].concat());
    message.extend([0; 8]);
    message.extend([2, 0, 0, 0]);
    // SAFETY: socket has no memory arguments.
    let socket = unsafe {
        libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_NETFILTER)
    };
    ensure!(socket >= 0, "a netlink socket: {}", io::Error::last_os_error());
    // SAFETY: the descriptor has just been made and nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: the pointer and length describe `message`.
    let sent = unsafe { libc::send(socket.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
    ensure!(sent >= 0, "flushing connection tracking: {}", io::Error::last_os_error());
    // The answer: a header of 16 bytes and an error number, which is zero for an acknowledgement.
    let mut answer = [0_u8; 64];
    // SAFETY: the pointer and length describe `answer`.
    let got = unsafe { libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), size_of_val(&answer), 0) };
    ensure!(got >= 20, "no answer of connection tracking: {}", io::Error::last_os_error());
    let code = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
    ensure!(code == 0, "flushing connection tracking: {}", io::Error::from_raw_os_error(-code));
    Ok(())
}
