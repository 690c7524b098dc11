//! Frames that enter a rig as from a driver, and the proof that they come out as they should.

use std::{
    collections::HashSet,
    fs,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    panic::resume_unwind,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use vmnat_tests::lab::{
    EXTERNAL, SERVER,
    frame::{Ends, Ipv4, Packet, Tap},
    guest_address,
    namespace::Namespace,
    octets,
};
use vmnat_user::rawbpf;

use super::{BRIDGE_MAC, GUEST_MAC, GUEST_PORT, PEER_MAC, PROOF, Rig, UPLINK_MAC};
use crate::{
    bpf::{self, Kind},
    cpu,
    forwarding::{Direction, Forwarding},
    program::{
        self,
        spread::{self, Numbering, Order, Place},
    },
};

/// The remote's port.
pub const REMOTE_PORT: u16 = 7_000;

/// A port of the host's own.
const HOSTS_PORT: u16 = 50_000;

/// Bytes before the payload: Ethernet, IPv4, UDP.
const HEADERS: usize = 42;

/// Packets that the agent and the kernel may add of their own accord.
const CHATTER: u64 = 8;

/// For the last ones to arrive.
const PATIENCE: Duration = Duration::from_secs(1);

/// Frames for one direction of a rig.
#[derive(Debug)]
pub struct Lane {
    /// Which way.
    pub direction: Direction,
    frame: Vec<u8>,
    generator: OwnedFd,
    interface: u32,
    /// Of many flows: how they are numbered, and how many there are.
    spread: Option<(Numbering, u32)>,
}

impl Lane {
    /// How many flows its frames are of.
    pub fn flows(&self) -> u32 {
        self.spread.map_or(1, |(_, flows)| flows)
    }
}

impl Rig {
    /// The lane of a direction, for frames of `size` bytes.
    pub fn lane(&self, direction: Direction, size: usize) -> Result<Lane> {
        let frame = self.frame(direction, size)?;
        let generator = bpf::load(Kind::Xdp, &program::generator(&frame))?;
        Ok(Lane { direction, frame, generator, interface: self.entrance(direction)?, spread: None })
    }

    /// A lane for frames of many flows, any of the first so many.
    pub fn random_lane(
        &self,
        direction: Direction,
        size: usize,
        numbering: Numbering,
        flows: u32,
    ) -> Result<Lane> {
        let frame = self.frame(direction, size)?;
        let program = spread::generator(&frame, place_of(direction), numbering, Order::Random(flows));
        let generator = bpf::load(Kind::Xdp, &program)?;
        let interface = self.entrance(direction)?;
        Ok(Lane { direction, frame, generator, interface, spread: Some((numbering, flows)) })
    }

    /// A lane for frames of many flows, one after the other from `first` on.
    pub fn ascending_lane(
        &self,
        direction: Direction,
        size: usize,
        numbering: Numbering,
        first: u64,
    ) -> Result<Lane> {
        let counter = bpf::counter()?;
        rawbpf::update(counter.as_fd(), &0_u32, &first, rawbpf::ANY)?;
        let frame = self.frame(direction, size)?;
        let program =
            spread::generator(&frame, place_of(direction), numbering, Order::Ascending(counter.as_fd()));
        let generator = bpf::load(Kind::Xdp, &program)?;
        let interface = self.entrance(direction)?;
        Ok(Lane { direction, frame, generator, interface, spread: Some((numbering, first as u32 + PROOF)) })
    }

    fn entrance(&self, direction: Direction) -> Result<u32> {
        match direction {
            Direction::Outbound => self.host.interface("vnet1"),
            Direction::Inbound => self.host.interface("enp3s0"),
        }
    }

    /// A frame of the flow that the rig has conversed with.
    pub fn frame(&self, direction: Direction, size: usize) -> Result<Vec<u8>> {
        let (inside, remote) = (octets(&guest_address(1))?, octets(SERVER)?);
        let (external, external_port) = self.external;
        let bridged = self.forwarding == Forwarding::Bridge;
        let (ends, from, to) = match direction {
            Direction::Outbound => {
                let to_mac = if bridged { PEER_MAC } else { BRIDGE_MAC };
                let ends = Ends { from_mac: GUEST_MAC, to_mac, source: inside, destination: remote };
                (ends, GUEST_PORT, REMOTE_PORT)
            }
            Direction::Inbound => {
                let to_mac = if bridged { GUEST_MAC } else { UPLINK_MAC };
                let ends = Ends { from_mac: PEER_MAC, to_mac, source: remote, destination: external };
                (ends, REMOTE_PORT, external_port)
            }
        };
        Ok(Packet::udp(ends, from, to, &vec![0x5a; size.saturating_sub(HEADERS)]).bytes())
    }

    /// Sends `packets` frames and returns the nanoseconds of each; every frame must have reached the sink.
    pub fn send(&self, lane: &Lane, packets: u32) -> Result<u32> {
        let before = self.arrived(lane.direction)?;
        let nanoseconds = self.inject(lane.generator.as_fd(), lane.interface, &lane.frame, packets)?;
        self.all_arrived(lane.direction, before, packets)?;
        Ok(nanoseconds)
    }

    /// Sends `packets` frames by each lane at once, from a CPU each, and returns the seconds until all work was done.
    pub fn send_at_once(&self, lanes: &[Lane], packets: u32) -> Result<f64> {
        let Some(direction) = lanes.first().map(|lane| lane.direction) else { bail!("no lane") };
        // The kernel patches itself for a program that it has not called yet, and waits for all CPUs; one after the other would then
        // begin a tenth of a second late.
        let aside = Namespace::new("aside")?;
        let mut ready = Vec::new();
        for (number, lane) in lanes.iter().enumerate() {
            aside.ip(&format!("link add idle{number} type veth peer name end{number}\n"))?;
            let interface = aside.interface(&format!("idle{number}"))?;
            ready.push(aside.run(|| bpf::attach_driver(lane.generator.as_fd(), interface))?);
        }
        let before = self.arrived(direction)?;
        let start = Barrier::new(lanes.len());
        let senders = lanes.iter().enumerate().map(|(cpu, lane)| {
            let start = &start;
            move || -> Result<(Instant, Instant)> {
                let held = cpu::hold_one(cpu);
                start.wait();
                let begun = Instant::now();
                held?;
                bpf::send_live(lane.generator.as_fd(), lane.interface, &lane.frame, packets)?;
                Ok((begun, Instant::now()))
            }
        });
        let times: Vec<(Instant, Instant)> = thread::scope(|scope| {
            let threads: Vec<_> = senders.map(|sender| scope.spawn(move || self.host.run(sender))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|why| resume_unwind(why)))
                .collect::<Result<_>>()
        })?;
        drop(ready);
        self.all_arrived(direction, before, packets * lanes.len() as u32)?;
        let begun = times.iter().map(|(begun, _)| *begun).min().context("no lane")?;
        let ended = times.iter().map(|(_, ended)| *ended).max().context("no lane")?;
        Ok(ended.duration_since(begun).as_secs_f64())
    }

    /// The agent's and the kernel's own packets may add a few; none may be missing.
    fn all_arrived(&self, direction: Direction, before: u64, packets: u32) -> Result<()> {
        let expected = if self.forwarding == Forwarding::Floor { 0 } else { u64::from(packets) };
        let deadline = Instant::now() + PATIENCE;
        let mut arrived = self.arrived(direction)?.wrapping_sub(before);
        // The last ones may wait for a kernel thread of the receiver's.
        while arrived < expected && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
            arrived = self.arrived(direction)?.wrapping_sub(before);
        }
        if (expected..=expected.saturating_add(CHATTER)).contains(&arrived) {
            return Ok(());
        }
        let counted: Vec<_> = self.outcomes()?.into_iter().filter(|count| count.packets != 0).collect();
        bail!(
            "{}, {}: {arrived} packets of {expected} reached the sink; vmnat's counters: {counted:?}",
            self.name(),
            direction.name()
        )
    }

    /// Sends frames into the receive path of an interface of the host's; nanoseconds of each.
    pub fn inject(
        &self,
        generator: BorrowedFd<'_>,
        interface: u32,
        frame: &[u8],
        packets: u32,
    ) -> Result<u32> {
        self.host.run(|| {
            cpu::hold()?;
            bpf::send_live(generator, interface, frame, packets)
        })
    }

    /// Packets that have reached the interface with the sink of a direction.
    pub fn arrived(&self, direction: Direction) -> Result<u64> {
        let (namespace, interface) = match direction {
            Direction::Outbound => (&self.peer, "wan0"),
            Direction::Inbound => (&self.guest, "eth0"),
        };
        let table = namespace.run(|| fs::read_to_string("/proc/thread-self/net/dev"))?;
        let row = table.lines().find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'));
        let row = row.with_context(|| format!("no {interface}"))?;
        row.split_whitespace().nth(1).context("no count")?.parse().context("count of packets")
    }

    /// Looks at every frame of a small run where the sink takes them.
    pub fn prove(&self, lane: &Lane) -> Result<()> {
        let tap = match (self.forwarding, lane.direction) {
            (Forwarding::Floor, Direction::Outbound) => Tap::open(&self.host, "vnet1")?,
            (Forwarding::Floor, Direction::Inbound) => Tap::open(&self.host, "enp3s0")?,
            (_, Direction::Outbound) => Tap::open(&self.peer, "wan0")?,
            (_, Direction::Inbound) => Tap::open(&self.guest, "eth0")?,
        };
        self.send(lane, PROOF)?;
        let packets: Vec<Ipv4> = tap.drain().iter().filter_map(|frame| Ipv4::parse(frame)).collect();
        let right: Vec<&Ipv4> = packets
            .iter()
            .filter(|packet| packet.header_is_sound && packet.body_is_sound && self.is_meant(lane, packet))
            .collect();
        let flows: HashSet<_> =
            right.iter().map(|packet| (packet.source, packet.destination, packet.ports())).collect();
        // Drawn at random, some come twice.
        let least = lane.spread.map_or(1, |(_, flows)| flows.min(PROOF) as usize / 2).max(1);
        ensure!(
            right.len() == PROOF as usize && flows.len() >= least,
            "{}, {}: {} of {PROOF} frames of {} flows arrived as they should; the first of {}: {:?}",
            self.name(),
            lane.direction.name(),
            right.len(),
            flows.len(),
            packets.len(),
            packets.first()
        );
        Ok(())
    }

    /// True when a packet is what a lane's frame must have become.
    fn is_meant(&self, lane: &Lane, packet: &Ipv4) -> bool {
        let (Ok(inside), Ok(remote)) = (octets(&guest_address(1)), octets(SERVER)) else { return false };
        let (external, external_port) = self.external;
        let Some((from, to)) = packet.ports() else { return false };
        let is_outbound = lane.direction == Direction::Outbound;
        let (near, near_port, far, far_port) = if is_outbound {
            (packet.source, from, packet.destination, to)
        } else {
            (packet.destination, to, packet.source, from)
        };
        // The floor has frames as they are sent.
        let guests = if is_outbound { external } else { inside };
        let is_near = near == guests || self.forwarding == Forwarding::Floor && near == external;
        let is_one = match lane.spread {
            None => (far, near_port) == (remote, if is_outbound { external_port } else { GUEST_PORT }),
            Some((numbering, flows)) => numbering.flow(near_port, far).is_some_and(|flow| flow < flows),
        };
        is_near && is_one && far_port == REMOTE_PORT
    }
}

const fn place_of(direction: Direction) -> Place {
    match direction {
        Direction::Outbound => Place::OUTBOUND,
        Direction::Inbound => Place::INBOUND,
    }
}

/// A frame of the host's own: between another port of the external address and the remote.
pub fn hosts_frame(direction: Direction, size: usize) -> Result<Vec<u8>> {
    let (external, remote) = (octets(EXTERNAL)?, octets(SERVER)?);
    let payload = vec![0x5a; size.saturating_sub(HEADERS)];
    let packet = match direction {
        Direction::Outbound => {
            let ends = Ends { from_mac: UPLINK_MAC, to_mac: PEER_MAC, source: external, destination: remote };
            Packet::udp(ends, HOSTS_PORT, REMOTE_PORT, &payload)
        }
        Direction::Inbound => {
            let ends = Ends { from_mac: PEER_MAC, to_mac: UPLINK_MAC, source: remote, destination: external };
            Packet::udp(ends, REMOTE_PORT, HOSTS_PORT, &payload)
        }
    };
    Ok(packet.bytes())
}
