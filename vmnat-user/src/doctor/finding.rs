//! One thing that doctor has found: what it is, how bad, what shows it, whether vmnat gets past it, what mends it.

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It takes something from the guests.
    Problem,
    /// Worth knowing; it takes nothing from them at present.
    Note,
    /// As it should be.
    Fine,
}

impl Severity {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Problem => "problem",
            Self::Note => "note",
            Self::Fine => "fine",
        }
    }
}

/// Whether vmnat gets past it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Passes {
    /// It does.
    Yes,
    /// It does not.
    No,
    /// Not for all of it.
    Partly,
    /// There is nothing to get past.
    Nothing,
}

impl Passes {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::Partly => "partly",
            Self::Nothing => "nothing",
        }
    }
}

/// What it takes from the guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Takes {
    /// The world, and whatever depends on it.
    World,
    /// Addresses by DHCP.
    Addresses,
    /// Names by DNS.
    Names,
    /// Each other.
    Siblings,
    /// Callers from the world.
    Callers,
    /// Nothing, or speed.
    Nothing,
}

/// A finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// A stable word.
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// The bridge that it is about; none: the host.
    pub bridge: Option<String>,
    /// What it is, in one sentence.
    pub sentence: String,
    /// What shows it: rules, lines of files, settings.
    pub evidence: Vec<String>,
    /// What it takes from the guests.
    pub takes: Takes,
    /// Whether vmnat gets past it.
    pub vmnat: Passes,
    /// Why, or why not.
    pub vmnat_why: String,
    /// Commands that mend it without vmnat, in order.
    pub mend: Vec<String>,
    /// What the sentence says after "because"; for the verdict.
    #[serde(skip)]
    pub cause: String,
    /// Where it stands among causes: the lowest explains the most.
    #[serde(skip)]
    pub rank: u8,
}

impl Finding {
    /// A problem, to be filled in.
    #[must_use]
    pub fn problem(id: &'static str, rank: u8, takes: Takes, sentence: impl Into<String>) -> Self {
        Self::new(id, Severity::Problem, rank, takes, sentence.into())
    }

    /// A note, to be filled in.
    #[must_use]
    pub fn note(id: &'static str, sentence: impl Into<String>) -> Self {
        Self::new(id, Severity::Note, u8::MAX, Takes::Nothing, sentence.into())
    }

    /// Something that is as it should be.
    #[must_use]
    pub fn fine(id: &'static str, sentence: impl Into<String>) -> Self {
        Self::new(id, Severity::Fine, u8::MAX, Takes::Nothing, sentence.into())
    }

    const fn new(id: &'static str, severity: Severity, rank: u8, takes: Takes, sentence: String) -> Self {
        Self {
            id,
            severity,
            bridge: None,
            sentence,
            evidence: Vec::new(),
            takes,
            vmnat: Passes::Nothing,
            vmnat_why: String::new(),
            mend: Vec::new(),
            cause: String::new(),
            rank,
        }
    }

    /// What it says in the verdict, after "because".
    #[must_use]
    pub fn because(mut self, cause: impl Into<String>) -> Self {
        self.cause = cause.into();
        self
    }

    /// What shows it.
    #[must_use]
    pub fn shown_by(mut self, evidence: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.evidence.extend(evidence.into_iter().map(Into::into));
        self
    }

    /// Whether vmnat gets past it, and why.
    #[must_use]
    pub fn past(mut self, passes: Passes, why: impl Into<String>) -> Self {
        self.vmnat = passes;
        self.vmnat_why = why.into();
        self
    }

    /// What mends it.
    #[must_use]
    pub fn mended_by(mut self, commands: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.mend.extend(commands.into_iter().map(Into::into));
        self
    }

    /// The bridge that it is about.
    #[must_use]
    pub fn about(mut self, bridge: &str) -> Self {
        self.bridge = Some(bridge.to_owned());
        self
    }
}

/// Every id, with what it is about: the list of docs/doctor.md.
pub const IDS: &[(&str, &str)] = &[
    ("no-guests", "No bridge looks as if guests were behind it."),
    ("bridge-down", "The bridge is down."),
    ("bridge-without-address", "The bridge has no IPv4 address, so guests have no gateway."),
    ("no-ports", "The bridge has no port: no guest is connected."),
    ("tap-without-master", "A guest's tap or veth belongs to no bridge, as `virsh net-destroy` leaves them."),
    ("libvirt-network-inactive", "A network of libvirt is defined and does not run."),
    ("carrier-down", "The uplink, or a guest's port, has no carrier."),
    ("uplink-down", "The uplink is down."),
    ("uplink-without-address", "The uplink has no IPv4 address."),
    ("no-default-route", "There is no IPv4 default route."),
    ("uplink-without-ethernet", "The uplink carries neither Ethernet nor bare IP packets."),
    ("vpn-owns-default-route", "A tunnel has the default route beside another uplink."),
    ("ip-forward-off", "`net.ipv4.ip_forward` is 0."),
    ("conf-forwarding-off", "Forwarding is on, and off for the bridge or the uplink."),
    ("rp-filter", "A strict reverse path filter stands where it can drop what guests send or are sent."),
    (
        "rp-filter-drop",
        "The reverse path filter drops what comes from the guests, or for them: the route back is another.",
    ),
    ("br-netfilter", "`br_netfilter` shows bridged packets to the rules of IP."),
    ("forward-policy", "A chain at a hook of forwarding drops what guests send by its policy."),
    ("forward-rule", "A rule at a hook of forwarding drops or rejects what guests send."),
    ("reply-drop", "What the world answers is dropped on its way to the guests."),
    ("forward-unknown", "Whether guests' packets are forwarded depends on what cannot be judged."),
    ("forward-accepted", "The rules let guests' packets pass."),
    (
        "inbound-drop",
        "New connections from the world to guests are dropped or rejected, so port forwards of the firewall fail.",
    ),
    ("siblings-drop", "`br_netfilter` is on, and the rules of IP drop what guests send each other."),
    (
        "bridge-rules",
        "Rules of the bridge family, of ebtables or at a port's own ingress drop what a guest sends.",
    ),
    ("input-dhcp", "The host's rules drop the guests' DHCP."),
    ("input-dns", "The host's rules drop the guests' DNS to the gateway."),
    ("output-drop", "The host's rules drop its own answers to guests (DHCP or DNS)."),
    ("no-dhcp-server", "Nothing serves DHCP at the bridge."),
    ("dhcp-server-idle", "A DHCP server is configured for the bridge, and none runs."),
    ("no-gateway-dns", "Nothing answers DNS at the guests' gateway."),
    ("gateway-dns-dead", "What listens for DNS at the gateway does not answer, or fails."),
    ("resolver-dead", "A resolver of the host does not answer."),
    ("no-resolver", "The host has no resolver."),
    ("no-masquerade", "No rule translates the guests' addresses on their way to the world."),
    ("masquerade-elsewhere", "A rule translates the guests' addresses too."),
    ("double-nat", "The uplink's own address is private: somebody else translates once more."),
    ("nwfilter", "libvirt's network filter is bound to a port."),
    (
        "port-obstructed",
        "A port has rules or filters that its hook would step past, and is served by its bridge's slower hook.",
    ),
    ("isolated-port", "A port is isolated from other isolated ports."),
    ("vlan-filtering", "The bridge filters VLANs."),
    ("bandwidth", "libvirt limits the rate of the network."),
    ("stp-delay", "The spanning tree keeps new ports silent."),
    ("port-not-forwarding", "A port is not in the state of forwarding."),
    ("mtu", "MTUs of bridge, ports and uplink differ."),
    (
        "overlap",
        "Two interfaces have addresses of overlapping networks, or a route leads to the guests' network elsewhere.",
    ),
    ("firewalls-disagree", "iptables-legacy and nf_tables both hold rules."),
    ("docker-iptables", "Docker's settings say something about its rules."),
    ("ebtables-legacy", "ebtables-legacy holds tables, whose rules cannot be seen."),
    ("vmnat-not-running", "vmnat does not serve the bridge."),
    ("vmnat-serves", "vmnat serves the bridge."),
    ("agent-dead", "vmnat's agent does not run."),
    ("hooks-missing", "vmnat was asked to serve the bridge, and a hook is missing."),
    ("hidden-pins", "vmnat has a state, and its pins cannot be seen from here."),
    ("stale-pins", "Pins of vmnat are there that no running instance speaks of."),
    ("ahead-on-hook", "Another program runs before vmnat at a hook."),
    ("kernel", "The kernel cannot run vmnat, or lacks a feature."),
    ("ipv6", "IPv6 passes vmnat untouched."),
    ("not-seen", "Something could not be looked at."),
    ("probe-guest", "`--probe`: the synthetic guest could be made, or not."),
    ("probe-dhcp", "`--probe`: an address by DHCP."),
    ("probe-gateway", "`--probe`: a ping to the gateway."),
    ("probe-gateway-dns", "`--probe`: a question of DNS to the gateway."),
    ("probe-ping", "`--probe`: a ping to the world."),
    ("probe-tcp", "`--probe`: a TCP connection to the world."),
    ("probe-dns", "`--probe`: a question of DNS, by UDP, to a resolver in the world."),
    ("probe-fragments", "`--probe`: a ping of 3,000 bytes, in fragments."),
    ("probe-mtu", "`--probe`: the largest packet that the path takes whole."),
];
