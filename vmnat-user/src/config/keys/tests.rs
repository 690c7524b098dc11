//! Every option of the command line has its key, and the other way round.

use std::collections::BTreeSet;

use clap::CommandFactory as _;

use super::*;
use crate::{cli::Cli, reconcile::settings};

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
    let mut keys: BTreeSet<String> = keys.map(first).collect();
    // `vmnat leases bind` says this one.
    assert!(keys.remove("bind"));
    assert_eq!(keys, options(&["up"]));
}

#[test]
fn a_file_can_say_whatever_dnat_add_can() {
    let mut keys: BTreeSet<String> = DRAFT_KEYS.iter().map(|key| first(key.name)).collect();
    assert!(keys.remove("spec"));
    assert_eq!(keys, options(&["dnat", "add"]));
}

#[test]
fn an_address_is_bound_to_one_mac() {
    let key = STATE_KEYS.iter().find(|key| key.name == "bind").unwrap();
    let Access::Many { get, set } = key.access else { unreachable!() };
    let mut state = State::blank();
    let said = ["10.0.0.2=52:54:00:AB:00:01".to_owned(), "10.0.0.3=52:54:00:ab:00:01@vnet3".to_owned()];
    set(&mut state, &said).unwrap();
    assert_eq!(get(&state), ["10.0.0.2=52:54:00:ab:00:01", "10.0.0.3=52:54:00:ab:00:01@vnet3"]);
    for wrong in
        ["10.0.0.2", "10.0.0=52:54:00:ab:00:01", "10.0.0.2=01:00:5e:00:00:01", "10.0.0.2=52:54:00:ab:00:01@"]
    {
        assert!(set(&mut state, &[wrong.to_owned()]).is_err(), "{wrong}");
    }
    let twice = ["10.0.0.2=52:54:00:ab:00:01".to_owned(), "10.0.0.2=52:54:00:ab:00:02".to_owned()];
    assert!(set(&mut state, &twice).unwrap_err().contains("asked for too"));
    assert_eq!(state.bindings.len(), 2, "a fault changes nothing");
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
