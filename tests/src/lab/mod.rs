//! The lab: guests, the VM host, a router and the world, each in a namespace of its own.
//!
//! A lab also has its own `/sys/fs/bpf`, `/run`, `/var/lib` and `/etc`, in a mount namespace of the thread that made it, so
//! vmnat's pins, state, port forwards and agent of one lab are out of reach of all others and of the machine.

pub mod busy_guest;
pub mod client;
pub mod dhcp;
pub mod dnsmasq;
pub mod firewall;
pub mod frame;
pub mod iperf;
mod machine;
pub mod namespace;
pub mod offload;
pub mod patience;
pub mod resolver;
pub mod second_uplink;
pub mod service;
pub mod snapshot;
pub mod stun;
pub mod traffic;
pub mod uplink;
pub mod vmnat;
pub mod watch;
pub mod wireguard;

use std::{
    fmt::Write as _,
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};

use frame::{Ends, Mac};
use machine::Mounts;
pub use machine::end_own_processes;
use namespace::Namespace;
use patience::patiently;
use service::{ECHO, HTTP, Service};
use watch::{KernelLog, LeakWatch};

/// The bridge's own address, the guests' gateway.
pub const GATEWAY: &str = "192.168.122.1";
/// The external address.
pub const EXTERNAL: &str = "203.0.113.2";
/// The router's address on the uplink's side.
pub const ROUTER: &str = "203.0.113.1";
/// The main server of the world.
pub const SERVER: &str = "198.51.100.10";
/// A second server of the world, where names are asked.
pub const RESOLVER: &str = "198.51.100.53";
/// A third address of the world, for callers.
pub const STRANGER: &str = "198.51.100.99";
/// The TCP and UDP echo of [`SERVER`].
pub const SERVER_ECHO: &str = "198.51.100.10:7000";
/// The HTTP server of [`SERVER`].
pub const SERVER_HTTP: &str = "198.51.100.10:80";
/// The TCP and UDP echo of the host, as guests call it.
pub const GATEWAY_ECHO: &str = "192.168.122.1:7000";

/// The identifier of the host's own pings, which no guest uses.
const HOSTS_IDENTIFIER: u16 = 0x7e57;

/// MAC of the bridge.
pub const BRIDGE_MAC: Mac = [0x52, 0x54, 0x00, 0xbb, 0x00, 0x01];
/// MAC of the uplink.
pub const UPLINK_MAC: Mac = [0x52, 0x54, 0x00, 0xee, 0x00, 0x02];
/// MAC of the router on the uplink's side.
pub const ROUTER_MAC: Mac = [0x52, 0x54, 0x00, 0xee, 0x00, 0x01];

/// The address of guest `number`, counted from 1.
#[must_use]
pub fn guest_address(number: usize) -> String {
    format!("192.168.122.{}", 9 + number)
}

/// The MAC of guest `number`, counted from 1.
#[must_use]
pub fn guest_mac(number: usize) -> Mac {
    [0x52, 0x54, 0, 0, 0, u8::try_from(0x0f + number).unwrap_or(0xff)]
}

/// What a lab is like before vmnat comes.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a setting of its own, on or off")]
pub struct Setup {
    /// Number of guests.
    pub guests: usize,
    /// MTU of the uplink.
    pub uplink_mtu: u32,
    /// Whether the host's uplink and the router leave checksums to the receiver. Off, so that peers verify what
    /// arrives; on for the speed of real offloads.
    pub offloads: bool,
    /// `net.ipv4.ip_forward`.
    pub ip_forward: bool,
    /// `net.ipv4.conf.all.rp_filter`.
    pub rp_filter: u8,
    /// `net.bridge.bridge-nf-call-iptables`.
    pub br_netfilter: bool,
    /// Whether there is a bridge; otherwise whoever uses the lab makes one, and the guests too.
    pub bridge: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            guests: 2,
            uplink_mtu: 1500,
            offloads: false,
            ip_forward: false,
            rp_filter: 0,
            br_netfilter: false,
            bridge: true,
        }
    }
}

/// A lab. It is taken down when the value goes.
#[derive(Debug)]
pub struct Lab {
    /// The guests, in order.
    pub guests: Vec<Namespace>,
    /// The VM host.
    pub host: Namespace,
    /// The router.
    pub router: Namespace,
    /// The world.
    pub world: Namespace,
    /// Catches foreign sources behind the uplink.
    pub leaks: LeakWatch,
    log: KernelLog,
    services: Vec<Service>,
    is_sound: bool,
    _mounts: Mounts,
}

impl Lab {
    /// Two guests, everything plain.
    ///
    /// # Errors
    ///
    /// When the machine lacks something: root, a program, a kernel feature.
    pub fn new() -> Result<Self> {
        Self::with(Setup::default())
    }

    /// A lab that differs from the plain one.
    ///
    /// # Errors
    ///
    /// As [`Lab::new`].
    pub fn with(setup: Setup) -> Result<Self> {
        machine::require_root()?;
        machine::end_leftovers();
        machine::raise_descriptor_limit();
        let mounts = Mounts::new()?;
        let log = KernelLog::from_here()?;
        let host = Namespace::new("host")?;
        let router = Namespace::new("router")?;
        let world = Namespace::new("world")?;
        connect_world(&host, &router, &world, setup)?;
        let leaks = LeakWatch::new(&router, "wan0", EXTERNAL.parse::<Ipv4Addr>()?.octets())?;
        let services = Vec::new();
        let guests = Vec::new();
        let mut lab =
            Self { guests, host, router, world, leaks, log, services, is_sound: false, _mounts: mounts };
        lab.settle(setup)?;
        if setup.bridge {
            lab.make_bridge(setup)?;
        }
        for _ in 0..setup.guests {
            lab.add_guest()?;
        }
        lab.serve()?;
        Ok(lab)
    }

    fn make_bridge(&mut self, setup: Setup) -> Result<()> {
        let mac = written(BRIDGE_MAC);
        self.host.ip(&format!(
            "link add virbr0 address {mac} type bridge stp_state 0 forward_delay 0\n\
             address add {GATEWAY}/24 dev virbr0\n\
             link set virbr0 up\n"
        ))?;
        self.host.set_sysctl("net/ipv4/conf/virbr0/rp_filter", &setup.rp_filter.to_string())?;
        self.services.push(Service::udp_echo(&self.host, GATEWAY_ECHO)?);
        Ok(())
    }

    /// A new namespace may inherit the machine's settings, so each is said.
    fn settle(&self, setup: Setup) -> Result<()> {
        for scope in ["all", "default", "enp3s0"] {
            self.host
                .set_sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), &setup.rp_filter.to_string())?;
        }
        self.host.set_sysctl("net/ipv4/ip_forward", if setup.ip_forward { "1" } else { "0" })?;
        self.set_br_netfilter(setup.br_netfilter)
    }

    /// Turns `br_netfilter` on or off; on needs a kernel that has it, off does not.
    ///
    /// # Errors
    ///
    /// When it is to be on and the kernel has none.
    pub fn set_br_netfilter(&self, on: bool) -> Result<()> {
        let set = self.host.set_sysctl("net/bridge/bridge-nf-call-iptables", if on { "1" } else { "0" });
        if on { set.context("br_netfilter is not loaded") } else { Ok(()) }
    }

    /// Adds a guest to the bridge and returns its number, counted from 1.
    ///
    /// # Errors
    ///
    /// When a command fails.
    pub fn add_guest(&mut self) -> Result<usize> {
        let number = self.guests.len() + 1;
        let guest = Namespace::new(&format!("guest{number}"))?;
        self.host.ip(&format!(
            "link add vnet{number} type veth peer name eth0 address {} netns {}\n\
             link set vnet{number} master virbr0 up\n",
            written(guest_mac(number)),
            guest.path(),
        ))?;
        guest.ip(&format!(
            "link set lo up\n\
             address add {}/24 dev eth0\n\
             link set eth0 up\n\
             route add default via {GATEWAY}\n",
            guest_address(number),
        ))?;
        self.take_in(guest, &guest_address(number))?;
        Ok(number)
    }

    /// Makes a namespace whose address is set a guest of the lab: it is watched, and it serves.
    ///
    /// # Errors
    ///
    /// When the address is not its own.
    pub fn take_in(&mut self, guest: Namespace, address: &str) -> Result<()> {
        watch::watch_invalid(&guest)?;
        self.services.push(Service::tcp_echo(&guest, &format!("0.0.0.0:{ECHO}"))?);
        self.services.push(Service::udp_echo(&guest, &format!("{address}:{ECHO}"))?);
        self.services.push(Service::http(&guest, &format!("0.0.0.0:{HTTP}"))?);
        self.guests.push(guest);
        Ok(())
    }

    fn serve(&mut self) -> Result<()> {
        let (host, world) = (&self.host, &self.world);
        self.services.push(Service::tcp_echo(host, &format!("0.0.0.0:{ECHO}"))?);
        self.services.push(Service::tcp_echo(world, &format!("0.0.0.0:{ECHO}"))?);
        self.services.push(Service::http(world, &format!("0.0.0.0:{HTTP}"))?);
        for address in [SERVER, RESOLVER, STRANGER] {
            self.services.push(Service::udp_echo(world, &format!("{address}:{ECHO}"))?);
        }
        self.services.push(Service::names(world, &format!("{RESOLVER}:53"))?);
        watch::watch_invalid(world)
    }

    /// Guest `number`, counted from 1.
    ///
    /// # Errors
    ///
    /// When there is none of that number.
    pub fn guest(&self, number: usize) -> Result<&Namespace> {
        self.guests.get(number.wrapping_sub(1)).with_context(|| format!("no guest {number} in this lab"))
    }

    /// The ends of a raw frame that guest `number` sends by way of its gateway.
    ///
    /// # Errors
    ///
    /// When `to` is no address.
    pub fn outbound_ends(&self, number: usize, to: &str) -> Result<Ends> {
        Ok(Ends {
            from_mac: guest_mac(number),
            to_mac: BRIDGE_MAC,
            source: octets(&guest_address(number))?,
            destination: octets(to)?,
        })
    }

    /// The ends of a raw frame that the router puts on the uplink.
    ///
    /// # Errors
    ///
    /// When one of them is no address.
    pub fn inbound_ends(&self, from: &str, to: &str) -> Result<Ends> {
        Ok(Ends { from_mac: ROUTER_MAC, to_mac: UPLINK_MAC, source: octets(from)?, destination: octets(to)? })
    }

    /// Asserts what holds whatever a test is about: no foreign source behind the uplink, no damaged packet at any
    /// end, nothing invalid to the ends' connection tracking, the host's own traffic, a calm kernel.
    ///
    /// # Errors
    ///
    /// When one of them does not hold.
    pub fn assert_invariants(&mut self) -> Result<()> {
        for end in self.guests.iter().chain([&self.world]) {
            let invalid = watch::invalid_packets(end)?;
            ensure!(
                invalid == 0,
                "{invalid} packets are invalid to the connection tracking of {}",
                end.name()
            );
        }
        self.assert_sound_but_for_invalid_packets()
    }

    /// The invariants without the ends' connection tracking, for tests that forge what no tracking calls valid.
    ///
    /// # Errors
    ///
    /// When one of them does not hold.
    pub fn assert_sound_but_for_invalid_packets(&mut self) -> Result<()> {
        self.assert_host_reaches_the_world()?;
        self.leaks.assert_none()?;
        let ends = self.guests.iter().chain([&self.world, &self.host]);
        let damaged: Vec<String> = ends.flat_map(watch::damaged_packets).collect();
        ensure!(damaged.is_empty(), "packets arrived damaged: {}", damaged.join(", "));
        self.log.assert_calm()?;
        self.is_sound = true;
        Ok(())
    }

    /// Says that whoever uses the lab reports for itself, so that its end is no occasion for a dump.
    pub fn keep_quiet(&mut self) {
        self.is_sound = true;
    }

    /// Asserts that the host's own TCP, UDP and ping work beside the guests'.
    ///
    /// # Errors
    ///
    /// When they do not.
    pub fn assert_host_reaches_the_world(&self) -> Result<()> {
        client::converse(&self.host, SERVER_ECHO).context("the host's own TCP")?;
        client::ask(&self.host, SERVER_ECHO).context("the host's own UDP")?;
        client::ping_as(&self.host, HOSTS_IDENTIFIER, SERVER, client::PATIENCE)
            .context("the host's own ping")
            .map(drop)
    }

    /// What vmnat says about itself, for whoever reads of a failed test.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for listing in [&["status"][..], &["counters"], &["flows"], &["leases"], &["logs"]] {
            let printed = self.vmnat(listing).map(|output| {
                String::from_utf8_lossy(&output.stdout).into_owned()
                    + &String::from_utf8_lossy(&output.stderr)
            });
            let printed = printed.unwrap_or_else(|error| format!("{error:#}"));
            let lines = printed.lines().filter(|line| !line.trim().ends_with(" 0")).take(60);
            writeln!(text, "--- vmnat {}", listing.join(" ")).ok();
            lines.for_each(|line| {
                writeln!(text, "{line}").ok();
            });
        }
        text
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.is_sound {
            eprintln!("{}", self.describe());
        }
        if let Ok(agent) = self.agent() {
            kill(agent, Signal::SIGKILL).ok();
        }
    }
}

fn connect_world(host: &Namespace, router: &Namespace, world: &Namespace, setup: Setup) -> Result<()> {
    let Setup { uplink_mtu, offloads, .. } = setup;
    let (uplink, wan) = (written(UPLINK_MAC), written(ROUTER_MAC));
    router.ip(&format!(
        "link set lo up\n\
         link add wan0 address {wan} mtu {uplink_mtu} type veth peer name enp3s0 address {uplink} mtu {uplink_mtu} netns {}\n\
         link add lan0 type veth peer name eth0 netns {}\n\
         address add {ROUTER}/24 dev wan0\n\
         address add 198.51.100.1/24 dev lan0\n\
         link set wan0 up\n\
         link set lan0 up\n",
        host.path(),
        world.path(),
    ))?;
    router.set_sysctl("net/ipv4/ip_forward", "1")?;
    host.ip(&format!(
        "link set lo up\n\
         address add {EXTERNAL}/24 dev enp3s0\n\
         link set enp3s0 up\n\
         route add default via {ROUTER}\n"
    ))?;
    world.ip(&format!(
        "link set lo up\n\
         address add {SERVER}/24 dev eth0\n\
         address add {RESOLVER}/24 dev eth0\n\
         address add {STRANGER}/24 dev eth0\n\
         link set eth0 up\n\
         route add default via 198.51.100.1\n"
    ))?;
    if !offloads {
        set_offloads(host, "enp3s0", "off")?;
        set_offloads(router, "wan0", "off")?;
    }
    Ok(())
}

/// Turns checksum and segmentation offloads of an interface `on` or `off`, so that its peer verifies checksums.
///
/// # Errors
///
/// When ethtool is missing.
pub fn set_offloads(namespace: &Namespace, interface: &str, state: &str) -> Result<()> {
    namespace.exec(&["ethtool", "-K", interface, "tx", state, "tso", state, "gso", state]).map(drop)
}

/// The bytes of an IPv4 address.
///
/// # Errors
///
/// When it is none.
pub fn octets(address: &str) -> Result<[u8; 4]> {
    Ok(address.parse::<Ipv4Addr>().with_context(|| format!("address {address}"))?.octets())
}

/// A MAC as `ip` takes it.
#[must_use]
pub fn written(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Polls until `holds`, for conditions that another process brings about.
///
/// # Errors
///
/// When it does not hold within `patience`, or asking fails.
pub fn wait_until(what: &str, patience: Duration, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let patience = patiently(patience);
    let deadline = Instant::now() + patience;
    while !holds().with_context(|| format!("waiting until {what}"))? {
        ensure!(Instant::now() < deadline, "waited {patience:?} in vain until {what}");
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
