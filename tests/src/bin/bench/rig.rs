//! A rig: one VM host with a guest behind its bridge and a peer behind its uplink, and one way of forwarding.
//!
//! ```text
//! guest eth0 --- vnet1 | virbr0   host   enp3s0 | --- wan0 peer
//!  192.168.122.10      192.168.122.1  203.0.113.2    203.0.113.1, and 198.51.100.10 behind it
//! ```
//!
//! Each rig has namespaces of its own, so nothing is switched between measurements. Neighbours are permanent: the sinks
//! take ARP away too.

pub mod lane;

use std::{
    fs,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use vmnat_tests::lab::{
    EXTERNAL, GATEWAY, ROUTER, SERVER,
    frame::{Mac, Tap},
    guest_address,
    namespace::Namespace,
    octets, vmnat, written,
};

pub use self::lane::Lane;
use crate::{
    bpf::{self, Kind},
    count::Count,
    forwarding::{Direction, Forwarding},
    program::{self, Instruction},
    rulesets,
};

const GUEST_MAC: Mac = [0x52, 0x54, 0, 0, 0, 0x10];
const BRIDGE_MAC: Mac = vmnat_tests::lab::BRIDGE_MAC;
const UPLINK_MAC: Mac = vmnat_tests::lab::UPLINK_MAC;
const PEER_MAC: Mac = vmnat_tests::lab::ROUTER_MAC;

const GUEST_PORT: u16 = 1_500;

/// Frames whose every one is looked at before a rig is measured.
pub const PROOF: u32 = 256;

const PATIENCE: Duration = Duration::from_secs(3);

/// A rig.
#[derive(Debug)]
pub struct Rig {
    /// How it forwards.
    pub forwarding: Forwarding,
    /// Whether `br_netfilter` is on.
    pub br_netfilter: bool,
    /// The VM host.
    pub host: Namespace,
    /// The guest.
    pub guest: Namespace,
    /// The world's end of the uplink.
    pub peer: Namespace,
    /// Name of vmnat's instance.
    pub instance: String,
    /// What the world sees the guest's flow as.
    external: ([u8; 4], u16),
    links: Vec<OwnedFd>,
    /// The `vmnat` that it runs, where that is not this build's.
    pub program: Option<PathBuf>,
}

impl Rig {
    /// Builds a rig.
    pub fn new(forwarding: Forwarding, br_netfilter: bool) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let rig = Self {
            forwarding,
            br_netfilter,
            host: Namespace::new("host")?,
            guest: Namespace::new("guest")?,
            peer: Namespace::new("peer")?,
            instance: format!("bench-{}", NUMBER.fetch_add(1, Ordering::Relaxed)),
            external: (octets(&guest_address(1))?, GUEST_PORT),
            links: Vec::new(),
            program: None,
        };
        rig.connect().and_then(|()| rig.set_sysctls()).with_context(|| rig.name())?;
        Ok(rig)
    }

    /// What messages call it.
    pub fn name(&self) -> String {
        let suffix = if self.br_netfilter { ", br_netfilter on" } else { "" };
        format!("{}{suffix}", self.forwarding.name())
    }

    fn connect(&self) -> Result<()> {
        let [guest, bridge, uplink, peer] = [GUEST_MAC, BRIDGE_MAC, UPLINK_MAC, PEER_MAC].map(written);
        let (guest_at, inside, beyond) = (guest_address(1), self.guest.path(), self.peer.path());
        self.host.ip(&format!(
            "link add virbr0 address {bridge} type bridge stp_state 0 forward_delay 0\n\
             address add {GATEWAY}/24 dev virbr0\n\
             link set virbr0 up\n\
             link add vnet1 type veth peer name eth0 address {guest} netns {inside}\n\
             link set vnet1 master virbr0 up\n\
             link add enp3s0 address {uplink} type veth peer name wan0 address {peer} netns {beyond}\n\
             link set enp3s0 up\n\
             address add {EXTERNAL}/24 dev enp3s0\n\
             route add default via {ROUTER}\n\
             neighbour replace {ROUTER} lladdr {peer} dev enp3s0 nud permanent\n\
             neighbour replace {guest_at} lladdr {guest} dev virbr0 nud permanent\n"
        ))?;
        self.guest.ip("link set eth0 up\n")?;
        self.peer.ip("link set wan0 up\n")?;
        if self.forwarding == Forwarding::Bridge {
            self.host.ip("link set enp3s0 master virbr0\n")?;
        }
        if self.forwarding == Forwarding::BridgeHook {
            self.host.exec(&["bridge", "link", "set", "dev", "vnet1", "isolated", "on"])?;
        }
        self.learn("vnet1", &guest)?;
        if self.forwarding == Forwarding::Bridge { self.learn("enp3s0", &peer) } else { Ok(()) }
    }

    /// Tells the bridge where a station is, which sinks keep it from learning.
    fn learn(&self, port: &str, station: &str) -> Result<()> {
        self.host.exec(&["bridge", "fdb", "replace", station, "dev", port, "master", "static"]).map(drop)
    }

    fn set_sysctls(&self) -> Result<()> {
        for scope in ["all", "default", "virbr0", "enp3s0"] {
            self.host.set_sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0")?;
        }
        self.host.set_sysctl("net/ipv4/ip_forward", if self.forwarding.is_routed() { "1" } else { "0" })?;
        let setting = "net/bridge/bridge-nf-call-iptables";
        let set = self.host.set_sysctl(setting, if self.br_netfilter { "1" } else { "0" });
        // Where br_netfilter is not loaded, it is off.
        if self.br_netfilter { set.context("br_netfilter is not loaded") } else { Ok(()) }
    }

    /// Gives guest and peer their addresses, for conversations of their own stacks; returns both.
    pub fn inhabit(&self) -> Result<(&Namespace, &Namespace)> {
        self.guest.ip(&format!(
            "address add {}/24 dev eth0\nroute add default via {GATEWAY}\n",
            guest_address(1)
        ))?;
        self.peer.ip(&format!("address add {ROUTER}/24 dev wan0\naddress add {SERVER}/32 dev wan0\n"))?;
        if !self.forwarding.translates() {
            self.peer.ip(&format!("route add 192.168.122.0/24 via {EXTERNAL}\n"))?;
        }
        Ok((&self.guest, &self.peer))
    }

    /// Starts what forwards.
    pub fn start(&mut self) -> Result<()> {
        match self.forwarding {
            Forwarding::Floor | Forwarding::Bridge | Forwarding::Route => Ok(()),
            Forwarding::Redirect => {
                let (port, uplink) = (self.host.interface("vnet1")?, self.host.interface("enp3s0")?);
                self.link(&program::redirect(uplink), port)?;
                self.link(&program::redirect(port), uplink)
            }
            Forwarding::RedirectToNeighbour => {
                let (port, uplink) = (self.host.interface("vnet1")?, self.host.interface("enp3s0")?);
                self.link(&program::redirect_to_neighbour(uplink, octets(ROUTER)?), port)?;
                self.link(&program::redirect(port), uplink)
            }
            Forwarding::Masquerade | Forwarding::Libvirt => {
                if self.forwarding == Forwarding::Masquerade {
                    self.host.nft(rulesets::MASQUERADE)?;
                } else {
                    self.host.exec_with(&["iptables-nft-restore"], rulesets::LIBVIRT)?;
                }
                // Frames of the generator carry checksums that no device has checked; what comes from a guest's
                // virtio or a network card does not make connection tracking add them up.
                self.host.set_sysctl("net/netfilter/nf_conntrack_checksum", "0")
            }
            Forwarding::Port | Forwarding::BridgeHook | Forwarding::Against => self.up(&[]),
            Forwarding::Unguarded => {
                self.up(&[])?;
                self.unguard()
            }
            Forwarding::Hooked(hook) => {
                hook.call(&self.host, "up")?;
                // Where the script loads no connection tracking, there is nothing to set.
                self.host.set_sysctl("net/netfilter/nf_conntrack_checksum", "0").ok();
                Ok(())
            }
        }
    }

    /// Starts vmnat.
    pub fn up(&self, options: &[&str]) -> Result<()> {
        let up = ["up", "--bridge", "virbr0", "--uplink", "enp3s0", "--hook", "tcx"];
        self.vmnat(&[&up[..], options].concat()).map(drop)
    }

    /// Takes the pin of the guard's link away, and the link with it.
    fn unguard(&self) -> Result<()> {
        let versions = fs::read_dir(Path::new("/sys/fs/bpf/vmnat").join(&self.instance))?;
        for version in versions {
            fs::remove_file(version?.path().join("links/enp3s0-egress")).context("the guard's link")?;
        }
        Ok(())
    }

    /// Puts a classifier at an interface of the host's, behind those that stand there.
    pub fn link(&mut self, instructions: &[Instruction], ifindex: u32) -> Result<()> {
        let program = bpf::load(Kind::Classifier, instructions)?;
        self.links.push(self.host.run(|| bpf::attach_ingress(program.as_fd(), ifindex))?);
        Ok(())
    }

    /// One datagram each way through the rig, so that whatever keeps flows has one that was answered.
    pub fn converse(&mut self) -> Result<()> {
        if self.forwarding == Forwarding::Floor {
            return Ok(());
        }
        let (guest, peer) = (Tap::open(&self.guest, "eth0")?, Tap::open(&self.peer, "wan0")?);
        guest.send(&self.frame(Direction::Outbound, 64)?)?;
        let remote = octets(SERVER)?;
        let asked = peer
            .expect("datagram at the peer", PATIENCE, |packet| packet.destination == remote)
            .with_context(|| self.name())?;
        let (port, _) = asked.ports().context("a datagram without ports")?;
        self.external = (asked.source, port);
        if self.forwarding.translates() {
            ensure!(asked.source == octets(EXTERNAL)?, "{}: {asked:?} is not translated", self.name());
        }
        peer.send(&self.frame(Direction::Inbound, 64)?)?;
        let inside = octets(&guest_address(1))?;
        guest
            .expect("answer at the guest", PATIENCE, |packet| packet.destination == inside)
            .with_context(|| self.name())
            .map(drop)
    }

    /// Puts the sinks where packets arrive.
    pub fn close(&mut self) -> Result<()> {
        let sink = bpf::load(Kind::Classifier, &program::sink())?;
        let ends = if self.forwarding == Forwarding::Floor {
            [(&self.host, "vnet1"), (&self.host, "enp3s0")]
        } else {
            [(&self.guest, "eth0"), (&self.peer, "wan0")]
        };
        for (namespace, interface) in ends {
            let index = namespace.interface(interface)?;
            self.links.push(namespace.run(|| bpf::attach_ingress(sink.as_fd(), index))?);
        }
        Ok(())
    }

    /// Runs vmnat on the host; what it printed.
    pub fn vmnat(&self, arguments: &[&str]) -> Result<String> {
        let program = match &self.program {
            Some(program) => program.clone(),
            None => vmnat::program()?,
        };
        let program = program.to_str().context("a path that is no text")?;
        self.host.exec(&[&[program, "--instance", &self.instance], arguments].concat())
    }

    /// vmnat's counters; empty where it is not vmnat that forwards.
    pub fn outcomes(&self) -> Result<Vec<Count>> {
        if !self.forwarding.is_vmnat() {
            return Ok(Vec::new());
        }
        let document: Value = serde_json::from_str(&self.vmnat(&["counters", "--json"])?)?;
        let rows = document.get("rows").and_then(Value::as_array).context("no rows")?;
        rows.iter().map(|row| Count::read(row).with_context(|| format!("counter {row}"))).collect()
    }

    /// Ends what was started.
    pub fn stop(&self) -> Result<()> {
        match self.forwarding {
            Forwarding::Hooked(hook) => hook.call(&self.host, "down"),
            vmnat if vmnat.is_vmnat() => self.vmnat(&["down"]).map(drop),
            _ => Ok(()),
        }
    }
}
