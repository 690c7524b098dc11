//! The files' layer of an instance's wish: what the files own, how they change it, and that commands leave it alone.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{
    describe::words,
    fault::{Fault, Place},
    files::Source,
    key::{Key, Scalar, Scope, Statement},
};
use crate::{
    error::Error,
    exit::Exit,
    paths::Instance,
    state::{Bridge, State},
};

/// What an instance has from files. Port forwards say it themselves ([`crate::forwards::Wish::file`]).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileLayer {
    /// Where it came from.
    #[serde(default)]
    pub source: Source,
    /// What the files have said, and nobody before them.
    #[serde(default)]
    pub owned: Vec<Statement>,
    /// Why the files were not taken over when they were last read, in a line.
    #[serde(default)]
    pub fault: Option<String>,
}

/// Makes the files' layer what the files say, and leaves the command line's alone; tells what cannot be.
pub(super) fn merge(state: &mut State, wanted: &[(Statement, Place)], is_running: bool) -> Vec<Fault> {
    let owned = std::mem::take(&mut state.file.owned);
    let mut faults = Vec::new();
    let slots: HashMap<_, &Scalar> = wanted.iter().map(|(said, _)| (slot(said), &said.value)).collect();
    // What holds for a bridge goes before the bridge does.
    for said in owned.iter().rev().filter(|said| !slots.contains_key(&slot(said))) {
        take_back(state, said);
    }
    let before: HashMap<_, &Scalar> = owned.iter().map(|said| (slot(said), &said.value)).collect();
    for (said, place) in wanted {
        match say(state, said, before.contains_key(&slot(said)), is_running) {
            Ok(true) => state.file.owned.push(said.clone()),
            Ok(false) => {}
            Err(fault) => faults.push(Fault { places: vec![(place.clone(), String::new())], ..fault }),
        }
    }
    faults
}

/// The state that files alone make; their port forwards are numbered from 1, and not judged.
///
/// # Panics
/// When files contradict a state that says nothing.
#[cfg(any(test, fuzzing))]
#[must_use]
pub fn made_of(config: &super::Config) -> State {
    let mut state = State::blank();
    let faults = merge(&mut state, &config.statements, false);
    assert!(faults.is_empty(), "{faults:?}");
    let rules = (1..).zip(&config.rules);
    state.forwards =
        rules.map(|(id, (rule, _))| crate::forwards::PortForward { id, wish: rule.wish.clone() }).collect();
    state.file = FileLayer::default();
    state
}

/// Fails when the state does not say any more what the files own: a command has changed that.
///
/// # Errors
/// [`Error::Foreign`].
pub fn refuse_foreign(instance: &Instance, state: &State) -> Result<(), Error> {
    let Some(lost) = state.file.owned.iter().find(|said| !current(state, said).contains(&said.value)) else {
        return Ok(());
    };
    Err(Error::Foreign {
        what: words(lost, is_list(lost)),
        origin: state.file.source.name(instance),
        option: instance.option(),
    })
}

/// What is said at most once.
fn slot(said: &Statement) -> (Option<&str>, &str, Option<&Scalar>) {
    (said.bridge.as_deref(), &said.key, is_list(said).then_some(&said.value))
}

/// Puts a statement into the state; false where the command line has said the same.
fn say(state: &mut State, said: &Statement, is_own: bool, is_running: bool) -> Result<bool, Fault> {
    let current = current(state, said);
    let fixed = is_fixed(said);
    if current.contains(&said.value) {
        // What is so by default, or was the files' before, is theirs.
        return Ok(is_own || fixed || (!is_list(said) && default(said).contains(&said.value)));
    }
    let name = words(said, false);
    let is = current.first().map(Scalar::plain).unwrap_or_default();
    if fixed && is_running {
        let what =
            format!("{name}: it is {is} while the instance runs, and {} is asked for", said.value.plain());
        return Err(Fault::nowhere(what)
            .hint("run `vmnat down`, and then `vmnat apply`")
            .exit(Exit::Conflict));
    }
    if !is_list(said) && !is_own && !fixed && current != default(said) {
        let what =
            format!("{name}: the command line has set it to {is}, and {} is asked for", said.value.plain());
        let hint = "say the same on the command line, or leave it out here";
        return Err(Fault::nowhere(what).hint(hint).exit(Exit::Conflict));
    }
    put(state, said).map_err(|why| Fault::nowhere(format!("{name}: {why}")))?;
    Ok(true)
}

fn put(state: &mut State, said: &Statement) -> Result<(), String> {
    match (&said.bridge, State::find(&said.key), Bridge::find(&said.key)) {
        (None, Some(key), _) => key.put(state, &said.value),
        (Some(name), _, Some(key)) => match state.bridges.iter_mut().find(|bridge| bridge.name == *name) {
            Some(bridge) => key.put(bridge, &said.value),
            None => Err(format!("there is no bridge {name}")),
        },
        _ => Err("there is no such key".to_owned()),
    }
}

/// Takes back what the files have said. A bridge that the command line has said something about stays.
fn take_back(state: &mut State, said: &Statement) {
    if is_fixed(said) {
        return;
    }
    let result = match (&said.bridge, State::find(&said.key), Bridge::find(&said.key)) {
        (None, Some(key), _) => {
            let is_in_use = said.key == "bridge"
                && state.bridges.iter().any(|bridge| {
                    bridge.name == said.value.plain() && *bridge != Bridge::new(bridge.name.as_str())
                });
            if is_in_use { Ok(()) } else { key.take_back(state, &said.value) }
        }
        (Some(name), _, Some(key)) => {
            let bridge = state.bridges.iter_mut().find(|bridge| bridge.name == *name);
            bridge.map_or(Ok(()), |bridge| key.take_back(bridge, &said.value))
        }
        _ => Ok(()),
    };
    if let Err(why) = result {
        tracing::warn!("{} cannot be taken back: {why}", words(said, is_list(said)));
    }
}

/// What the state says where the statement belongs.
fn current(state: &State, said: &Statement) -> Vec<Scalar> {
    match &said.bridge {
        None => State::find(&said.key).map_or_else(Vec::new, |key| key.current(state)),
        Some(name) => {
            let bridge = state.bridges.iter().find(|bridge| bridge.name == *name);
            let key = Bridge::find(&said.key);
            bridge.zip(key).map_or_else(Vec::new, |(bridge, key)| key.current(bridge))
        }
    }
}

/// Asks the option that a statement is about.
fn ask<R: Default>(
    said: &Statement,
    state: impl FnOnce(&Key<State>) -> R,
    bridge: impl FnOnce(&Key<Bridge>) -> R,
) -> R {
    match said.bridge {
        None => State::find(&said.key).map(state).unwrap_or_default(),
        Some(_) => Bridge::find(&said.key).map(bridge).unwrap_or_default(),
    }
}

fn is_list(said: &Statement) -> bool {
    ask(said, Key::is_list, Key::is_list)
}

fn is_fixed(said: &Statement) -> bool {
    ask(said, |key| key.fixed, |key| key.fixed)
}

fn default(said: &Statement) -> Vec<Scalar> {
    ask(said, Key::default, Key::default)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{SourceText, parse};

    fn wanted(text: &str) -> Vec<(Statement, Place)> {
        parse(vec![SourceText::new("vmnat.toml", text)]).unwrap().statements
    }

    fn apply(state: &mut State, text: &str) -> Vec<String> {
        merge(state, &wanted(text), true).into_iter().map(|fault| fault.what).collect()
    }

    const TEXT: &str = "uplink = 'enp3s0'\nguest-flows = 7\nno-nat = ['10.8.0.0/16']\ntimeout.icmp = 9\n\
                        [bridge.virbr0]\nfiltering = 'endpoint-independent'\nnetwork = '10.0.0.0/24'\n";

    #[test]
    fn what_files_say_comes_stays_and_goes() {
        let mut state = State::blank();
        assert!(apply(&mut state, TEXT).is_empty());
        assert_eq!((state.quotas.flows, state.uplinks.len(), state.timeouts["icmp"]), (7, 1, 9));
        assert_eq!(state.bridges[0].networks.len(), 1);
        let once = state.clone();
        assert!(apply(&mut state, TEXT).is_empty());
        assert_eq!(state, once, "twice is once");
        assert!(apply(&mut state, "").is_empty());
        assert_eq!(state, State::blank());
    }

    #[test]
    fn what_the_command_line_says_is_left_alone() {
        let mut state = State::blank();
        state.uplinks.push("enp3s0".into());
        state.bridges.push(Bridge::new("virbr0"));
        state.quotas.rate = 5;
        let before = state.clone();
        assert!(apply(&mut state, TEXT).is_empty());
        let own: Vec<String> = state.file.owned.iter().map(|said| words(said, true)).collect();
        assert!(!own.contains(&"uplink enp3s0".into()) && !own.contains(&"bridge virbr0".into()), "{own:?}");
        assert!(apply(&mut state, "").is_empty());
        assert_eq!(state, before);
    }

    #[test]
    fn a_bridge_that_the_command_line_has_said_more_of_stays() {
        let mut state = State::blank();
        apply(&mut state, "[bridge.virbr0]");
        state.bridges[0].networks.push("10.1.0.0/16".parse().unwrap());
        apply(&mut state, "");
        assert_eq!(state.bridges.len(), 1);
        assert!(state.file.owned.is_empty());
    }

    #[test]
    fn what_the_command_line_says_otherwise_is_a_clash() {
        let mut state = State::blank();
        state.quotas.flows = 9;
        let faults = apply(&mut state, "guest-flows = 7");
        assert_eq!(faults, ["guest-flows: the command line has set it to 9, and 7 is asked for"]);
        assert!(apply(&mut state, "guest-flows = 9").is_empty() && state.file.owned.is_empty());
    }

    #[test]
    fn files_change_their_own_mind() {
        let mut state = State::blank();
        apply(&mut state, "guest-flows = 7");
        assert!(apply(&mut state, "guest-flows = 8").is_empty());
        assert_eq!(state.quotas.flows, 8);
        apply(&mut state, "");
        assert_eq!(state, State::blank());
    }

    #[test]
    fn what_is_fixed_is_refused_while_the_instance_runs() {
        let mut state = State::blank();
        let faults = apply(&mut state, "flows = 2048\nhook = 'clsact'");
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(merge(&mut state, &wanted("flows = 2048\nhook = 'clsact'"), false).is_empty());
        assert_eq!(state.flows, 2048);
        // Without the key it stays until the instance does not run any more.
        assert!(apply(&mut state, "").is_empty());
        assert_eq!(state.flows, 2048);
    }

    #[test]
    fn a_command_cannot_change_what_files_own() {
        let mut state = State::blank();
        apply(&mut state, TEXT);
        let instance = Instance::default();
        assert!(refuse_foreign(&instance, &state).is_ok());
        let mut other = state.clone();
        other.quotas.flows = 8;
        let told = refuse_foreign(&instance, &other).unwrap_err().to_string();
        assert!(told.starts_with("guest-flows is what /etc/vmnat says"), "{told}");
        state.bridges.clear();
        assert!(refuse_foreign(&instance, &state).unwrap_err().to_string().contains("bridge virbr0"));
    }
}
