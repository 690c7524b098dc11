//! What `up` was asked for, added to what the instance is asked to be already.

use std::collections::BTreeMap;

use anyhow::Result;

use super::{Args, external, limits, services};
use crate::{
    cli::uplink,
    error::Error,
    facts::Facts,
    state::{Bridge, HookMode, State},
};

/// Adds what was asked for to the state.
pub(super) fn merge(state: &mut State, known: Option<&State>, args: &Args, facts: &Facts) -> Result<()> {
    if let Some(known) = known {
        refuse_what_cannot_change(known, args)?;
    } else {
        state.flows = args.flows.unwrap_or(state.flows);
        state.hook = args.hook.map_or(state.hook, HookMode::from);
    }
    for bridge in &args.bridges {
        if !state.bridges.iter().any(|known| known.name == *bridge) {
            state.bridges.push(Bridge::new(bridge));
        }
    }
    for name in &args.uplinks {
        if known.is_none() && !state.uplinks.contains(name) {
            state.uplinks.push(name.clone());
        } else if known.is_some() {
            uplink::add(state, facts, name.clone());
        }
    }
    state.uplinks.dedup();
    external::merge(state, args, facts)?;
    merge_networks(state, args)?;
    limits::merge(state, &args.limits, &args.bridges)?;
    services::merge(state, &args.services, &args.bridges);
    merge_untranslated(state, args);
    args.access.merge(state)?;
    for file in &args.lease_files {
        // The agent has another working directory.
        let file = std::path::absolute(file)?;
        if !state.lease_files.contains(&file) {
            state.lease_files.push(file);
        }
    }
    let timeouts: BTreeMap<String, u32> = args.timeouts.iter().cloned().collect();
    state.timeouts.extend(timeouts);
    state.kernel_log |= args.kernel_log;
    if let Some(interval) = args.reap_interval {
        state.reap_interval_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
    }
    Ok(())
}

fn refuse_what_cannot_change(known: &State, args: &Args) -> Result<()> {
    let hint = ": run `vmnat down` first".to_owned();
    if let Some(hook) = args.hook.map(HookMode::from).filter(|hook| *hook != known.hook) {
        let what = format!("the instance's hook mode {}", known.hook.name());
        let holder = format!("what runs; {} cannot replace it live", hook.name());
        return Err(Error::Taken { what, holder, hint }.into());
    }
    if args.flows.is_some_and(|flows| flows != known.flows) {
        let what = format!("the size of the flow table ({} flows)", known.flows);
        return Err(Error::Taken { what, holder: "what runs".into(), hint }.into());
    }
    Ok(())
}

fn merge_untranslated(state: &mut State, args: &Args) {
    for network in &args.untranslated {
        match network {
            None => state.untranslated.clear(),
            Some(network) if state.untranslated.contains(network) => {}
            Some(network) => state.untranslated.push(*network),
        }
    }
}

/// Gives each named network to its bridge.
fn merge_networks(state: &mut State, args: &Args) -> Result<()> {
    for (bridge, network) in &args.networks {
        let name = match (bridge, &args.bridges[..], &state.bridges[..]) {
            (Some(name), _, _) => name.clone(),
            (None, [only], _) => only.clone(),
            (None, _, [only]) => only.name.clone(),
            _ => {
                let what = format!("say which bridge {network} is behind: `--network BRIDGE={network}`");
                return Err(Error::Usage(what).into());
            }
        };
        let Some(bridge) = state.bridges.iter_mut().find(|bridge| bridge.name == name) else {
            return Err(Error::Usage(format!("--network {name}={network}: add `--bridge {name}`")).into());
        };
        if !bridge.networks.contains(network) {
            bridge.networks.push(*network);
        }
    }
    Ok(())
}
