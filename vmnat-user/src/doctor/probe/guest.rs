//! The synthetic guest: a network namespace without a name, and a pair of interfaces whose one end is a port of the
//! bridge. The namespace lives as long as its thread, and the pair as long as the namespace: however this process ends, the
//! kernel takes both away.

use std::{
    fs::File,
    os::fd::AsRawFd as _,
    sync::mpsc::{Receiver, Sender, channel},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{
        InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoVeth, LinkAttribute, LinkFlags, LinkInfo,
        LinkMessage,
    },
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use nix::sched::{CloneFlags, unshare};

use crate::{
    facts::{LinkFact, PORT_FORWARDING},
    netlink, sysctl,
};

/// The interface inside.
pub(super) const INSIDE: &str = "eth0";

type Job = Box<dyn FnOnce() + Send>;

/// The guest.
#[derive(Debug)]
pub(super) struct Guest {
    /// The port's name.
    pub(super) port: String,
    /// The port's index.
    pub(super) index: u32,
    /// The guest's MAC.
    pub(super) mac: [u8; 6],
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Guest {
    /// Makes a guest at a bridge of the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel refuses; nothing is left then.
    pub(super) fn make(bridge: &LinkFact) -> Result<Self> {
        let (jobs, orders) = channel::<Job>();
        let (tell, told) = channel::<Result<File>>();
        let thread = thread::Builder::new().name("probe".into()).spawn(move || live(&tell, &orders))?;
        let namespace = told.recv().context("the probe's thread ended")??;
        let mac = mac();
        // Port names end with what tells two probes apart.
        let port = format!("vmnat-p{:02x}{:02x}{:02x}", mac[3], mac[4], mac[5]);
        let mut guest = Self { port, index: 0, mac, jobs: Some(jobs), thread: Some(thread) };
        guest.plug(bridge, &namespace)?;
        Ok(guest)
    }

    fn plug(&mut self, bridge: &LinkFact, namespace: &File) -> Result<()> {
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(INSIDE.to_owned()),
            LinkAttribute::Mtu(bridge.mtu),
            LinkAttribute::Address(self.mac.to_vec()),
            LinkAttribute::NetNsFd(namespace.as_raw_fd()),
        ];
        let mut port = LinkMessage::default();
        let mut own = self.mac;
        own[0] = 0xfe;
        port.attributes = vec![
            LinkAttribute::IfName(self.port.clone()),
            LinkAttribute::Mtu(bridge.mtu),
            // Above all others, so that the bridge does not take it for its own.
            LinkAttribute::Address(own.to_vec()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        netlink::change(RouteNetlinkMessage::NewLink(port), NLM_F_CREATE | NLM_F_EXCL)
            .with_context(|| format!("make the interface {}", self.port))?;
        self.index = nix::net::if_::if_nametoindex(self.port.as_str()).context("find the probe's port")?;
        let setting = format!("net/ipv6/conf/{}/disable_ipv6", self.port);
        if std::path::Path::new("/proc/sys").join(&setting).exists() {
            sysctl::write(&setting, "1")?;
        }
        let mut join = LinkMessage::default();
        join.header.index = self.index;
        join.header.flags = LinkFlags::Up;
        join.header.change_mask = LinkFlags::Up;
        join.attributes = vec![LinkAttribute::Controller(bridge.index)];
        netlink::change(RouteNetlinkMessage::SetLink(join), 0)
            .with_context(|| format!("make {} a port of {}", self.port, bridge.name))?;
        self.run(|| bring_up(INSIDE).and_then(|()| bring_up("lo")))??;
        Ok(())
    }

    /// Waits until the bridge forwards for the port, which the spanning tree may delay; false when it takes longer.
    pub(super) fn wait(&self, patience: Duration) -> bool {
        let since = Instant::now();
        while since.elapsed() < patience {
            if port_state(self.index) == Some(PORT_FORWARDING) {
                return true;
            }
            thread::sleep(Duration::from_millis(100));
        }
        false
    }

    /// Lets `work` run inside the guest.
    ///
    /// # Errors
    /// When the guest is gone.
    pub(super) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let (tell, told) = channel();
        let job: Job = Box::new(move || {
            // Nobody waits any more where this fails.
            let _ = tell.send(work());
        });
        let jobs = self.jobs.as_ref().ok_or_else(|| anyhow!("the guest is gone"))?;
        jobs.send(job).map_err(|_| anyhow!("the guest is gone"))?;
        told.recv().context("the guest is gone")
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if self.index != 0 {
            let mut link = LinkMessage::default();
            link.header.index = self.index;
            // It goes with its namespace in any case.
            let _ = netlink::change(RouteNetlinkMessage::DelLink(link), 0);
        }
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The guest's life: a namespace, and what it is told to do there.
fn live(tell: &Sender<Result<File>>, orders: &Receiver<Job>) {
    let made = || -> Result<File> {
        unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
        for setting in ["net/ipv6/conf/all/disable_ipv6", "net/ipv6/conf/default/disable_ipv6"] {
            // Without IPv6 there is nothing to turn off.
            let _ = sysctl::write(setting, "1");
        }
        // An offer of DHCP comes before there is an address that it could be for.
        sysctl::write("net/ipv4/conf/all/rp_filter", "0")?;
        sysctl::write("net/ipv4/conf/default/rp_filter", "0")?;
        Ok(File::open("/proc/thread-self/ns/net")?)
    };
    if tell.send(made()).is_ok() {
        for job in orders {
            job();
        }
    }
}

/// A MAC of nobody's: local, and different from one probe to the next.
fn mac() -> [u8; 6] {
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let seed = time.subsec_nanos() ^ std::process::id().rotate_left(16);
    let [_, one, two, three] = seed.to_be_bytes();
    [0x02, 0x76, 0x6d, one, two, three]
}

fn bring_up(name: &str) -> Result<()> {
    let mut up = LinkMessage::default();
    up.header.index = nix::net::if_::if_nametoindex(name).with_context(|| format!("find {name}"))?;
    up.header.flags = LinkFlags::Up;
    up.header.change_mask = LinkFlags::Up;
    netlink::change(RouteNetlinkMessage::SetLink(up), 0).with_context(|| format!("bring up {name}"))
}

fn port_state(index: u32) -> Option<u8> {
    let links = netlink::links().ok()?;
    let link = links.iter().find(|link| link.header.index == index)?;
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
            LinkInfo::PortData(InfoPortData::BridgePort(options)) => {
                options.iter().find_map(|option| match option {
                    InfoBridgePort::State(state) => Some(u8::from(*state)),
                    _ => None,
                })
            }
            _ => None,
        }),
        _ => None,
    })
}

/// Gives the calling thread's namespace an address and a way out.
///
/// # Errors
/// What the kernel answers.
pub(super) fn settle(address: [u8; 4], prefix: u8, router: [u8; 4]) -> Result<()> {
    let index = nix::net::if_::if_nametoindex(INSIDE)?;
    let own = std::net::IpAddr::from(address);
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = prefix;
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(own), AddressAttribute::Address(own)];
    netlink::change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE).context("give it an address")?;
    let mut route = RouteMessage::default();
    route.header = RouteHeader {
        address_family: AddressFamily::Inet,
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Static,
        scope: RouteScope::Universe,
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    route.attributes =
        vec![RouteAttribute::Gateway(RouteAddress::Inet(router.into())), RouteAttribute::Oif(index)];
    netlink::change(RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE).context("give it a default route")
}
