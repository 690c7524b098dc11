//! Uplinks of other kinds than a plain Ethernet device: the external address moves from `enp3s0` to a device that stands on it
//! or beside it, and the router's to its other end.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::fs::OpenOptionsExt as _,
    },
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{EXTERNAL, Lab, ROUTER, UPLINK_MAC, namespace::Namespace, octets, watch::LeakWatch, written};

/// Kinds of uplinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A bridge that has `enp3s0` as a port.
    Bridge,
    /// A macvlan in bridge mode on `enp3s0`.
    Macvlan,
    /// A vxlan over `enp3s0`, MTU 1450.
    Vxlan,
    /// A tun without an Ethernet header, MTU 1400; with or without segments that wait to be cut and partial checksums.
    Tun {
        /// Whether it has offloads, as `WireGuard` has.
        offloads: bool,
    },
    /// `enp3s0` towards an access point, which drops frames of any other station.
    AccessPoint,
}

impl Kind {
    /// The name of the device.
    #[must_use]
    pub const fn device(self) -> &'static str {
        match self {
            Self::Bridge => "br0",
            Self::Macvlan => "mv0",
            Self::Vxlan => "vx0",
            Self::Tun { .. } => "tun0",
            Self::AccessPoint => "enp3s0",
        }
    }
}

impl Lab {
    /// A plain lab, but for its uplink. What is returned must live as long as the uplink.
    ///
    /// # Errors
    ///
    /// When the kernel lacks that kind of device.
    pub fn change_uplink(&mut self, kind: Kind) -> Result<Option<Tunnel>> {
        match kind {
            Kind::AccessPoint => {
                self.router.nft(&format!(
                    "table netdev ap {{
                       counter strangers {{ }}
                       chain c {{
                         type filter hook ingress device wan0 priority 0;
                         ether saddr != {} counter name strangers drop;
                       }}
                     }}",
                    written(UPLINK_MAC)
                ))?;
                Ok(None)
            }
            Kind::Bridge => {
                self.host.ip("address flush dev enp3s0\n")?;
                self.host.ip("link add br0 type bridge stp_state 0 forward_delay 0\n\
                     link set enp3s0 master br0\n")?;
                self.carry("br0", "wan0").map(|()| None)
            }
            Kind::Macvlan => {
                self.host.ip("address flush dev enp3s0\n")?;
                self.host.ip("link add mv0 link enp3s0 type macvlan mode bridge\n")?;
                self.carry("mv0", "wan0").map(|()| None)
            }
            Kind::Vxlan => {
                self.lay_under()?;
                let vxlan = |local, remote, device| {
                    format!(
                        "link add vx0 type vxlan id 7 dstport 4789 local {local} remote {remote} dev {device}\n"
                    )
                };
                self.host.ip(&vxlan("192.0.2.2", "192.0.2.1", "enp3s0"))?;
                self.router.ip(&vxlan("192.0.2.1", "192.0.2.2", "wan0"))?;
                self.carry("vx0", "vx0").map(|()| None)
            }
            Kind::Tun { offloads } => {
                self.lay_under()?;
                let tunnel = Tunnel::open(&self.host, &self.router, "tun0", offloads)?;
                self.host.ip("link set tun0 mtu 1400\n")?;
                self.router.ip("link set tun0 mtu 1400\n")?;
                self.carry("tun0", "tun0")?;
                Ok(Some(tunnel))
            }
        }
    }

    /// Gives `enp3s0` and its other end addresses over which a tunnel may run, in place of those that they have.
    ///
    /// # Errors
    ///
    /// When a command fails.
    pub fn lay_under(&self) -> Result<()> {
        self.host.ip("address flush dev enp3s0\naddress add 192.0.2.2/24 dev enp3s0\n")?;
        self.router.ip("address flush dev wan0\naddress add 192.0.2.1/24 dev wan0\n")
    }

    /// Gives both addresses to the ends of another link.
    ///
    /// # Errors
    ///
    /// When a command fails.
    pub fn carry(&mut self, device: &str, routers: &str) -> Result<()> {
        self.host.ip(&format!(
            "address add {EXTERNAL}/24 dev {device}\n\
             link set {device} up\n\
             route replace default via {ROUTER} dev {device}\n"
        ))?;
        if routers != "wan0" {
            self.router.ip(&format!("address add {ROUTER}/24 dev {routers}\nlink set {routers} up\n"))?;
        }
        self.leaks = LeakWatch::new(&self.router, routers, octets(EXTERNAL)?)?;
        Ok(())
    }
}

const TUN: u16 = 0x0001;
const NO_PACKET_INFORMATION: u16 = 0x1000;
const VIRTIO_HEADER: u16 = 0x4000;
const SET_INTERFACE: libc::c_ulong = 0x4004_54ca;
const SET_OFFLOAD: libc::c_ulong = 0x4004_54d0;
/// `TUN_F_CSUM` and `TUN_F_TSO4`.
const OFFLOADS: libc::c_ulong = 1 | 2;

/// A tun in each of two namespaces, joined packet by packet, as a VPN's processes do. Both end with this value.
#[derive(Debug)]
pub struct Tunnel {
    stop: Arc<AtomicBool>,
    pump: Option<thread::JoinHandle<()>>,
}

impl Tunnel {
    /// Makes both ends, of one name, and joins them.
    ///
    /// # Errors
    ///
    /// When the kernel has no tun.
    pub fn open(one: &Namespace, other: &Namespace, name: &str, offloads: bool) -> Result<Self> {
        let mut ends = [one.run(|| tun(name, offloads))?, other.run(|| tun(name, offloads))?];
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let pump = thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                turn(&mut ends);
            }
        });
        Ok(Self { stop, pump: Some(pump) })
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(pump) = self.pump.take() {
            pump.join().ok();
        }
    }
}

/// Carries what waits at either end to the other.
fn turn(ends: &mut [File; 2]) {
    let [one, other] = ends;
    let mut waiting =
        [PollFd::new(one.as_fd(), PollFlags::POLLIN), PollFd::new(other.as_fd(), PollFlags::POLLIN)];
    poll(&mut waiting, PollTimeout::from(50_u8)).ok();
    let mut packet = vec![0; 70_000];
    for (from, to) in [(&*one, &*other), (&*other, &*one)] {
        let (mut from, mut to) = (from, to);
        // An end that is down takes nothing, as a wire does that is cut.
        while let Ok(length) = from.read(&mut packet) {
            to.write_all(packet.get(..length).unwrap_or_default()).ok();
        }
    }
}

fn tun(name: &str, offloads: bool) -> Result<File> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
    let file = file.context("/dev/net/tun")?;
    // `struct ifreq`: a name of 16 bytes, then flags; 40 bytes in all.
    let mut request = [0_u8; 40];
    for (place, byte) in request.iter_mut().take(15).zip(name.bytes()) {
        *place = byte;
    }
    let flags = TUN | NO_PACKET_INFORMATION | if offloads { VIRTIO_HEADER } else { 0 };
    request.get_mut(16..18).context("40 bytes")?.copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: the request is as large as the kernel reads, and lives through the call.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), SET_INTERFACE, request.as_mut_ptr()) };
    anyhow::ensure!(made == 0, "making {name}: {}", std::io::Error::last_os_error());
    if offloads {
        // SAFETY: this request takes a number.
        let set = unsafe { libc::ioctl(file.as_raw_fd(), SET_OFFLOAD, OFFLOADS) };
        anyhow::ensure!(set == 0, "offloads of {name}: {}", std::io::Error::last_os_error());
    }
    Ok(file)
}
