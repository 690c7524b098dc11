//! Files are read again: when the agent is told to (SIGHUP), and when the service starts. Where they have a fault, or are gone,
//! what they said last holds: that is said once in the log, and in `status` until they are mended.

use anyhow::Result;
use tracing::{info, warn};

use super::{Config, Faults, Source, again, apply, find};
use crate::{
    change::Change,
    error::Error,
    facts::Facts,
    leases::Directory,
    paths::Instance,
    state::{self, State},
};

/// Makes true what the files say by now, where the instance runs; false where there is no file to be read.
///
/// # Errors
/// When the state cannot be read or written; what the files' faults are is no error.
pub async fn renew(instance: &Instance, change: &mut Change) -> Result<bool> {
    let before = change.state.clone();
    let source = before.file.source.clone();
    match take_over(instance, change, &source).await {
        Ok(was_read) => Ok(was_read),
        Err(error) => {
            let fault = brief(&error);
            change.state = state::find(instance)?.unwrap_or(before);
            if change.state.file.fault.as_ref() != Some(&fault) {
                warn!("what {} says is not taken over: {error:#}", source.name(instance));
                change.state.file.fault = Some(fault);
                change.save()?;
            }
            Ok(true)
        }
    }
}

async fn take_over(instance: &Instance, change: &mut Change, source: &Source) -> Result<bool> {
    let Some(config) = again(instance, source, owns(&change.state))? else {
        if change.state.file.fault.take().is_some() {
            change.save()?;
        }
        return Ok(false);
    };
    let (prepared, done) = apply::carry_out(instance, change, &config, source).await?;
    tell(&prepared, &source.name(instance));
    for line in &done.changes {
        info!("{line}");
    }
    Ok(true)
}

/// The state of an instance that does not run yet, with what the files say by now; `kept` is what it was asked to be before.
#[must_use]
pub fn renew_kept(instance: &Instance, kept: State, facts: &Facts) -> State {
    let source = kept.file.source.clone();
    let found = again(instance, &source, owns(&kept));
    let renewed = found.and_then(|config| {
        config.map(|config| make(instance, kept.clone(), facts, &config, source.clone())).transpose()
    });
    match renewed {
        Ok(renewed) => renewed.unwrap_or(kept),
        Err(error) => {
            warn!(
                "what {} says is not taken over, but what it said before: {error:#}",
                source.name(instance)
            );
            let mut kept = kept;
            kept.file.fault = Some(brief(&error));
            kept
        }
    }
}

/// The state that the instance's own files ask for, where nothing is kept beside port forwards; none where they say nothing.
///
/// # Errors
/// As [`apply::prepare`], and when a file cannot be read.
pub fn asked_for(instance: &Instance, stored: State, facts: &Facts) -> Result<Option<State>> {
    let config = find(instance)?.filter(says_something);
    config.map(|config| make(instance, stored, facts, &config, Source::Own)).transpose()
}

/// Whether the instance's own files ask for anything. Those with a fault do.
#[must_use]
pub fn ask_for_anything(instance: &Instance) -> bool {
    find(instance).map_or(true, |config| config.is_some_and(|config| says_something(&config)))
}

/// A file whose every line is a comment says nothing.
fn says_something(config: &Config) -> bool {
    !config.statements.is_empty() || !config.rules.is_empty()
}

fn make(
    instance: &Instance,
    mut state: State,
    facts: &Facts,
    config: &Config,
    source: Source,
) -> Result<State> {
    let directory = |state: &State| Ok(Directory::of_files(state));
    let prepared = apply::prepare(instance, &mut state, facts, config, false, directory)?;
    tell(&prepared, &source.name(instance));
    state.file.source = source;
    state.file.fault = None;
    Ok(state)
}

/// Whether the files own anything.
fn owns(state: &State) -> bool {
    !state.file.owned.is_empty() || state.forwards.iter().any(|forward| forward.wish.file.is_some())
}

fn tell(prepared: &apply::Prepared, name: &str) {
    info!("read {name} again: {} differences", prepared.differences.len());
    for difference in &prepared.differences {
        info!("{difference}");
    }
    for warning in &prepared.warnings {
        warn!("{warning}");
    }
}

/// A fault in a line.
fn brief(error: &anyhow::Error) -> String {
    match error.downcast_ref::<Error>() {
        Some(Error::BadConfig(faults)) => Faults::brief(faults),
        _ => format!("{error:#}").lines().next().unwrap_or_default().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        config::{SourceText, parse, sample},
        state::HookMode,
    };

    /// What is kept of a file that said one thing, read again when it says another.
    fn renewed(name: &str, now: Option<&str>) -> State {
        let path = std::env::temp_dir().join(format!("vmnat-renew-{}-{name}", std::process::id()));
        let before = "guest-flows = 7\nforward = ['80:10.0.0.2:80']\n[bridge.vmnat-none]\n";
        let config = parse(vec![SourceText::new(path.display().to_string(), before)]).unwrap();
        let (instance, facts) = (Instance::default(), Facts::default());
        let source = Source::File(path.clone());
        let kept = make(&instance, State::new(HookMode::Tcx), &facts, &config, source).unwrap();
        assert_eq!((kept.quotas.flows, kept.forwards.len()), (7, 1));
        if let Some(text) = now {
            fs::write(&path, text).unwrap();
        }
        let renewed = renew_kept(&instance, kept.clone(), &facts);
        fs::remove_file(&path).ok();
        if renewed.file.fault.is_some() {
            let mut without = renewed.clone();
            without.file.fault = None;
            assert_eq!(without, kept, "a fault has changed something");
        }
        renewed
    }

    #[test]
    fn what_a_file_says_by_now_takes_the_place_of_what_it_said() {
        let renewed = renewed("other", Some("[timeout]\nicmp = 9\n[bridge.vmnat-none]\n"));
        assert_eq!(renewed.quotas, State::new(HookMode::Tcx).quotas);
        assert_eq!((renewed.timeouts["icmp"], renewed.bridges.len(), renewed.forwards.len()), (9, 1, 0));
        assert_eq!(renewed.file.fault, None);
    }

    #[test]
    fn what_a_file_said_holds_while_it_has_a_fault_or_is_gone() {
        let broken = renewed("broken", Some("guest-flow = 7\n")).file.fault.unwrap();
        assert!(broken.contains("there is no key"), "{broken}");
        assert!(renewed("gone", None).file.fault.unwrap().contains("vmnat-renew"));
    }

    #[test]
    fn the_sample_says_nothing_and_a_bridge_alone_does() {
        for (text, says) in [(sample().as_str(), false), ("", false), ("[bridge.virbr0]", true)] {
            let config = parse(vec![SourceText::new("vmnat.toml", text)]).unwrap();
            assert_eq!(says_something(&config), says, "{text}");
        }
    }
}
