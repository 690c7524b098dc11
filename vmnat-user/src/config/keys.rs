//! Every option that a configuration has, declared once.
//!
//! A new option of `up` is one entry of [`STATE_KEYS`] (of the instance) or [`BRIDGE_KEYS`] (of a bridge), a new option of
//! `dnat add` one of [`DRAFT_KEYS`].

mod values;

use ipnet::Ipv4Net;

use self::values::{
    absolute, bindings, filtering, hook, interface, moment, network, optional, resolver, rules, services,
    set_bindings, set_bridges, set_externals, set_rules, set_timeout, small, timeout_of, written_moment,
};
use super::key::{Access, Key, Scalar, Scope, flag, number, text};
use crate::{
    access::{Direction, Verb},
    forwards::{ForwardSpec, read_source},
    services::ServiceList,
    state::{Bridge, HookMode, State},
};

/// The least that a flow table is made for.
const LEAST_FLOWS: u64 = 1_024;

/// The most flows that a table can be made for.
const MOST_FLOWS: u64 = 16_777_216;

/// An option with one value.
macro_rules! one {
    ($name:literal, $about:literal, $get:expr, $set:expr) => {
        Key {
            name: $name,
            about: $about,
            example: "",
            fixed: false,
            access: Access::One { get: $get, set: $set },
        }
    };
}

/// An option with a list of texts.
macro_rules! many {
    ($name:literal, $about:literal, $example:literal, $get:expr, $set:expr) => {
        Key {
            name: $name,
            about: $about,
            example: $example,
            fixed: false,
            access: Access::Many { get: $get, set: $set },
        }
    };
}

/// Options of an instance.
pub(crate) const STATE_KEYS: &[Key<State>] = &[
    many!(
        "bridge",
        "Bridges whose guests are served, a table each",
        "",
        |state| state.bridges.iter().map(|bridge| bridge.name.clone()).collect(),
        set_bridges
    ),
    many!(
        "uplink",
        "Interfaces to the world; without any, that of the default route is followed",
        "[\"enp3s0\"]",
        |state| state.uplinks.clone(),
        |state, names| {
            state.uplinks = names.iter().map(|name| interface(name)).collect::<Result<_, _>>()?;
            Ok(())
        }
    ),
    many!(
        "no-nat",
        "Destinations that guests reach without translation",
        "[\"10.8.0.0/16\"]",
        |state| state.untranslated.iter().map(ToString::to_string).collect(),
        |state, networks| {
            state.untranslated = networks.iter().map(|text| network(text)).collect::<Result<_, _>>()?;
            Ok(())
        }
    ),
    many!(
        "external",
        "As which address of an uplink guests are seen, instead of its primary one",
        "[\"enp3s0=203.0.113.7\"]",
        |state| state.externals.iter().map(|(uplink, address)| format!("{uplink}={address}")).collect(),
        set_externals
    ),
    many!(
        "allow",
        "What guests may reach: [BRIDGE=]NETWORK[:PORT[-PORT]][/PROTOCOL]; the longest prefix that matches wins",
        "[\"192.168.1.0/24:443/tcp\"]",
        |state| rules(state, Verb::Allow, Direction::To),
        |state, list| set_rules(state, Verb::Allow, Direction::To, list)
    ),
    many!(
        "deny",
        "What guests may not reach",
        "[\"192.168.0.0/16\"]",
        |state| rules(state, Verb::Deny, Direction::To),
        |state, list| set_rules(state, Verb::Deny, Direction::To, list)
    ),
    many!(
        "allow-from",
        "Who may call guests, through a port forward or an open mapping",
        "[\"198.51.100.0/24\"]",
        |state| rules(state, Verb::Allow, Direction::From),
        |state, list| set_rules(state, Verb::Allow, Direction::From, list)
    ),
    many!(
        "deny-from",
        "Who may not call guests",
        "[\"198.51.100.0/28\"]",
        |state| rules(state, Verb::Deny, Direction::From),
        |state, list| set_rules(state, Verb::Deny, Direction::From, list)
    ),
    one!(
        "pool",
        "External ports from which guests get theirs, without those that the host may use itself",
        |state, _| Scalar::Text(state.pool.to_string()),
        |state, _, value| {
            state.pool = text(value)?.parse()?;
            Ok(())
        }
    ),
    one!(
        "guest-flows",
        "Flows that one guest may have; 0: no limit",
        |state, _| Scalar::Number(state.quotas.flows.into()),
        |state, _, value| {
            state.quotas.flows = small(number(value, 0, MOST_FLOWS)?);
            Ok(())
        }
    ),
    one!(
        "guest-half-open",
        "Half-open TCP flows that one guest may have; 0: no limit",
        |state, _| Scalar::Number(state.quotas.half_open.into()),
        |state, _, value| {
            state.quotas.half_open = small(number(value, 0, MOST_FLOWS)?);
            Ok(())
        }
    ),
    one!(
        "guest-rate",
        "New flows a second that one guest may open, on average; 0: no limit",
        |state, _| Scalar::Number(state.quotas.rate.into()),
        |state, _, value| {
            state.quotas.rate = small(number(value, 0, MOST_FLOWS)?);
            Ok(())
        }
    ),
    one!(
        "guest-burst",
        "New flows that one guest may open at once after a rest",
        |state, _| Scalar::Number(state.quotas.burst.into()),
        |state, _, value| {
            state.quotas.burst = small(number(value, 1, MOST_FLOWS)?);
            Ok(())
        }
    ),
    many!(
        "lease-file",
        "Lease files (dnsmasq's, or libvirt's status) to look up names of guests in, before those that are known",
        "[\"/var/lib/misc/dnsmasq.leases\"]",
        |state| state.lease_files.iter().map(|file| file.display().to_string()).collect(),
        |state, files| {
            state.lease_files = files.iter().map(|file| absolute(file)).collect::<Result<_, _>>()?;
            Ok(())
        }
    ),
    many!(
        "bind",
        "Addresses given to guests before what any other source says, as `vmnat leases bind` does: ADDRESS=MAC[@PORT]",
        "[\"192.168.122.10=52:54:00:12:34:56\"]",
        bindings,
        set_bindings
    ),
    Key {
        fixed: true,
        ..one!(
            "flows",
            "Flows that the table holds; stays as it is until `vmnat down`",
            |state, _| Scalar::Number(state.flows.into()),
            |state, _, value| {
                state.flows = small(number(value, LEAST_FLOWS, MOST_FLOWS)?);
                Ok(())
            }
        )
    },
    Key {
        fixed: true,
        ..one!(
            "hook",
            "How to attach the programs, \"tcx\" or \"clsact\"; without it tcx where the kernel has it.\nStays as it is until `vmnat down`",
            |state, _| Scalar::Text(state.hook.name().to_owned()),
            |state, _, value| {
                state.hook = hook(text(value)?)?;
                Ok(())
            }
        )
    },
    one!(
        "kernel-log",
        "Let the programs log to the agent's log; slow, for the hunt of faults",
        |state, _| Scalar::Flag(state.kernel_log),
        |state, _, value| {
            state.kernel_log = flag(value)?;
            Ok(())
        }
    ),
    timeout("timeout.tcp_half_open", "TCP not acknowledged in both directions"),
    timeout("timeout.tcp_established", "TCP established"),
    timeout("timeout.tcp_half_closed", "TCP with one FIN"),
    timeout("timeout.tcp_closed", "TCP with both FINs"),
    timeout("timeout.tcp_reset", "TCP after a reset"),
    timeout("timeout.udp_unreplied", "UDP seen in one direction only"),
    timeout("timeout.udp_replied", "UDP seen in both directions"),
    timeout("timeout.udp_dns", "UDP to port 53"),
    timeout("timeout.icmp", "ICMP queries"),
    timeout("timeout.other", "Anything else"),
    timeout("timeout.mapping_rest", "Rest of a freed external port before another guest gets it"),
];

/// Options of a bridge.
pub(crate) const BRIDGE_KEYS: &[Key<Bridge>] = &[
    many!(
        "network",
        "Networks of its guests, instead of the bridge's own subnets",
        "[\"192.168.122.0/24\"]",
        |bridge| bridge.networks.iter().map(ToString::to_string).collect(),
        |bridge, networks| {
            bridge.networks = networks.iter().map(|text| network(text)).collect::<Result<_, _>>()?;
            Ok(())
        }
    ),
    one!(
        "filtering",
        "Who may answer to the mapped ports of its guests: with \"endpoint-independent\" anyone, for games and WebRTC",
        |bridge, _| Scalar::Text(bridge.filtering.name().to_owned()),
        |bridge, _, value| {
            bridge.filtering = filtering(text(value)?)?;
            Ok(())
        }
    ),
    one!(
        "strict-leases",
        "Bind each guest to its lease: what it sends from an address that no DHCP server, and no `vmnat leases bind`, has\ngiven to its MAC at its port is dropped",
        |bridge, _| Scalar::Flag(bridge.strict_leases),
        |bridge, _, value| {
            bridge.strict_leases = flag(value)?;
            Ok(())
        }
    ),
    one!(
        "service",
        "Services of the host that its guests may use at their gateway whatever the host's INPUT rules say: ports with or\nwithout their protocol, several with commas; \"dns\" is port 53, and \"none\" closes all",
        |bridge, _| services(&bridge.services),
        |bridge, _, value| {
            bridge.services = text(value)?.parse::<ServiceList>()?.0;
            Ok(())
        }
    ),
    one!(
        "dhcp",
        "Addresses to give to guests where no other DHCP server is heard, FIRST-LAST[,lease=SPAN]; \"auto\": as libvirt's\nnetwork says, where one has the bridge; \"none\": never",
        |bridge, _| Scalar::Text(bridge.dhcp.to_string()),
        |bridge, _, value| {
            bridge.dhcp = text(value)?.parse()?;
            Ok(())
        }
    ),
    many!(
        "dns",
        "Resolvers to ask for its guests instead of the host's own server",
        "[\"9.9.9.9:53\"]",
        |bridge| bridge.dns.iter().map(ToString::to_string).collect(),
        |bridge, resolvers| {
            bridge.dns = resolvers.iter().map(|text| resolver(text)).collect::<Result<_, _>>()?;
            Ok(())
        }
    ),
];

/// A port forward that is being read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Draft {
    pub(crate) spec: Option<ForwardSpec>,
    pub(crate) from: Vec<Ipv4Net>,
    pub(crate) uplink: Option<String>,
    pub(crate) comment: Option<String>,
    /// Second since 1970.
    pub(crate) expires: Option<u64>,
    pub(crate) steal: bool,
}

/// Options of a port forward.
pub(crate) const DRAFT_KEYS: &[Key<Draft>] = &[
    one!(
        "spec",
        "What leads where: [HOSTIP:]PORT[-PORT]:TARGET:PORT[-PORT][/tcp|udp|sctp|tcp+udp], where TARGET is an address,\nthe name of a lease, or a MAC in brackets",
        |draft, _| optional(draft.spec.as_ref()),
        |draft, _, value| {
            draft.spec = Some(text(value)?.parse::<ForwardSpec>().map_err(|error| error.to_string())?);
            Ok(())
        }
    ),
    many!(
        "from",
        "Only callers from here may use it",
        "[\"198.51.100.0/24\"]",
        |draft| draft.from.iter().map(ToString::to_string).collect(),
        |draft, sources| {
            draft.from = sources.iter().map(|text| read_source(text)).collect::<Result<_, _>>()?;
            draft.from.sort_unstable();
            Ok(())
        }
    ),
    Key {
        example: "\"enp3s0\"",
        ..one!(
            "uplink",
            "Binds it to this uplink's addresses, and follows them",
            |draft, _| optional(draft.uplink.as_ref()),
            |draft, _, value| {
                draft.uplink = Some(interface(text(value)?)?);
                Ok(())
            }
        )
    },
    Key {
        example: "\"the web server\"",
        ..one!("comment", "What it is for", |draft, _| optional(draft.comment.as_ref()), |draft, _, value| {
            draft.comment = Some(text(value)?.to_owned());
            Ok(())
        })
    },
    Key {
        example: "2027-01-01T00:00:00Z",
        ..one!(
            "expires",
            "When it ends, with its zone",
            |draft, _| optional(draft.expires.and_then(written_moment).as_ref()),
            |draft, _, value| {
                draft.expires = Some(moment(text(value)?)?);
                Ok(())
            }
        )
    },
    one!(
        "steal",
        "Take the port even where a server of the host listens on it, or Docker publishes it",
        |draft, _| Scalar::Flag(draft.steal),
        |draft, _, value| {
            draft.steal = flag(value)?;
            Ok(())
        }
    ),
];

impl Scope for State {
    const KEYS: &'static [Key<Self>] = STATE_KEYS;

    fn blank() -> Self {
        Self::new(HookMode::Tcx)
    }
}

impl Scope for Bridge {
    const KEYS: &'static [Key<Self>] = BRIDGE_KEYS;

    fn blank() -> Self {
        Self::new("")
    }
}

impl Scope for Draft {
    const KEYS: &'static [Key<Self>] = DRAFT_KEYS;

    fn blank() -> Self {
        Self::default()
    }
}

/// Makes the wish of one state that of another, whose records (what `down` puts back) stay.
pub fn copy_wish(from: &State, to: &mut State) {
    for key in STATE_KEYS {
        // What a state holds was read once, so it can be read again.
        let _ = key.copy(from, to);
    }
    to.bridges.clone_from(&from.bridges);
    to.forwards.clone_from(&from.forwards);
    to.next_forward = from.next_forward;
    to.file.clone_from(&from.file);
}

const fn timeout(name: &'static str, about: &'static str) -> Key<State> {
    let access = Access::One { get: timeout_of, set: set_timeout };
    Key { name, about, example: "", fixed: false, access }
}

#[cfg(test)]
mod tests;
