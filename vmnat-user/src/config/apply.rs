//! Takes over what files say: everything is judged before anything is changed, and then made true as a whole.

use std::collections::HashMap;

use anyhow::Result;

use super::{Config, Difference, Fault, Faults, Place, Rule, Source, difference, layer::merge};
use crate::{
    access::RuleSpec,
    change::Change,
    error::Error,
    exit::Exit,
    facts::Facts,
    forwards::{self, Admission, ForwardSpec, PortForward, Request, Verdict, Wish, now},
    leases::Directory,
    paths::Instance,
    reconcile::{self, Reconciled, settings},
    state::State,
};

/// What taking files over would do, or has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prepared {
    /// In what the wish differs.
    pub differences: Vec<Difference>,
    /// What the operator should know, one sentence each.
    pub warnings: Vec<String>,
}

/// Puts what files say into a state, after judging all of it; `directory` knows the guests' leases.
///
/// # Errors
/// [`Error::BadConfig`] with every fault, and what [`reconcile::admit`] refuses. The state is then of no use.
pub fn prepare(
    instance: &Instance,
    state: &mut State,
    facts: &Facts,
    config: &Config,
    is_running: bool,
    directory: impl FnOnce(&State) -> Result<Directory>,
) -> Result<Prepared> {
    forwards::drop_expired(state, now(), forwards::boot_now()?);
    let before = state.clone();
    let mut faults = merge(state, &config.statements, is_running);
    find_unfit_interfaces(facts, config, &mut faults);
    find_strange_bridges(state, config, &mut faults);
    let warnings = take_forwards(state, facts, config, directory, &mut faults)?;
    find_empty_pool(state, config, &mut faults)?;
    Faults::check(&config.files, faults).map_err(Error::from)?;
    reconcile::admit(instance, state, facts)?;
    Ok(Prepared { differences: difference(&before, state), warnings })
}

/// Takes files over: all that they say, or nothing.
///
/// # Errors
/// As [`prepare`] and [`Change::apply_whole`]; kernel and files are then as before.
pub async fn carry_out(
    instance: &Instance,
    change: &mut Change,
    config: &Config,
    source: &Source,
) -> Result<(Prepared, Reconciled)> {
    if change.load()? {
        change.save()?;
    }
    let before = change.state.clone();
    let tables = change.tables()?;
    let Change { state, facts, .. } = &mut *change;
    let gather = |state: &State| Directory::gather(state, facts, &tables);
    let prepared = prepare(instance, state, facts, config, true, gather)?;
    state.file.source = source.clone();
    state.file.fault = None;
    change.load()?;
    let done = change.apply_whole(&before).await?;
    Ok((prepared, done))
}

/// A bridge that is none, and an uplink that cannot be served, are refused; what is not there yet is waited for.
fn find_unfit_interfaces(facts: &Facts, config: &Config, faults: &mut Vec<Fault>) {
    for (said, place) in config.statements.iter().filter(|(said, _)| said.bridge.is_none()) {
        let name = said.value.plain();
        let Some(link) = facts.link(&name) else { continue };
        let error = match said.key.as_str() {
            "bridge" if !link.is_bridge => {
                let hint = "leave it out, or name the bridge that it belongs to".to_owned();
                Error::NotABridge { name, hint }
            }
            "uplink" if !link.can_be_uplink() => Error::UnknownLinkLayer { name },
            "uplink" => match link.master.and_then(|master| facts.link_at(master)) {
                Some(master) if master.is_bridge => Error::PortAsUplink { name, bridge: master.name.clone() },
                Some(_) | None => continue,
            },
            _ => continue,
        };
        faults.push(Fault::at(place.clone(), error.to_string()).exit(error.exit()));
    }
}

/// A rule of access for a bridge that is not served is refused.
fn find_strange_bridges(state: &State, config: &Config, faults: &mut Vec<Fault>) {
    let rules = ["allow", "deny", "allow-from", "deny-from"];
    for (said, place) in config.statements.iter().filter(|(said, _)| rules.contains(&said.key.as_str())) {
        let spec: Option<RuleSpec> = said.value.plain().parse().ok();
        let Some(bridge) = spec.and_then(|spec| spec.bridge) else { continue };
        if !state.bridges.iter().any(|known| known.name == bridge) {
            let what = format!("{}: bridge {bridge} is not served", said.key);
            let hint = format!("add [bridge.{bridge}], or name another");
            faults.push(Fault::at(place.clone(), what).hint(hint).exit(Exit::NoInterface));
        }
    }
}

fn find_empty_pool(state: &State, config: &Config, faults: &mut Vec<Fault>) -> Result<()> {
    let Some((_, place)) = config.statements.iter().find(|(said, _)| said.key == "pool") else {
        return Ok(());
    };
    let pool = settings::pool(state)?;
    if pool.free_tcp == 0 || pool.free_udp == 0 {
        let what = format!("pool: the host and port forwards have every port of {}", state.pool);
        let hint = "name a range beside the host's (`sysctl net.ipv4.ip_local_port_range`, its sockets)";
        faults.push(Fault::at(place.clone(), what).hint(hint).exit(Exit::Conflict));
    }
    Ok(())
}

/// What makes two port forwards one: what leads where, and at which uplink.
type Identity = (ForwardSpec, Option<String>);

fn identity(forward: &Wish) -> Identity {
    (forward.spec.clone(), forward.uplink.clone())
}

/// Makes the files' port forwards those of the configuration; returns what the operator should know.
fn take_forwards(
    state: &mut State,
    facts: &Facts,
    config: &Config,
    directory: impl FnOnce(&State) -> Result<Directory>,
    faults: &mut Vec<Fault>,
) -> Result<Vec<String>> {
    let (own, others): (Vec<PortForward>, Vec<PortForward>) =
        std::mem::take(&mut state.forwards).into_iter().partition(|forward| forward.wish.file.is_some());
    state.forwards = others;
    let mut own: HashMap<Identity, PortForward> =
        own.into_iter().map(|forward| (identity(&forward.wish), forward)).collect();
    let now = now();
    let mut fresh: Vec<(&Rule, &Place, Request)> = Vec::new();
    for (rule, place) in &config.rules {
        if rule.wish.expires.is_some_and(|end| end <= now) {
            continue;
        }
        let file = config.files.get(place.file).map(|file| file.name.clone());
        let wish = Wish { file, ..rule.wish.clone() };
        match own.remove(&identity(&wish)) {
            // Whoever may call is a list of its own in the kernel, under the number: another list, another number.
            Some(known) if known.wish.from == wish.from => {
                state.forwards.push(PortForward { id: known.id, wish });
            }
            _ => {
                let request = Request { wish, steal: rule.steal, origin: Some(config.line(place)) };
                fresh.push((rule, place, request));
            }
        }
    }
    state.forwards.sort_unstable_by_key(|forward| forward.id);
    if fresh.is_empty() {
        return Ok(Vec::new());
    }
    let mut admission = Admission::open(state, facts, directory(state)?)?.patient(state, facts);
    let mut warnings = Vec::new();
    for (rule, place, request) in fresh {
        match admission.admit(&request) {
            Ok(admitted) => {
                warnings.extend(admitted.warnings);
                match admitted.verdict {
                    Verdict::New => {
                        let id = state.next_forward;
                        state.next_forward = id.saturating_add(1);
                        state.forwards.push(PortForward { id, wish: request.wish });
                    }
                    Verdict::Unchanged(id) | Verdict::Renewed(id) => warnings.push(format!(
                        "{}: port forward {id} of the command line is {} already, and stays the command line's",
                        config.line(place),
                        rule.wish.spec
                    )),
                }
            }
            Err(error) => faults.push(Fault::at(place.clone(), error.to_string()).exit(error.exit())),
        }
    }
    Ok(warnings)
}
