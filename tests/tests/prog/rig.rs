//! A host with a bridge, two ports and an uplink, in a network namespace of the test's own thread, and the object
//! loaded into it. Nothing is attached: the tests run the programs themselves.

use std::{collections::BTreeMap, net::Ipv4Addr, ops::RangeInclusive};

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use vmnat_common::{
    Address, Endpoint, Mac, Outcome, Port, SCHEMA_VERSION,
    bridge::{BridgePort, BridgePortFlags},
    forward::{Forward, ForwardCount, place},
    lease::{Lease, LeaseFlags},
    network::{Network, NetworkFlags, NetworkKey},
    port_range::POOL_WORDS,
    quota::Quotas,
    room::Room,
    service::{ServiceKey, ServiceWay},
    settings::Settings,
    station::{Station, StationKey},
    timeout::Timeouts,
    uplink::Uplink,
};
use vmnat_tests::lab::frame::{Ends, Ipv4, Packet};
use vmnat_user::{
    dataplane::{self, LoadOptions},
    paths::Instance,
    tables::Tables,
};

pub const BRIDGE: u32 = 10;
pub const PORT1: u32 = 11;
pub const PORT2: u32 = 12;
pub const UPLINK: u32 = 20;
pub const OTHER_BRIDGE: u32 = 13;
pub const ROOM_INNER: u32 = 21;
pub const ROOM_OUTER: u32 = 31;
pub const ROOM_REFUSING: u32 = 32;

pub const BRIDGE_MAC: [u8; 6] = [0x52, 0x54, 0, 0xbb, 0, 1];
pub const GUEST1_MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 0x10];
pub const GUEST2_MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 0x11];
pub const UPLINK_MAC: [u8; 6] = [0x52, 0x54, 0, 0xee, 0, 2];
pub const ROUTER_MAC: [u8; 6] = [0x52, 0x54, 0, 0xee, 0, 1];

pub const GATEWAY: [u8; 4] = [192, 168, 122, 1];
pub const GUEST1: [u8; 4] = [192, 168, 122, 10];
pub const GUEST2: [u8; 4] = [192, 168, 122, 11];
pub const EXTERNAL: [u8; 4] = [203, 0, 113, 2];
pub const SERVER: [u8; 4] = [198, 51, 100, 10];
pub const OTHER_SERVER: [u8; 4] = [198, 51, 100, 20];

/// tc's codes: go on, drop, redirect.
pub const PASS: i32 = -1;
pub const DROP: i32 = 2;
pub const REDIRECT: i32 = 7;

/// Flows that the rig's table holds.
pub const FLOWS: u32 = 512;

const TOPOLOGY: &str = "\
link set lo up
link add virbr0 index 10 address 52:54:00:bb:00:01 type bridge stp_state 0
link add vnet1 index 11 type veth peer name g1 index 31
link add vnet2 index 12 type veth peer name g2 index 32
link add virbr1 index 13 address 52:54:00:bb:00:02 type bridge stp_state 0
link add enp3s0 index 20 address 52:54:00:ee:00:02 type veth peer name wan index 40
link add vpn0 index 21 type veth peer name vpn1 index 41
link set vnet1 master virbr0 up
link set vnet2 master virbr0 up
link set g1 up
link set g2 up
link set wan up
link set vpn1 up
link set virbr0 up
link set virbr1 up
link set enp3s0 up
link set vpn0 up
address add 192.168.122.1/24 dev virbr0
address add 192.168.123.1/24 dev virbr1
address add 203.0.113.2/24 dev enp3s0
address add 10.9.0.1/24 dev vpn0
route add default via 203.0.113.1
route add blackhole 198.18.0.0/15
neighbour add 203.0.113.1 lladdr 52:54:00:ee:00:01 dev enp3s0 nud permanent
neighbour add 192.168.122.10 lladdr 52:54:00:00:00:10 dev virbr0 nud permanent
";

/// The rig.
pub struct Rig {
    pub tables: Tables,
    instance: Instance,
    programs: BTreeMap<&'static str, SchedClassifier>,
    before: [u64; Outcome::COUNT as usize],
}

/// What a run gave.
pub struct Ran {
    pub code: i32,
    pub frame: Vec<u8>,
    /// The one outcome that was counted.
    pub outcome: Outcome,
}

impl Ran {
    /// The frame as an IPv4 packet, every checksum of which must be right.
    pub fn packet(&self) -> Ipv4 {
        let packet = Ipv4::parse(&self.frame).expect("an IPv4 frame");
        assert!(packet.header_is_sound, "IPv4 checksum");
        assert!(packet.body_is_sound, "transport checksum");
        packet
    }
}

impl Rig {
    /// Makes the host and loads the object.
    pub fn new() -> Self {
        isolate();
        let instance = Instance::default();
        dataplane::load(&instance, LoadOptions { flows: FLOWS, kernel_log: false })
            .expect("the object loads");
        let tables = Tables::open(&instance).expect("the maps open");
        let mut rig =
            Self { tables, instance, programs: BTreeMap::new(), before: [0; Outcome::COUNT as usize] };
        rig.fill();
        rig
    }

    fn fill(&mut self) {
        let hertz = self.tables.find_hertz().expect("the clock ticks");
        self.settings(|settings| {
            *settings = Settings {
                schema: SCHEMA_VERSION,
                generation: 0,
                epoch_shift: Settings::epoch_shift_for(hertz),
                hertz,
                secret: [0x1234_5678, 0x9abc_def0],
                pool_first: 1024,
                pool_last: u16::MAX,
                timeouts: Timeouts::SECONDS.in_jiffies(hertz),
                netns_cookie: 0,
                room: Room::default(),
                quotas: Quotas::NONE,
            };
        });
        for word in 0..POOL_WORDS {
            self.tables.port_pool.set(&word, &u64::MAX).unwrap();
        }
        self.network([192, 168, 122, 0], BRIDGE, GATEWAY);
        self.network([192, 168, 123, 0], OTHER_BRIDGE, [192, 168, 123, 1]);
        self.port(BRIDGE, BridgePortFlags::IS_BRIDGE);
        self.port(PORT1, BridgePortFlags::DIRECT);
        self.port(PORT2, BridgePortFlags::DIRECT);
        let uplink =
            Uplink { address: EXTERNAL.into_address(), mtu: 1500, mac: Mac::new(UPLINK_MAC), flags: 0 };
        self.tables.uplink.set(&UPLINK, &uplink).unwrap();
    }

    /// Changes the settings.
    pub fn settings(&self, change: impl FnOnce(&mut Settings)) {
        let mut settings = self.tables.settings().unwrap();
        change(&mut settings);
        self.tables.set_settings(&settings).unwrap();
    }

    /// Changes the uplink.
    pub fn uplink(&self, change: impl FnOnce(&mut Uplink)) {
        let mut uplink = self.tables.uplink.get(&UPLINK).unwrap().unwrap();
        change(&mut uplink);
        self.tables.uplink.set(&UPLINK, &uplink).unwrap();
    }

    /// Says what kind of port an interface is.
    pub fn port(&self, index: u32, flags: u32) {
        let port = BridgePort { bridge: BRIDGE, mac: Mac::new(BRIDGE_MAC), mtu: 1500, flags };
        self.tables.bridge_port.set(&index, &port).unwrap();
    }

    /// Opens a port forward of the external address beside those that are open; returns its number.
    pub fn forward(&self, protocol: u8, port: u16, guest: [u8; 4], guest_port: u16) -> u32 {
        self.forward_range(protocol, port..=port, guest, guest_port)
    }

    /// Opens a port forward of a range of ports.
    pub fn forward_range(
        &self,
        protocol: u8,
        ports: RangeInclusive<u16>,
        guest: [u8; 4],
        guest_port: u16,
    ) -> u32 {
        let external = Endpoint::new(EXTERNAL.into_address(), Port::new(*ports.start()));
        let mut forwards = self.tables.forwards().unwrap();
        let id = u32::try_from(forwards.len()).unwrap() + 1;
        forwards.push(Forward {
            first: place(protocol, external),
            address: guest.into_address(),
            port: Port::new(guest_port),
            span: ports.end() - ports.start(),
            id,
            bridge: BRIDGE,
            expires: 0,
            flags: 0,
        });
        self.set_forwards(forwards);
        id
    }

    /// Replaces the port forwards.
    pub fn set_forwards(&self, mut forwards: Vec<Forward>) {
        forwards.sort_by_key(|forward| forward.first);
        for forward in &forwards {
            self.tables.forward_count.insert(&forward.id, &ForwardCount::default()).unwrap();
        }
        self.tables.set_forwards(&forwards).unwrap();
    }

    /// Writes a lease of a guest.
    pub fn lease(&self, guest: [u8; 4], mac: [u8; 6], port: u32) {
        let lease = Lease { port, bridge: BRIDGE, mac: Mac::new(mac), flags: 0, last_seen: 0 };
        self.tables.lease.set(&guest.into_address(), &lease).unwrap();
    }

    /// Says that an address was given to a guest, with further flags of the lease.
    pub fn bind(&self, guest: [u8; 4], mac: [u8; 6], port: u32, flags: u16) {
        let flags = LeaseFlags::BOUND | flags;
        let lease = Lease { port, bridge: BRIDGE, mac: Mac::new(mac), flags, last_seen: 0 };
        self.tables.lease.set(&guest.into_address(), &lease).unwrap();
    }

    /// Lets guests use the addresses alone that were given to them.
    pub fn strict(&self) {
        self.port(BRIDGE, BridgePortFlags::IS_BRIDGE | BridgePortFlags::STRICT);
        self.port(PORT1, BridgePortFlags::DIRECT | BridgePortFlags::STRICT);
        self.port(PORT2, BridgePortFlags::DIRECT | BridgePortFlags::STRICT);
    }

    /// Says behind which port a station of the bridge is.
    pub fn station(&self, mac: [u8; 6], port: u32) {
        self.tables.station.set(&StationKey::new(BRIDGE, Mac::new(mac)), &Station { port }).unwrap();
    }

    fn network(&self, first: [u8; 4], bridge: u32, gateway: [u8; 4]) {
        let key = NetworkKey { prefix: 24, address: first.into_address() };
        let network = Network { bridge, gateway: gateway.into_address(), flags: 0 };
        self.tables.network.set(&key, &network).unwrap();
    }

    /// Says that there is a quiet room. Its interfaces are two of the topology's; nothing is sent by them.
    pub fn room(&self) {
        self.settings(|settings| {
            settings.room =
                Room { inner: ROOM_INNER, outer: ROOM_OUTER, refusing: ROOM_REFUSING, reserved: 0 };
        });
    }

    /// Opens a service of the guests' gateway.
    pub fn service(&self, protocol: u8, port: u16, way: ServiceWay) {
        let key = ServiceKey::new(BRIDGE, GATEWAY.into_address(), protocol, Port::new(port));
        self.tables.service.set(&key, &way.value()).unwrap();
    }

    /// Closes the guests' mappings to all who were not asked.
    pub fn closed_to_strangers(&self) {
        self.network([192, 168, 122, 0], BRIDGE, GATEWAY);
    }

    /// Opens the guests' mappings to everybody.
    pub fn open_to_all(&self) {
        let key = NetworkKey { prefix: 24, address: [192, 168, 122, 0].into_address() };
        let network =
            Network { bridge: BRIDGE, gateway: GATEWAY.into_address(), flags: NetworkFlags::OPEN_TO_ALL };
        self.tables.network.set(&key, &network).unwrap();
    }

    /// Entries of the flow table, both sides.
    pub fn flows(&self) -> usize {
        self.tables.flow.entries().unwrap().len()
    }

    /// Entries of the mapping table, both ends.
    pub fn mappings(&self) -> usize {
        self.tables.mapping.entries().unwrap().len()
    }

    /// Runs a program on a frame as if it had come in on (or was about to leave by) the interface.
    pub fn run(&mut self, program: &'static str, interface: u32, frame: &[u8]) -> Ran {
        self.run_segmented(program, interface, frame, 0)
    }

    /// The same for a frame that will be cut into segments of that many bytes.
    pub fn run_segmented(
        &mut self,
        program: &'static str,
        interface: u32,
        frame: &[u8],
        gso_size: u32,
    ) -> Ran {
        let instance = &self.instance;
        let classifier = self.programs.entry(program).or_insert_with(|| {
            SchedClassifier::from_pin(instance.program(program)).expect("the program is pinned")
        });
        let context = context(interface, gso_size);
        let mut out = vec![0; frame.len() + 64];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        };
        let result = classifier.test_run(options).expect("the kernel runs the program");
        out.truncate(result.data_size_out as usize);
        let code = result.return_value.cast_signed();
        Ran { code, frame: out, outcome: self.counted() }
    }

    /// Does without what was counted since the last look, after a run that was not looked at.
    pub fn forget_counts(&mut self) {
        self.before = self.tables.outcomes().unwrap();
    }

    /// The one outcome that was counted since the last look.
    fn counted(&mut self) -> Outcome {
        let now = self.tables.outcomes().unwrap();
        let moved: Vec<_> = Outcome::ALL
            .iter()
            .map(|outcome| (*outcome, now[outcome.index() as usize] - self.before[outcome.index() as usize]))
            .filter(|(_, by)| *by != 0)
            .collect();
        self.before = now;
        let [(outcome, 1)] = moved[..] else { panic!("one run must count one outcome, not {moved:?}") };
        outcome
    }
}

/// `struct __sk_buff` with the fields that `BPF_PROG_TEST_RUN` takes from us; offsets from include/uapi/linux/bpf.h.
fn context(interface: u32, gso_size: u32) -> [u8; 192] {
    let mut context = [0; 192];
    context[40..44].copy_from_slice(&interface.to_ne_bytes());
    context[176..180].copy_from_slice(&gso_size.to_ne_bytes());
    context
}

/// Gives this thread a network namespace with the topology, and a BPF file system of its own.
pub fn isolate() {
    let flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS;
    unshare(flags).expect("namespaces (root is needed)");
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none).expect("a bpffs");
    std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").ok();
    let mut ip = std::process::Command::new("ip")
        .args(["-batch", "-"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .expect("iproute2 is installed");
    std::io::Write::write_all(&mut ip.stdin.take().unwrap(), TOPOLOGY.as_bytes()).unwrap();
    assert!(ip.wait().unwrap().success(), "the topology");
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
    std::fs::write("/proc/sys/net/ipv4/conf/virbr0/forwarding", "1").unwrap();
}

/// Shorter to write than a conversion with two types named.
pub trait IntoAddress {
    /// The address of these octets.
    fn into_address(self) -> Address;
}

impl IntoAddress for [u8; 4] {
    fn into_address(self) -> Address {
        Address::from(Ipv4Addr::from(self))
    }
}

/// From guest 1 to the world.
pub fn from_guest1(to: [u8; 4]) -> Ends {
    Ends { from_mac: GUEST1_MAC, to_mac: BRIDGE_MAC, source: GUEST1, destination: to }
}

/// From guest 2 to the world.
pub fn from_guest2(to: [u8; 4]) -> Ends {
    Ends { from_mac: GUEST2_MAC, to_mac: BRIDGE_MAC, source: GUEST2, destination: to }
}

/// From the world to the external address.
pub fn from_world(from: [u8; 4]) -> Ends {
    Ends { from_mac: ROUTER_MAC, to_mac: UPLINK_MAC, source: from, destination: EXTERNAL }
}

/// A UDP datagram of guest 1 from port 5000 to the server's port 7.
pub fn question() -> Packet {
    Packet::udp(from_guest1(SERVER), 5000, 7, b"question")
}
