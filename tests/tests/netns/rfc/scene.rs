//! A lab with vmnat up, raw sockets at both ends of the way, and remotes that are nobody: what is sent to them ends at the
//! router, and what comes from them no guest's kernel gets to see. So nobody but the test itself ever answers.
//!
//! These scenarios run on tcx alone: they are about what the programs make of a packet, and both hooks run the same
//! verified programs. What differs between the hooks (attaching, restarts, the shapes that a packet has at the hook) is run on
//! both elsewhere.

use std::time::Duration;

use anyhow::{Result, ensure};
use vmnat_tests::lab::{
    BRIDGE_MAC, EXTERNAL, Lab, ROUTER_MAC, Setup, UPLINK_MAC,
    frame::{Address, Ends, Ipv4, Packet, Tap, checksum},
    guest_address, guest_mac, octets,
    vmnat::Hook,
};

/// A remote.
pub const S1: Address = [192, 0, 2, 10];
/// Another remote.
pub const S2: Address = [192, 0, 2, 20];
/// A router in the path.
pub const PATH: Address = [192, 0, 2, 77];
/// The external address.
pub const OUTSIDE: Address = [203, 0, 113, 2];

/// How long something may take that must happen.
pub const SOON: Duration = Duration::from_secs(2);
/// How long to watch for what must not happen.
pub const A_WHILE: Duration = Duration::from_millis(200);

/// The remotes do not exist, and guests' kernels do not hear of them.
const MUTE: &str = "table netdev mute {
  chain in { type filter hook ingress device eth0 priority 0; ip saddr 192.0.2.0/24 drop; }
}";

/// The host's own stack does not hear of them either, nor does it carry what the world sends back to the world.
const SPARED: &str = "table ip spared {
  chain in {
    type filter hook prerouting priority -500;
    iifname enp3s0 ip saddr 192.0.2.0/24 drop
    iifname enp3s0 ip daddr != { 203.0.113.2, 192.168.122.0/24 } drop
  }
}";

/// The scene.
pub struct Scene {
    pub lab: Lab,
    /// At each guest's end.
    pub guests: Vec<Tap>,
    /// At the router's end of the uplink.
    pub router: Tap,
}

impl Scene {
    /// Two guests, everything plain.
    pub fn new() -> Result<Self> {
        Self::with(Setup::default(), &[])
    }

    /// A lab that differs from the plain one, or further arguments of `vmnat up`.
    pub fn with(setup: Setup, arguments: &[&str]) -> Result<Self> {
        Self::on(Hook::of_the_kernel(), setup, arguments)
    }

    /// The same on a hook of the test's choice.
    pub fn on(hook: Hook, setup: Setup, arguments: &[&str]) -> Result<Self> {
        let lab = Lab::with(setup)?;
        lab.router.ip("route add blackhole 192.0.2.0/24\n")?;
        let mut guests = Vec::new();
        for guest in &lab.guests {
            guest.nft(MUTE)?;
            guests.push(Tap::open(guest, "eth0")?);
        }
        let router = Tap::open(&lab.router, "wan0")?;
        ensure!(octets(EXTERNAL)? == OUTSIDE, "the lab's external address is another");
        lab.up_with(hook, arguments)?;
        Ok(Self { lab, guests, router })
    }

    /// Keeps damaged frames that vmnat leaves to the host from the host's stack, against which they would count as arrived damaged.
    pub fn spare_the_host(&self) -> Result<()> {
        self.lab.host.nft(SPARED)
    }

    /// Guest `number`'s frame leaves by the uplink as the external address; returns what the router gets.
    pub fn leaves(&self, number: usize, packet: &Packet) -> Result<Ipv4> {
        let frame = self.leaves_as_frame(number, packet.protocol, &packet.bytes())?;
        sound(&frame)
    }

    /// The same with the whole frame, and no look at its checksums.
    pub fn leaves_as_frame(&self, number: usize, protocol: u8, frame: &[u8]) -> Result<Vec<u8>> {
        drop(self.router.drain());
        self.guests[number - 1].send(frame)?;
        expect_frame(&self.router, "frame on the uplink", |got| {
            got[6..12] == UPLINK_MAC
                && got[26..30] == OUTSIDE
                && got[30..34] == frame[30..34]
                && got[23] == protocol
        })
    }

    /// The router's frame arrives at guest `number`; returns what the guest gets.
    pub fn arrives(&self, number: usize, packet: &Packet) -> Result<Ipv4> {
        let frame = self.arrives_as_frame(number, packet.protocol, &packet.bytes())?;
        sound(&frame)
    }

    /// The same with the whole frame, and no look at its checksums.
    pub fn arrives_as_frame(&self, number: usize, protocol: u8, frame: &[u8]) -> Result<Vec<u8>> {
        let (guest, address) = (&self.guests[number - 1], octets(&guest_address(number))?);
        drop(guest.drain());
        self.router.send(frame)?;
        expect_frame(guest, "frame at the guest", |got| {
            got[6..12] == BRIDGE_MAC
                && got[30..34] == address
                && got[26..30] == frame[26..30]
                && got[23] == protocol
        })
    }

    /// Nothing of these frames of a guest passes the uplink.
    pub fn none_leaves(&self, number: usize, what: &str, frames: &[Vec<u8>]) -> Result<()> {
        drop(self.router.drain());
        frames.iter().try_for_each(|frame| self.guests[number - 1].send(frame))?;
        let left = self.router.collect(A_WHILE, |packet| packet.from_mac != ROUTER_MAC && is_ours(packet));
        ensure!(left.is_empty(), "{what}: {} left, the first of them {:?}", left.len(), left.first());
        Ok(())
    }

    /// Nothing of these frames of the router reaches any guest.
    pub fn none_arrives(&self, what: &str, frames: &[Vec<u8>]) -> Result<()> {
        self.guests.iter().for_each(|guest| drop(guest.drain()));
        frames.iter().try_for_each(|frame| self.router.send(frame))?;
        std::thread::sleep(A_WHILE);
        for guest in &self.guests {
            // What a guest sends itself is seen there too.
            let came =
                guest.collect(Duration::ZERO, |packet| packet.from_mac == BRIDGE_MAC && is_ours(packet));
            ensure!(came.is_empty(), "{what}: {} arrived, the first of them {:?}", came.len(), came.first());
        }
        Ok(())
    }

    /// Opens a UDP mapping with one datagram; returns its external port.
    pub fn open(&self, number: usize, port: u16, to: Address, to_port: u16) -> Result<u16> {
        let packet = Packet::udp(from_guest(number, to), port, to_port, b"opens");
        source_port(&self.leaves(number, &packet)?)
    }
}

/// Whether one of its ends is a remote of the scene.
fn is_ours(packet: &Ipv4) -> bool {
    [packet.source, packet.destination].iter().any(|address| address[..3] == S1[..3])
}

/// The packet in a frame, whose checksums must be right.
pub fn sound(frame: &[u8]) -> Result<Ipv4> {
    let packet = Ipv4::parse(frame);
    let packet = packet.ok_or_else(|| anyhow::anyhow!("no IPv4 packet: {frame:02x?}"))?;
    ensure!(packet.header_is_sound && packet.body_is_sound, "it arrived damaged: {packet:?}");
    Ok(packet)
}

/// The next IPv4 frame that satisfies `wanted`.
pub fn expect_frame(tap: &Tap, what: &str, wanted: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>> {
    let deadline = std::time::Instant::now() + SOON;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let frame = tap.receive(left).ok_or_else(|| anyhow::anyhow!("no {what} within {SOON:?}"))?;
        if frame.len() >= 34 && frame[12..14] == [0x08, 0x00] && wanted(&frame) {
            return Ok(frame);
        }
    }
}

/// The ends of a frame of guest `number` to a remote, by way of its gateway.
pub fn from_guest(number: usize, to: Address) -> Ends {
    let last = u8::try_from(9 + number).unwrap_or(0);
    Ends { from_mac: guest_mac(number), to_mac: BRIDGE_MAC, source: [192, 168, 122, last], destination: to }
}

/// The ends of a frame of a remote to the external address.
pub const fn from_remote(from: Address) -> Ends {
    Ends { from_mac: ROUTER_MAC, to_mac: UPLINK_MAC, source: from, destination: OUTSIDE }
}

/// The source port of a packet that has one.
pub fn source_port(packet: &Ipv4) -> Result<u16> {
    packet.ports().map(|(source, _)| source).ok_or_else(|| anyhow::anyhow!("no ports: {packet:?}"))
}

/// A frame with its IPv4 header changed; length and checksum follow the change.
pub fn with_header(mut frame: Vec<u8>, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let body = frame.split_off(34);
    let mut header = frame.split_off(14);
    change(&mut header);
    let length = u16::try_from(header.len() + body.len()).unwrap_or(u16::MAX);
    header.splice(2..4, length.to_be_bytes());
    header.splice(10..12, [0, 0]);
    let sum = checksum(&[&header]);
    header.splice(10..12, sum.to_be_bytes());
    [frame, header, body].concat()
}

/// A remote's echo reply.
pub fn reply(from: Address, identifier: u16, sequence: u16, payload: &[u8]) -> Packet {
    let mut packet = Packet::echo(from_remote(from), identifier, sequence, payload);
    packet.body[0] = 0;
    packet
}

/// An ICMP error that quotes the first `length` bytes of a packet.
pub fn error(ends: Ends, kind: u8, code: u8, quoted: &[u8], length: usize) -> Packet {
    let quoted = &quoted[..length.min(quoted.len())];
    Packet::new(ends, 1, [&[kind, code, 0, 0, 0, 0, 0, 0], quoted].concat(), Some(2))
}
