//! The values of options: how they are read, and in which form they are written.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
    path::PathBuf,
};

use ipnet::Ipv4Net;
use jiff::Timestamp;

use super::Scalar;
use crate::{
    access::{Direction, Rule, RuleSpec, Verb},
    duration::duration,
    leases,
    reconcile::settings,
    services::{Forwarder, ServicePort, dns},
    state::{Binding, Bridge, Filtering, HookMode, State},
};

/// The name that the kernel half knows a timeout by.
pub(super) fn kind(key: &str) -> &str {
    key.strip_prefix("timeout.").unwrap_or(key)
}

pub(super) fn timeout_of(state: &State, key: &str) -> Scalar {
    let seconds = state.timeouts.get(kind(key)).copied().or_else(|| settings::default_timeout(kind(key)));
    Scalar::Number(seconds.unwrap_or_default().into())
}

pub(super) fn set_timeout(state: &mut State, key: &str, value: &Scalar) -> Result<(), String> {
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

pub(super) fn set_bridges(state: &mut State, names: &[String]) -> Result<(), String> {
    state.bridges.retain(|bridge| names.contains(&bridge.name));
    for name in names {
        if !state.bridges.iter().any(|bridge| bridge.name == *name) {
            state.bridges.push(Bridge::new(interface(name)?));
        }
    }
    Ok(())
}

/// Reads the name of an interface: what the kernel takes for one (`dev_valid_name`).
pub(super) fn interface(name: &str) -> Result<String, String> {
    let fits = |c: char| !c.is_whitespace() && !c.is_control() && c != '/' && c != ':';
    if name.is_empty() || name.len() > 15 || name == "." || name == ".." || !name.chars().all(fits) {
        return Err(format!(
            "{name:?} is no interface's name: 1 to 15 characters without blanks, \"/\" and \":\""
        ));
    }
    Ok(name.to_owned())
}

pub(super) fn network(text: &str) -> Result<Ipv4Net, String> {
    let network: Result<Ipv4Net, _> = text.parse();
    network
        .map(|network| network.trunc())
        .map_err(|_| format!("{text:?} is no network such as 192.168.122.0/24"))
}

pub(super) fn absolute(file: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(file);
    if path.is_absolute() { Ok(path) } else { Err(format!("{file:?} is no whole path: begin it with \"/\"")) }
}

pub(super) fn hook(text: &str) -> Result<HookMode, String> {
    let modes = [HookMode::Tcx, HookMode::Clsact];
    let found = modes.into_iter().find(|mode| mode.name() == text);
    found.ok_or_else(|| format!("{text:?} is neither \"tcx\" nor \"clsact\""))
}

pub(super) fn filtering(text: &str) -> Result<Filtering, String> {
    let all = [Filtering::AddressAndPortDependent, Filtering::EndpointIndependent];
    let found = all.into_iter().find(|filtering| filtering.name() == text);
    found.ok_or_else(|| {
        format!("{text:?} is neither \"address-and-port-dependent\" nor \"endpoint-independent\"")
    })
}

/// The list of services as it is written.
pub(super) fn services(services: &[ServicePort]) -> Scalar {
    let usual = dns();
    let is_usual = services.len() == usual.len() && usual.iter().all(|usual| services.contains(usual));
    let words: Vec<String> = match services {
        [] => vec!["none".to_owned()],
        _ if is_usual => vec!["dns".to_owned()],
        others => others.iter().map(ToString::to_string).collect(),
    };
    Scalar::Text(words.join(","))
}

/// The rules of one of the lists of access, as they are written.
pub(super) fn rules(state: &State, verb: Verb, direction: Direction) -> Vec<String> {
    let meant = state.access.iter().filter(|rule| rule.verb == verb && rule.direction == direction);
    meant.map(|rule| rule.spec.to_string()).collect()
}

pub(super) fn set_rules(
    state: &mut State,
    verb: Verb,
    direction: Direction,
    rules: &[String],
) -> Result<(), String> {
    let rule = |text: &String| Ok(Rule { verb, direction, spec: text.parse::<RuleSpec>()? });
    let wanted: Vec<Rule> = rules.iter().map(rule).collect::<Result<_, String>>()?;
    let is_other = |rule: &Rule| rule.verb != verb || rule.direction != direction;
    state.access.retain(|rule| is_other(rule) || wanted.contains(rule));
    for rule in wanted {
        if !state.access.contains(&rule) {
            state.access.push(rule);
        }
    }
    Ok(())
}

pub(super) fn set_externals(state: &mut State, externals: &[String]) -> Result<(), String> {
    let mut wanted = BTreeMap::new();
    for text in externals {
        let wrong = || format!("{text:?} is no uplink with its address, such as enp3s0=203.0.113.7");
        let (uplink, address) = text.split_once('=').ok_or_else(wrong)?;
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        if let Some(other) = wanted.insert(interface(uplink)?, address).filter(|other| *other != address) {
            return Err(format!("guests are seen as {other} at {uplink}, and {address} is asked for too"));
        }
    }
    state.externals = wanted;
    Ok(())
}

/// The addresses that were given to guests, as [`set_bindings`] reads them.
pub(super) fn bindings(state: &State) -> Vec<String> {
    let written = |Binding { address, mac, port }: &Binding| match port {
        Some(port) => format!("{address}={mac}@{port}"),
        None => format!("{address}={mac}"),
    };
    state.bindings.iter().map(written).collect()
}

pub(super) fn set_bindings(state: &mut State, list: &[String]) -> Result<(), String> {
    let mut wanted: Vec<Binding> = Vec::new();
    for text in list {
        let wrong = || format!("{text:?} is no address with a MAC, such as 192.168.122.10=52:54:00:12:34:56");
        let (address, guest) = text.split_once('=').ok_or_else(wrong)?;
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let (mac, port) = guest.split_once('@').map_or((guest, None), |(mac, port)| (mac, Some(port)));
        let mac = leases::guest_mac(mac)?.to_string();
        let binding = Binding { address, mac, port: port.map(interface).transpose()? };
        match wanted.iter().find(|known| known.address == address) {
            Some(known) if *known == binding => {}
            Some(known) => {
                return Err(format!("{address} is bound to {}, and {text:?} is asked for too", known.mac));
            }
            None => wanted.push(binding),
        }
    }
    state.bindings = wanted;
    Ok(())
}

pub(super) fn resolver(text: &str) -> Result<SocketAddrV4, String> {
    let wrong = || format!("{text:?} is no resolver such as 9.9.9.9 or 127.0.0.1:5353");
    text.parse::<Forwarder>().ok().and_then(|forwarder| forwarder.0).ok_or_else(wrong)
}

pub(super) fn moment(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no date and time with its zone, such as 2027-01-01T00:00:00Z");
    let moment: Timestamp = text.parse().map_err(|_| wrong())?;
    u64::try_from(moment.as_second()).map_err(|_| wrong())
}

pub(super) fn written_moment(second: u64) -> Option<String> {
    let second = i64::try_from(second).ok()?;
    Timestamp::from_second(second).ok().map(|moment| moment.to_string())
}

/// A value that may be absent, which no text says.
pub(super) fn optional(value: Option<&impl ToString>) -> Scalar {
    Scalar::Text(value.map_or_else(String::new, ToString::to_string))
}

/// A number that was found to be at most [`super::MOST_FLOWS`].
pub(super) fn small(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
