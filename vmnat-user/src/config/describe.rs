//! An instance in words: what is said about it, and in what two wishes differ.

use std::{collections::HashMap, fmt};

use serde::Serialize;

use super::{
    key::{Key, Scope, Statement},
    keys::{BRIDGE_KEYS, STATE_KEYS},
};
use crate::{
    forwards::{ForwardSpec, PortForward, Wish},
    state::{Bridge, State},
};

/// How something differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It comes.
    Add,
    /// It goes.
    Remove,
    /// It is said otherwise.
    Change,
}

/// One difference between two wishes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// How.
    pub change: Kind,
    /// What it is about.
    pub what: String,
    /// What was said; none for what comes or goes as a whole.
    pub before: Option<String>,
    /// What is to be said.
    pub after: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { change, what, before, after } = self;
        match change {
            Kind::Add => write!(f, "+ {what}"),
            Kind::Remove => write!(f, "- {what}"),
            Kind::Change => {
                let (before, after) =
                    (before.as_deref().unwrap_or("none"), after.as_deref().unwrap_or("none"));
                write!(f, "~ {what}: {before} -> {after}")
            }
        }
    }
}

/// All that is said about an instance but its port forwards, defaults too.
#[must_use]
pub fn statements(state: &State) -> Vec<Statement> {
    let mut all = of_scope(state, None, STATE_KEYS);
    for bridge in &state.bridges {
        all.extend(of_scope(bridge, Some(&bridge.name), BRIDGE_KEYS));
    }
    all
}

fn of_scope<T: Scope>(scope: &T, bridge: Option<&str>, keys: &[Key<T>]) -> Vec<Statement> {
    let statement = |key: &Key<T>, value| Statement {
        bridge: bridge.map(str::to_owned),
        key: key.name.to_owned(),
        value,
    };
    keys.iter()
        .flat_map(|key| key.current(scope).into_iter().map(move |value| statement(key, value)))
        .collect()
}

/// What a statement is about, in words.
pub(super) fn words(statement: &Statement, is_list: bool) -> String {
    let Statement { bridge, key, value } = statement;
    let about = bridge.as_ref().map_or_else(String::new, |bridge| format!("bridge {bridge}: "));
    if is_list { format!("{about}{key} {}", value.plain()) } else { format!("{about}{key}") }
}

/// What has to change for one wish to become another.
#[must_use]
pub fn difference(before: &State, after: &State) -> Vec<Difference> {
    let mut found = of_options(before, after, "", STATE_KEYS);
    let blank = Bridge::blank();
    for bridge in &after.bridges {
        let known = before.bridges.iter().find(|known| known.name == bridge.name);
        found.extend(of_options(
            known.unwrap_or(&blank),
            bridge,
            &format!("bridge {}: ", bridge.name),
            BRIDGE_KEYS,
        ));
    }
    found.extend(of_forwards(&before.forwards, &after.forwards));
    found
}

fn of_options<T: Scope>(before: &T, after: &T, about: &str, keys: &[Key<T>]) -> Vec<Difference> {
    let mut found = Vec::new();
    for key in keys {
        let (old, new) = (key.current(before), key.current(after));
        if !key.is_list() {
            if let (Some(old), Some(new)) = (old.first(), new.first())
                && old != new
            {
                let (before, after) = (Some(old.plain()), Some(new.plain()));
                found.push(Difference {
                    change: Kind::Change,
                    what: format!("{about}{}", key.name),
                    before,
                    after,
                });
            }
            continue;
        }
        let whole = |change, value: &super::Scalar| {
            let what = format!("{about}{} {}", key.name, value.plain());
            Difference { change, what, before: None, after: None }
        };
        found.extend(old.iter().filter(|value| !new.contains(value)).map(|value| whole(Kind::Remove, value)));
        found.extend(new.iter().filter(|value| !old.contains(value)).map(|value| whole(Kind::Add, value)));
    }
    found
}

fn identity(wish: &Wish) -> (&ForwardSpec, Option<&str>) {
    (&wish.spec, wish.uplink.as_deref())
}

fn of_forwards(before: &[PortForward], after: &[PortForward]) -> Vec<Difference> {
    let known: HashMap<_, &PortForward> =
        before.iter().map(|forward| (identity(&forward.wish), forward)).collect();
    let wanted: HashMap<_, &PortForward> =
        after.iter().map(|forward| (identity(&forward.wish), forward)).collect();
    let whole = |change, forward: &PortForward| {
        let options = options(&forward.wish);
        let options = if options.is_empty() { options } else { format!(" ({options})") };
        let what = format!("forward {}{options}", name(&forward.wish));
        Difference { change, what, before: None, after: None }
    };
    let gone = before.iter().filter(|forward| !wanted.contains_key(&identity(&forward.wish)));
    let mut found: Vec<Difference> = gone.map(|forward| whole(Kind::Remove, forward)).collect();
    for forward in after {
        let Some(known) = known.get(&identity(&forward.wish)) else {
            found.push(whole(Kind::Add, forward));
            continue;
        };
        let said = |wish| Some(options(wish)).filter(|options| !options.is_empty());
        let (before, after) = (said(&known.wish), said(&forward.wish));
        if before != after {
            let what = format!("forward {}", name(&forward.wish));
            found.push(Difference { change: Kind::Change, what, before, after });
        }
    }
    found
}

fn name(wish: &Wish) -> String {
    match &wish.uplink {
        Some(uplink) => format!("{} at {uplink}", wish.spec),
        None => wish.spec.to_string(),
    }
}

/// The options of a port forward.
fn options(wish: &Wish) -> String {
    let Wish { spec: _, from, uplink: _, comment, expires, runtime_only, file: _ } = wish;
    let mut words = Vec::new();
    if !from.is_empty() {
        let from: Vec<String> = from.iter().map(ToString::to_string).collect();
        words.push(format!("from {}", from.join(" ")));
    }
    words.extend(comment.as_ref().map(|comment| format!("comment {comment:?}")));
    let end = expires.and_then(|end| jiff::Timestamp::from_second(i64::try_from(end).ok()?).ok());
    words.extend(end.map(|end| format!("expires {end}")));
    words.extend(runtime_only.then(|| "runtime-only".to_owned()));
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        let mut state = State::blank();
        state.bridges.push(Bridge::new("virbr0"));
        state.uplinks.push("enp3s0".into());
        state.forwards.push(PortForward { id: 1, wish: Wish::plain("80:web:80".parse().unwrap()) });
        state
    }

    fn told(before: &State, after: &State) -> Vec<String> {
        difference(before, after).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn one_wish_does_not_differ_from_itself() {
        assert!(told(&state(), &state()).is_empty());
    }

    #[test]
    fn differences_are_told_in_words() {
        let mut after = state();
        after.uplinks = vec!["enp4s0".into()];
        after.quotas.flows = 4096;
        after.timeouts.insert("icmp".into(), 5);
        after.bridges[0].networks.push("10.0.0.0/24".parse().unwrap());
        after
            .bridges
            .push(Bridge { filtering: crate::state::Filtering::EndpointIndependent, ..Bridge::new("br1") });
        after.forwards[0].wish.comment = Some("web".into());
        let mut limited = Wish::plain("81:web:80/udp".parse().unwrap());
        limited.from.push("192.0.2.0/24".parse().unwrap());
        limited.uplink = Some("enp4s0".into());
        after.forwards.push(PortForward { id: 2, wish: limited });
        assert_eq!(
            told(&state(), &after),
            [
                "+ bridge br1",
                "- uplink enp3s0",
                "+ uplink enp4s0",
                "~ guest-flows: 16384 -> 4096",
                "~ timeout.icmp: 60 -> 5",
                "+ bridge virbr0: network 10.0.0.0/24",
                "~ bridge br1: filtering: address-and-port-dependent -> endpoint-independent",
                "~ forward 80:web:80/tcp: none -> comment \"web\"",
                "+ forward 81:web:80/udp at enp4s0 (from 192.0.2.0/24)",
            ]
        );
        let back = told(&after, &state());
        assert!(
            back.contains(&"- forward 81:web:80/udp at enp4s0 (from 192.0.2.0/24)".to_owned()),
            "{back:?}"
        );
        assert!(back.contains(&"- bridge br1".to_owned()) && back.len() == 8, "{back:?}");
    }
}
