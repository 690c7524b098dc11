//! Every option that a configuration has, declared once.
//!
//! A new option of `up` is one entry of [`STATE_KEYS`] (of the instance) or [`BRIDGE_KEYS`] (of a bridge), a new option of
//! `dnat add` one of [`DRAFT_KEYS`].

use std::path::PathBuf;

use ipnet::Ipv4Net;
use jiff::Timestamp;

use super::key::{Access, Key, Scalar, Scope, flag, number, text};
use crate::{
    duration::duration,
    forwards::{ForwardSpec, read_source},
    reconcile::settings,
    state::{Bridge, Filtering, HookMode, State},
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

/// The name that the kernel half knows a timeout by.
fn kind(key: &str) -> &str {
    key.strip_prefix("timeout.").unwrap_or(key)
}

fn timeout_of(state: &State, key: &str) -> Scalar {
    let seconds = state.timeouts.get(kind(key)).copied().or_else(|| settings::default_timeout(kind(key)));
    Scalar::Number(seconds.unwrap_or_default().into())
}

fn set_timeout(state: &mut State, key: &str, value: &Scalar) -> Result<(), String> {
    let seconds = match value {
        Scalar::Text(text) => duration(text)?.as_secs(),
        Scalar::Number(seconds) => *seconds,
        Scalar::Flag(_) => return Err(format!("{value} is no span of time: write 30 or \"30s\"")),
    };
    let seconds = u32::try_from(seconds).ok().filter(|seconds| *seconds > 0);
    let seconds = seconds.ok_or_else(|| format!("{value} is no span of time of a second or more"))?;
    if settings::default_timeout(kind(key)) == Some(seconds) {
        state.timeouts.remove(kind(key));
    } else {
        state.timeouts.insert(kind(key).to_owned(), seconds);
    }
    Ok(())
}

fn set_bridges(state: &mut State, names: &[String]) -> Result<(), String> {
    state.bridges.retain(|bridge| names.contains(&bridge.name));
    for name in names {
        if !state.bridges.iter().any(|bridge| bridge.name == *name) {
            state.bridges.push(Bridge::new(interface(name)?));
        }
    }
    Ok(())
}

/// Reads the name of an interface: what the kernel takes for one (`dev_valid_name`).
fn interface(name: &str) -> Result<String, String> {
    let fits = |c: char| !c.is_whitespace() && !c.is_control() && c != '/' && c != ':';
    if name.is_empty() || name.len() > 15 || name == "." || name == ".." || !name.chars().all(fits) {
        return Err(format!(
            "{name:?} is no interface's name: 1 to 15 characters without blanks, \"/\" and \":\""
        ));
    }
    Ok(name.to_owned())
}

fn network(text: &str) -> Result<Ipv4Net, String> {
    let network: Result<Ipv4Net, _> = text.parse();
    network
        .map(|network| network.trunc())
        .map_err(|_| format!("{text:?} is no network such as 192.168.122.0/24"))
}

fn absolute(file: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(file);
    if path.is_absolute() { Ok(path) } else { Err(format!("{file:?} is no whole path: begin it with \"/\"")) }
}

fn hook(text: &str) -> Result<HookMode, String> {
    let modes = [HookMode::Tcx, HookMode::Clsact];
    let found = modes.into_iter().find(|mode| mode.name() == text);
    found.ok_or_else(|| format!("{text:?} is neither \"tcx\" nor \"clsact\""))
}

fn filtering(text: &str) -> Result<Filtering, String> {
    let all = [Filtering::AddressAndPortDependent, Filtering::EndpointIndependent];
    let found = all.into_iter().find(|filtering| filtering.name() == text);
    found.ok_or_else(|| {
        format!("{text:?} is neither \"address-and-port-dependent\" nor \"endpoint-independent\"")
    })
}

fn moment(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no date and time with its zone, such as 2027-01-01T00:00:00Z");
    let moment: Timestamp = text.parse().map_err(|_| wrong())?;
    u64::try_from(moment.as_second()).map_err(|_| wrong())
}

fn written_moment(second: u64) -> Option<String> {
    let second = i64::try_from(second).ok()?;
    Timestamp::from_second(second).ok().map(|moment| moment.to_string())
}

/// A value that may be absent, which no text says.
fn optional(value: Option<&impl ToString>) -> Scalar {
    Scalar::Text(value.map_or_else(String::new, ToString::to_string))
}

/// A number that was found to be at most [`MOST_FLOWS`].
fn small(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    /// Long options of a command, without those that say how and not what.
    fn options(command: &[&str]) -> BTreeSet<String> {
        let mut found = Cli::command();
        found.build();
        let mut found = &found;
        for name in command {
            found = found.find_subcommand(name).unwrap();
        }
        let how =
            ["help", "instance", "verbose", "wait", "foreground", "file", "dry-run", "json", "runtime-only"];
        let shown = found.get_arguments().filter(|argument| !argument.is_hide_set());
        let long = shown.filter_map(|argument| argument.get_long().map(str::to_owned));
        long.filter(|name| !how.contains(&name.as_str())).collect()
    }

    fn first(name: &str) -> String {
        name.split('.').next().unwrap().to_owned()
    }

    #[test]
    fn a_file_can_say_whatever_up_can() {
        let keys = STATE_KEYS.iter().map(|key| key.name).chain(BRIDGE_KEYS.iter().map(|key| key.name));
        assert_eq!(keys.map(first).collect::<BTreeSet<_>>(), options(&["up"]));
    }

    #[test]
    fn a_file_can_say_whatever_dnat_add_can() {
        let mut keys: BTreeSet<String> = DRAFT_KEYS.iter().map(|key| first(key.name)).collect();
        assert!(keys.remove("spec"));
        assert_eq!(keys, options(&["dnat", "add"]));
    }

    #[test]
    fn every_timeout_is_a_key() {
        let keys = STATE_KEYS.iter().filter_map(|key| key.name.strip_prefix("timeout."));
        assert_eq!(keys.collect::<Vec<_>>(), settings::TIMEOUTS);
    }

    #[test]
    fn defaults_are_values_that_can_be_read() {
        for key in STATE_KEYS.iter().filter(|key| !key.is_list()) {
            for default in key.default() {
                assert_eq!(key.read(&default), Ok(default), "{}", key.name);
            }
        }
    }

    #[test]
    fn a_wish_that_is_copied_leaves_the_records_alone() {
        let mut from = State::blank();
        from.bridges.push(Bridge::new("virbr0"));
        from.quotas.flows = 7;
        from.timeouts.insert("icmp".into(), 9);
        let mut to = State::blank();
        to.qdiscs.insert(3, "eth0".into());
        to.timeouts.insert("other".into(), 9);
        copy_wish(&from, &mut to);
        assert!(to.bridges == from.bridges && to.quotas == from.quotas && to.timeouts == from.timeouts);
        assert_eq!(to.qdiscs.len(), 1);
    }
}
