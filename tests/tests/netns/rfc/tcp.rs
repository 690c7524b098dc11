//! TCP (RFC 5382, RFC 7857, RFC 5961): every sequence that stacks may legally send passes, changed in nothing but its endpoint.

use anyhow::{Context, Result, ensure};
use vmnat_tests::lab::frame::{Address, Packet};

use super::scene::{OUTSIDE, S1, S2, Scene, from_guest, from_remote, source_port};

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;
pub const URG: u8 = 0x20;
pub const ECE: u8 = 0x40;
pub const CWR: u8 = 0x80;

/// A conversation of which the test plays both ends. Each call is one segment, which must go through, the same in all but the
/// guest's endpoint, hop count and checksums.
pub struct Line<'a> {
    scene: &'a Scene,
    guest: usize,
    near: u16,
    remote: (Address, u16),
    /// The guest's port as the world knows it, once it has sent.
    pub external: u16,
    /// The next sequence numbers: the guest's and the remote's.
    pub next: (u32, u32),
}

impl<'a> Line<'a> {
    pub fn new(scene: &'a Scene, guest: usize, near: u16, remote: Address, port: u16) -> Self {
        let next = (0x1000_0000 | u32::from(near), 0x9000_0000);
        Self { scene, guest, near, remote: (remote, port), external: near, next }
    }

    /// A line after its handshake and a segment each way.
    pub fn established(
        scene: &'a Scene,
        guest: usize,
        near: u16,
        remote: Address,
        port: u16,
    ) -> Result<Self> {
        let mut line = Self::new(scene, guest, near, remote, port);
        line.handshake()?;
        Ok(line)
    }

    /// SYN, SYN/ACK, ACK, and data each way.
    pub fn handshake(&mut self) -> Result<()> {
        self.out(SYN, &[])?;
        self.inward(SYN | ACK, &[])?;
        self.out(ACK, &[])?;
        self.data_both_ways()
    }

    /// Data from each end.
    pub fn data_both_ways(&mut self) -> Result<()> {
        self.out(PSH | ACK, b"from the guest")?;
        self.inward(PSH | ACK, b"from the remote")
    }

    /// The guest's next segment.
    pub fn out(&mut self, flags: u8, payload: &[u8]) -> Result<()> {
        self.next.0 = self.out_at(self.next.0, self.next.1, flags, payload)?;
        Ok(())
    }

    /// The remote's next segment.
    pub fn inward(&mut self, flags: u8, payload: &[u8]) -> Result<()> {
        self.next.1 = self.inward_at(self.next.1, self.next.0, flags, payload)?;
        Ok(())
    }

    /// A segment of the guest with numbers of the test's choice; returns the number that follows.
    pub fn out_at(&mut self, sequence: u32, acknowledges: u32, flags: u8, payload: &[u8]) -> Result<u32> {
        let body = segment([0, 0], sequence, acknowledges, flags, payload);
        self.out_body(&body).with_context(|| format!("flags {flags:#04x} from the guest"))?;
        Ok(sequence.wrapping_add(length(flags, payload)))
    }

    /// A segment of the remote with numbers of the test's choice.
    pub fn inward_at(&mut self, sequence: u32, acknowledges: u32, flags: u8, payload: &[u8]) -> Result<u32> {
        let body = segment([0, 0], sequence, acknowledges, flags, payload);
        self.inward_body(&body).with_context(|| format!("flags {flags:#04x} from the remote"))?;
        Ok(sequence.wrapping_add(length(flags, payload)))
    }

    /// A whole segment of the guest but for its ports.
    pub fn out_body(&mut self, body: &[u8]) -> Result<()> {
        let packet = self.out_packet(body);
        let got = self.scene.leaves(self.guest, &packet)?;
        let first = source_port(&got)?;
        self.external = first;
        ensure!(got.source == OUTSIDE, "it left as {:?}", got.source);
        same_but_for_ports(&packet.body, &got.body)
    }

    /// A whole segment of the remote but for its ports.
    pub fn inward_body(&mut self, body: &[u8]) -> Result<()> {
        let packet = self.inward_packet(body);
        let got = self.scene.arrives(self.guest, &packet)?;
        ensure!(got.ports() == Some((self.remote.1, self.near)), "it arrived at {:?}", got.ports());
        same_but_for_ports(&packet.body, &got.body)
    }

    /// A segment of the guest, unsent.
    pub fn out_packet(&self, body: &[u8]) -> Packet {
        let body = with_ports(body, self.near, self.remote.1);
        Packet::new(from_guest(self.guest, self.remote.0), 6, body, Some(16))
    }

    /// A segment of the remote, unsent.
    pub fn inward_packet(&self, body: &[u8]) -> Packet {
        let body = with_ports(body, self.remote.1, self.external);
        Packet::new(from_remote(self.remote.0), 6, body, Some(16))
    }
}

fn with_ports(body: &[u8], source: u16, destination: u16) -> Vec<u8> {
    let mut body = body.to_vec();
    body.splice(0..4, [source.to_be_bytes(), destination.to_be_bytes()].concat());
    body
}

/// Everything of a segment but its ports and its checksum.
fn same_but_for_ports(sent: &[u8], got: &[u8]) -> Result<()> {
    ensure!(got.len() == sent.len(), "{} bytes became {}", sent.len(), got.len());
    ensure!(got[4..16] == sent[4..16] && got[18..] == sent[18..], "sent {sent:02x?}, got {got:02x?}");
    Ok(())
}

/// Sequence numbers that a segment takes.
fn length(flags: u8, payload: &[u8]) -> u32 {
    let marks = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
    u32::try_from(payload.len()).unwrap_or(0) + marks
}

/// A TCP segment without options.
pub fn segment(ports: [u16; 2], sequence: u32, acknowledges: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    with_options(ports, sequence, acknowledges, flags, &[], payload)
}

/// A TCP segment with options, whose length must be a multiple of four.
pub fn with_options(
    ports: [u16; 2],
    sequence: u32,
    acknowledges: u32,
    flags: u8,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let mut body = ports.map(u16::to_be_bytes).concat();
    body.extend(sequence.to_be_bytes());
    body.extend(acknowledges.to_be_bytes());
    let offset = u8::try_from(5 + options.len() / 4).unwrap_or(5) << 4;
    body.extend([offset, flags, 0xff, 0xfe, 0, 0, 0, 0]);
    body.extend(options);
    body.extend(payload);
    body
}

/// One port of a guest towards S1:80, S1:81 and S2:80, while another guest has that port: one external port each.
#[test]
fn mapping_does_not_depend_on_the_destination() -> Result<()> {
    let mut scene = Scene::new()?;
    for guest in [2, 1] {
        let mut externals = Vec::new();
        for (remote, port) in [(S1, 80), (S1, 81), (S2, 80)] {
            externals.push(Line::established(&scene, guest, 5000, remote, port)?.external);
        }
        externals.dedup();
        ensure!(externals.len() == 1, "guest {guest} is {externals:?}");
    }
    scene.lab.assert_invariants()
}

/// The handshake's options of every kind, alone and to the full forty bytes; each pair of flags that a stack may send, with
/// urgent pointer, congestion marks and reserved bits: all pass unchanged, both ways.
#[test]
fn options_and_flags_pass_unchanged() -> Result<()> {
    let mut scene = Scene::new()?;
    let options: [&[u8]; 9] = [
        &[2, 4, 0x05, 0x00],
        &[4, 2, 1, 1],
        &[1, 3, 3, 14],
        &[1, 1, 8, 10, 0xde, 0xad, 0xbe, 0xef, 0, 0, 0, 0],
        &[34, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 0],
        &[30, 12, 0, 0x81, 1, 2, 3, 4, 5, 6, 7, 8],
        &[1, 1, 19, 18, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16],
        &[253, 4, 0xf9, 0x89],
        &[1; 40],
    ];
    let mut line = Line::new(&scene, 1, 5000, S1, 80);
    for options in options {
        for (flags, payload) in [(SYN, &b"data with the SYN"[..]), (SYN, b"")] {
            line.out_body(&with_options([0, 0], 7, 0, flags, options, payload))?;
            line.inward_body(&with_options([0, 0], 9, 8, SYN | ACK, options, b""))?;
        }
    }
    line.handshake()?;
    let sack = [1, 1, 5, 18, 0, 0, 0, 9, 0, 0, 0, 12, 0, 0, 1, 9, 0, 0, 1, 12];
    for flags in
        [ACK, PSH | ACK, URG | ACK, URG | PSH | ACK, ACK | ECE, ACK | CWR, ACK | ECE | CWR, SYN | ECE | CWR]
    {
        for reserved in 0..8_u8 {
            let mut body = with_options([0, 0], line.next.0, line.next.1, flags, &sack, b"odd");
            body[12] |= reserved << 1;
            body[18..20].copy_from_slice(&0x0003_u16.to_be_bytes());
            line.out_body(&body).with_context(|| format!("flags {flags:#04x}, reserved {reserved}"))?;
            line.inward_body(&body)
                .with_context(|| format!("flags {flags:#04x}, reserved {reserved}, inward"))?;
        }
    }
    line.data_both_ways()?;
    scene.lab.assert_invariants()
}

/// Both ends send SYN at once (RFC 9293 section 3.5): SYN, SYN, SYN/ACK, SYN/ACK, data.
#[test]
fn simultaneous_open_succeeds() -> Result<()> {
    let mut scene = Scene::new()?;
    let mut line = Line::new(&scene, 1, 5000, S1, 80);
    let (guest, remote) = line.next;
    line.out_at(guest, 0, SYN, b"")?;
    line.inward_at(remote, 0, SYN, b"")?;
    line.next.1 = remote.wrapping_add(1);
    line.next.0 = line.out_at(guest, line.next.1, SYN | ACK, b"")?;
    line.inward_at(remote, line.next.0, SYN | ACK, b"")?;
    line.data_both_ways()?;
    scene.lab.assert_invariants()
}

/// A half-closed conversation goes on for as long as the other end has something to say, whichever end closed first; after a full
/// close the same tuple opens again, with the same external port.
#[test]
fn half_close_and_reopening_work_from_either_end() -> Result<()> {
    let mut scene = Scene::new()?;
    for guest_first in [true, false] {
        let mut line = Line::established(&scene, 1, 5000, S1, 80)?;
        let external = line.external;
        if guest_first {
            line.out(FIN | ACK, &[])?;
            line.inward(ACK, &[])?;
            line.inward(PSH | ACK, b"the remote goes on")?;
            line.out(ACK, &[])?;
            line.inward(FIN | ACK, &[])?;
            line.out(ACK, &[])?;
        } else {
            line.inward(FIN | ACK, &[])?;
            line.out(ACK, &[])?;
            line.out(PSH | ACK, b"the guest goes on")?;
            line.inward(ACK, &[])?;
            line.out(FIN | ACK, &[])?;
            line.inward(ACK, &[])?;
        }
        // Retransmissions after the end, and then the next incarnation.
        line.inward_at(line.next.1.wrapping_sub(1), line.next.0, FIN | ACK, &[])?;
        line.out(ACK, &[])?;
        line.next = (line.next.0.wrapping_add(1 << 20), line.next.1.wrapping_add(1 << 24));
        line.handshake().context("the tuple after a full close")?;
        ensure!(line.external == external, "the tuple has moved from {external} to {}", line.external);
        line.out(RST | ACK, &[])?;
    }
    scene.lab.assert_invariants()
}

/// State that was lost, or never was: the guest's first segment in sight is one of an old conversation.
#[test]
fn a_conversation_is_picked_up_in_the_middle() -> Result<()> {
    let mut scene = Scene::new()?;
    Line::new(&scene, 1, 5000, S1, 80).data_both_ways()?;
    let mut closing = Line::new(&scene, 1, 5001, S1, 80);
    closing.out(FIN | ACK, &[])?;
    closing.inward(ACK, &[])?;
    scene.lab.assert_invariants()
}

/// A mapping lets no other endpoint open a conversation: SYN from S1:81 and from S2:80 reach nobody, and the live one goes on.
#[test]
fn filtering_depends_on_address_and_port() -> Result<()> {
    let mut scene = Scene::new()?;
    let mut line = Line::established(&scene, 1, 5000, S1, 80)?;
    let syn = |from, port| Packet::tcp(from_remote(from), port, line.external, 1, SYN).bytes();
    scene.none_arrives("a SYN of another endpoint", &[syn(S1, 81), syn(S2, 80)])?;
    line.data_both_ways()?;
    scene.lab.assert_invariants()
}
