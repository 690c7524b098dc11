//! The host that packets arrive at, and the proof that what was timed is what was meant.
//!
//! There is one host for all sets of forwards: the set is replaced before each turn, in the one step that
//! `Tables::set_forwards` takes, and every flow is removed. So all sets meet the same maps, interfaces and caches, and
//! no ratio holds the luck of a rig's memory. The sets are written past the running state, which tells nothing of them;
//! hence the agent, which would take them away, is ended. The dataplane does not need it.

use std::{
    collections::HashSet,
    os::fd::{AsFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, ensure};
use vmnat_common::{Outcome, forward::ForwardCount, outcome::Kind as OutcomeKind};
use vmnat_tests::lab::frame::{Ipv4, Tap};
use vmnat_user::{
    agent,
    flows::{self, Filter},
    paths::Instance,
    rawbpf,
    tables::{OUTCOMES, Tables},
};

use super::{set::Set, traffic::Traffic};
use crate::{
    bpf::{self, Kind},
    cpu,
    forwarding::{Direction, Forwarding},
    packet::WARM_UP,
    program,
    rig::{PROOF, Rig},
};

/// Conversations that the flow table holds, two entries each.
const FLOWS: &str = "131072";

/// Packets that the kernel may add of its own accord.
const CHATTER: u64 = 8;

/// Openings that may meet a conversation that another one opened: of 64,000 among 2^39, less than one in a hundred turns.
const MEETINGS: u64 = 2;

/// An uplink with a counting sink behind whatever stands at its ingress: what is left to the host ends there.
#[derive(Debug)]
pub struct Gate {
    rig: Rig,
    interface: u32,
    counter: OwnedFd,
}

/// A generator of one kind of packets.
#[derive(Debug)]
pub struct Lane {
    /// The kind.
    pub traffic: Traffic,
    frame: Vec<u8>,
    generator: OwnedFd,
}

/// What became of the frames that were sent.
#[derive(Clone, Copy, Debug)]
pub struct Fate {
    /// Of each.
    pub nanoseconds: u32,
    /// Frames that reached the guest.
    pub to_guest: u64,
    /// Frames that were left to the host.
    pub to_host: u64,
}

impl Lane {
    /// Loads the generator.
    pub fn new(traffic: Traffic) -> Result<Self> {
        let frame = traffic.frame()?;
        let generator = bpf::load(Kind::Xdp, &traffic.generator(&frame))?;
        Ok(Self { traffic, frame, generator })
    }
}

impl Gate {
    /// The floor: an uplink with nothing but the sink.
    pub fn floor() -> Result<Self> {
        Self::close(Rig::new(Forwarding::Floor, false)?)
    }

    fn close(mut rig: Rig) -> Result<Self> {
        let (interface, counter) = (rig.host.interface("enp3s0")?, bpf::counter()?);
        rig.link(&program::counting_sink(counter.as_fd()), interface)?;
        Ok(Self { rig, interface, counter })
    }

    fn to_host(&self) -> Result<u64> {
        rawbpf::lookup(self.counter.as_fd(), &0_u32)?.context("the sink's counter")
    }

    /// Sends frames.
    pub fn send(&self, lane: &Lane, packets: u32) -> Result<Fate> {
        let (host, guest) = (self.to_host()?, self.rig.arrived(Direction::Inbound)?);
        let generator = lane.generator.as_fd();
        let nanoseconds = self.rig.inject(generator, self.interface, &lane.frame, packets)?;
        let to_guest = self.rig.arrived(Direction::Inbound)?.wrapping_sub(guest);
        Ok(Fate { nanoseconds, to_guest, to_host: self.to_host()?.wrapping_sub(host) })
    }

    /// Warms up and measures, where everything is the host's; nanoseconds of a packet.
    pub fn turn(&self, lane: &Lane, packets: u32) -> Result<u32> {
        self.send(lane, WARM_UP)?;
        let fate = self.send(lane, packets)?;
        ensure!(fate.to_host == u64::from(packets), "floor: of {packets} frames {fate:?}");
        Ok(fate.nanoseconds)
    }
}

/// A host with vmnat, whose forwards are replaced from turn to turn.
#[derive(Debug)]
pub struct Stage {
    gate: Gate,
    tables: Tables,
    bridge: u32,
}

/// What vmnat has counted.
struct Account {
    outcomes: [u64; OUTCOMES],
    conversations: u64,
}

impl Stage {
    /// Builds the host, starts vmnat and ends its agent.
    pub fn new() -> Result<Self> {
        let mut rig = Rig::new(Forwarding::Port, false)?;
        // One guest is called more often than one guest may be.
        rig.up(&["--flows", FLOWS, "--guest-flows", "0", "--guest-rate", "0"])?;
        // The guest's lease comes of its first packet.
        rig.converse()?;
        let instance: Instance = rig.instance.parse()?;
        let (tables, bridge) = (Tables::open(&instance)?, rig.host.interface("virbr0")?);
        ask_for_range(&rig, &tables, bridge)?;
        ensure!(agent::end(&instance)?, "no agent ran");
        rig.close()?;
        for forward in Set::ALL.iter().map(|set| set.forwards(bridge)).collect::<Result<Vec<_>>>()?.concat() {
            tables.forward_count.set(&forward.id, &ForwardCount::default())?;
        }
        Ok(Self { gate: Gate::close(rig)?, tables, bridge })
    }

    /// Puts a set of forwards in force and removes every flow; the entries that the set takes.
    fn lay(&self, set: Set) -> Result<usize> {
        self.tables.set_forwards(&set.forwards(self.bridge)?)?;
        // On the CPU that packets arrive at: a hash table keeps its free elements by CPU (`pcpu_freelist_push`), and takes
        // another CPU's only when its own are used up, which costs more.
        self.gate
            .rig
            .host
            .run(|| cpu::hold().and_then(|()| flows::remove(&self.tables, &Filter::default())))?;
        let left = flows::count(&self.tables, &Filter::default())?;
        ensure!(left == 0, "{left} flows could not be removed");
        let entries = self.tables.forwards()?.len();
        ensure!(entries == set.entries(), "{}: {entries} entries in the kernel", set.name());
        Ok(entries)
    }

    /// Looks at every frame of a small run where the guest receives it, and returns the entries of the set.
    pub fn prove(&self, lane: &Lane, set: Set) -> Result<usize> {
        let entries = self.lay(set)?;
        let tap = Tap::open(&self.gate.rig.guest, "eth0")?;
        let fate = self.gate.send(lane, PROOF)?;
        let packets: Vec<Ipv4> = tap.drain().iter().filter_map(|frame| Ipv4::parse(frame)).collect();
        let right: Vec<&Ipv4> = packets.iter().filter(|packet| lane.traffic.is_right(packet)).collect();
        let sources: HashSet<_> = right.iter().map(|packet| (packet.source, packet.ports())).collect();
        let (expected, to_host) =
            if lane.traffic == Traffic::Own { (0, u64::from(PROOF)) } else { (PROOF as usize, 0) };
        let conversations = lane.traffic.conversations(PROOF) as usize;
        ensure!(
            (right.len(), sources.len(), fate.to_host) == (expected, conversations, to_host),
            "{}, {}: {} of {expected} frames of {} sources arrived as they should; {fate:?}, the first {:?}",
            lane.traffic.name(),
            set.name(),
            right.len(),
            sources.len(),
            packets.first()
        );
        Ok(entries)
    }

    /// Warms up and measures with a set of forwards; nanoseconds of a packet.
    pub fn turn(&self, lane: &Lane, set: Set, packets: u32) -> Result<u32> {
        self.lay(set)?;
        let before = self.account(set)?;
        let warm = self.gate.send(lane, WARM_UP)?;
        let fate = self.gate.send(lane, packets)?;
        let both = Fate {
            nanoseconds: fate.nanoseconds,
            to_guest: warm.to_guest + fate.to_guest,
            to_host: warm.to_host + fate.to_host,
        };
        self.check(lane.traffic, set, both, packets + WARM_UP, &before)
            .with_context(|| format!("{}, {}", lane.traffic.name(), set.name()))?;
        Ok(fate.nanoseconds)
    }

    fn account(&self, set: Set) -> Result<Account> {
        let count = self.tables.forward_count.get(&set.asked_id())?.unwrap_or_default();
        Ok(Account { outcomes: self.tables.outcomes()?, conversations: count.connections })
    }

    /// Sinks, outcomes, the flow table and the forward's own count must tell the same.
    fn check(&self, traffic: Traffic, set: Set, fate: Fate, packets: u32, before: &Account) -> Result<()> {
        let after = self.account(set)?;
        let all = u64::from(packets);
        let (guest, host) = if traffic == Traffic::Own { (0, all) } else { (all, 0) };
        ensure!(
            (guest..=guest + CHATTER).contains(&fate.to_guest) && fate.to_host == host,
            "of {packets} frames {fate:?}"
        );
        for (outcome, (was, is)) in Outcome::ALL.iter().zip(before.outcomes.iter().zip(&after.outcomes)) {
            let is_meant = *outcome == traffic.outcome();
            let expected = if is_meant { all } else { 0 };
            let moved = is.wrapping_sub(*was);
            let matters = is_meant || outcome.kind() != OutcomeKind::Passed;
            ensure!(!matters || moved == expected, "`{}` moved by {moved}, not {expected}", outcome.name());
        }
        let flows = flows::count(&self.tables, &Filter::default())?;
        let most = u64::from(traffic.conversations(packets));
        ensure!((most.saturating_sub(MEETINGS)..=most).contains(&flows), "{flows} flows of {most}");
        let counted = after.conversations.wrapping_sub(before.conversations);
        ensure!(counted == flows, "the forward counts {counted} conversations, the table has {flows}");
        Ok(())
    }

    /// Ends vmnat.
    pub fn stop(&self) -> Result<()> {
        self.gate.rig.stop()
    }
}

/// What an operator asks for as one range must be the very entry that is measured.
fn ask_for_range(rig: &Rig, tables: &Tables, bridge: u32) -> Result<()> {
    rig.vmnat(&["dnat", "add", Set::RANGE])?;
    let (made, mut meant) = (tables.forwards()?, Set::Range.forwards(bridge)?);
    for (meant, made) in meant.iter_mut().zip(&made) {
        meant.id = made.id;
    }
    ensure!(made == meant, "`dnat add {}` makes {made:?}", Set::RANGE);
    rig.vmnat(&["dnat", "rm", Set::RANGE]).map(drop)
}
