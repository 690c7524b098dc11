//! `vmnat run`: what the systemd unit runs. Brings back what was asked for before, and stays as the agent.

use anyhow::Result;

use super::up;
use crate::{
    agent::{self, Herald},
    change::{self, Change},
    config, dataplane,
    error::Error,
    facts::{self, Facts},
    launch, link,
    paths::Instance,
    reconcile,
    state::{self, HookMode, Lock, State, kept},
};

/// Bring back what `up` and `dnat` set up and files say, and stay as the agent; for service managers
///
/// What `up` was asked for is kept over a reboot, until `down`. What the files in /etc/vmnat say is read again; where they have
/// a fault, what they said last holds. Without anything kept, what they say alone is done. Bridges and uplinks that are not there yet are taken up when
/// they come. An instance that runs is taken over: its flows go on, and programs of another version are replaced. The agent
/// that `up` started in the background ends.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Only tell whether there is anything to bring back: ends with 0 or 1
    #[arg(long)]
    check: bool,
}

/// Runs the command.
///
/// # Errors
/// [`Error::NotRunning`] when nothing was asked for; when the kernel half cannot be loaded, and as [`agent::run`].
pub async fn run(instance: &Instance, args: &Args) -> Result<()> {
    let Args { check } = *args;
    up::need_root("`vmnat run`")?;
    if check {
        return if is_wanted(instance) { Ok(()) } else { Err(Error::Silent.into()) };
    }
    dataplane::check_kernel()?;
    agent::end_background(instance)?;
    bring_back(instance).await?;
    agent::run(instance, Herald::ServiceManager).await
}

fn is_wanted(instance: &Instance) -> bool {
    instance.state().exists() || instance.wish().exists() || config::ask_for_anything(instance)
}

fn nothing(instance: &Instance) -> Error {
    Error::NotRunning { instance: instance.to_string(), option: instance.option() }
}

/// Loads what is not loaded as it should be. What the agent can do again and again is left to it.
async fn bring_back(instance: &Instance) -> Result<()> {
    if !is_wanted(instance) {
        // Before a lock is made for it.
        return Err(nothing(instance).into());
    }
    let handle = change::connect()?;
    let lock = Lock::take(instance)?;
    let known = state::find(instance)?;
    let facts = facts::gather(&handle).await?;
    let mut state = match &known {
        Some(known) => known.clone(),
        None => wished(instance, &facts)?,
    };
    state.mounted_bpffs |= dataplane::ensure_bpffs()?;
    reconcile::admit(instance, &state, &facts)?;
    state.log = launch::log_place(instance);
    let mut change = Change::with(instance, handle, lock, state, facts);
    if change.load()? && known.is_some() {
        tracing::info!("replaced the programs under their hooks; flows go on");
    }
    change.save()?;
    if known.is_some() {
        // The files may say something else than when they were last read.
        return config::renew(instance, &mut change).await.map(drop);
    }
    // Guests that came up before vmnat have connections that the kernel translates.
    match change.apply_first().await {
        Ok((done, taken)) => {
            for line in done.changes.iter().chain(&done.forwards) {
                tracing::info!("{line}");
            }
            tracing::info!("took over {} connections of guests from the kernel", taken.flows);
        }
        // An interface may have gone between look and touch.
        Err(error) => tracing::warn!("not all could be brought back at once: {error:#}"),
    }
    Ok(())
}

/// What is asked for, where nothing runs: the wish that is kept, and what the files say by now.
fn wished(instance: &Instance, facts: &Facts) -> Result<State> {
    let kernel: HookMode = link::kernel_mode();
    if let Some(kept) = kept::load(instance)? {
        let state = kept.into_state(kernel).with_stored_forwards(instance)?;
        return Ok(config::renew_kept(instance, state, facts));
    }
    let stored = State::stored(instance, kernel)?;
    config::asked_for(instance, stored, facts)?.ok_or_else(|| nothing(instance).into())
}
