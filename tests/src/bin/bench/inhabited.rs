//! Rigs whose guest and world have stacks of their own, for conversations of real sockets, by turns.

use std::{
    net::UdpSocket,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use vmnat_tests::lab::{Lab, SERVER, Setup, namespace::Namespace, octets, set_offloads};

use crate::{forwarding::Forwarding, rig::Rig};

/// A machine with much other work needs seconds for the first packet.
const PATIENCE: Duration = Duration::from_secs(20);

/// Rigs that take turns.
#[derive(Debug)]
pub struct Inhabited {
    /// The rigs, in the order of tables.
    pub rigs: Vec<Rig>,
    // Its mounts keep vmnat's pins and state from the machine's.
    _shelter: Lab,
}

/// What one guest may take; a benchmark's one guest takes more.
pub const WITHOUT_QUOTAS: [&str; 6] = ["--guest-flows", "0", "--guest-rate", "0", "--guest-half-open", "0"];

impl Inhabited {
    /// Builds a rig for each way to forward, and starts what forwards.
    pub fn new(forwardings: &[Forwarding], segments: Segments) -> Result<Self> {
        let mut shelter = Lab::with(Setup { guests: 0, ..Setup::default() })?;
        shelter.keep_quiet();
        let mut rigs = Vec::new();
        for forwarding in forwardings {
            let mut rig = Rig::new(*forwarding, false)?;
            if forwarding.is_vmnat() {
                rig.up(&WITHOUT_QUOTAS)?;
            } else {
                rig.start()?;
            }
            let (guest, world) = rig.inhabit()?;
            if segments == Segments::Wire {
                cut(guest, "eth0")?;
                cut(world, "wan0")?;
            }
            prove(&rig).with_context(|| rig.name())?;
            rigs.push(rig);
        }
        Ok(Self { rigs, _shelter: shelter })
    }

    /// Ends what runs.
    pub fn stop(&self) -> Result<()> {
        self.rigs.iter().try_for_each(Rig::stop)
    }

    /// The order of a round: each begins with another rig, every second goes backwards.
    pub fn order(&self, round: usize) -> Vec<usize> {
        let count = self.rigs.len();
        let mut order: Vec<_> = (0..count).map(|step| (round / 2 + step) % count).collect();
        if !round.is_multiple_of(2) {
            order.reverse();
        }
        order
    }
}

/// How large the packets of a TCP stream are on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segments {
    /// As veths hand them on, up to 64 KiB.
    Whole,
    /// As they are on a wire, of the maximum segment size.
    Wire,
}

impl Segments {
    /// The word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Whole => "GSO",
            Self::Wire => "MSS-sized",
        }
    }
}

/// Turns an interface's offloads off: what its stack sends is cut to size, and what arrives is not put together.
fn cut(namespace: &Namespace, interface: &str) -> Result<()> {
    set_offloads(namespace, interface, "off")?;
    namespace.exec(&["ethtool", "-K", interface, "gro", "off"]).map(drop)
}

/// A conversation each by UDP, whose remote must see the address that the way to forward makes of the guest's.
fn prove(rig: &Rig) -> Result<()> {
    let server = rig.peer.run(|| UdpSocket::bind((SERVER, 9)))?;
    let client = rig.guest.run(|| UdpSocket::bind(("0.0.0.0", 0)))?;
    server.set_read_timeout(Some(Duration::from_millis(500)))?;
    client.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = [0; 16];
    let deadline = Instant::now() + PATIENCE;
    // Asked again and again: a busy kernel takes its time to see that both ends of a veth are up.
    let caller = loop {
        client.send_to(b"question", (SERVER, 9))?;
        match server.recv_from(&mut buffer) {
            Ok((_, caller)) => break caller,
            Err(error) if Instant::now() > deadline => {
                return Err(error).context("the guest's question does not arrive");
            }
            Err(_) => {}
        }
    };
    let external = octets(vmnat_tests::lab::EXTERNAL)?;
    let is_external = caller.ip() == std::net::IpAddr::from(external);
    ensure!(is_external == rig.forwarding.translates(), "the world sees {caller}");
    server.send_to(b"answer", caller)?;
    let (length, _) = client.recv_from(&mut buffer).context("the world's answer does not arrive")?;
    ensure!(buffer.get(..length) == Some(&b"answer"[..]), "another answer");
    Ok(())
}
