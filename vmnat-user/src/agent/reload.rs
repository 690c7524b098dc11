//! SIGHUP: the operator's files are read again and taken over, as `vmnat apply` does it. Files with a fault leave everything
//! as it is, which is said once in the log, and in `status` until they are mended.

use anyhow::Result;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{Agent, SETTLE};
use crate::{
    change::Change,
    config::{self, Config, Faults, Source},
    error::Error,
    facts,
    kernel_log::KernelLog,
    state::{self, Lock, State},
};

impl Agent<'_> {
    /// Reads the files again, and makes true what they say.
    pub(super) async fn reload(&mut self, kernel_log: &mut Option<KernelLog>) {
        self.reload_due = None;
        match self.try_reload().await {
            Ok(true) => {}
            // A command is changing the instance.
            Ok(false) => self.reload_due = Instant::now().checked_add(SETTLE),
            Err(error) => warn!("the files cannot be taken over: {error:#}"),
        }
        if self.kernel_log != kernel_log.is_some() {
            *kernel_log = self.open_kernel_log();
        }
        // Whatever came of it, the instance is brought up to date.
        self.reconcile().await;
    }

    async fn try_reload(&mut self) -> Result<bool> {
        let Some(lock) = Lock::try_take_existing(self.instance)? else { return Ok(false) };
        let Some(state) = state::find(self.instance)? else { return Ok(true) };
        let source = state.file.source.clone();
        let facts = facts::gather(&self.handle).await?;
        let mut change = Change::with(self.instance, self.handle.clone(), lock, state, facts);
        let before = change.state.clone();
        match self.take_over(&mut change, &source).await {
            Ok(()) => self.kernel_log = change.state.kernel_log,
            Err(error) => {
                let fault = brief(&error);
                change.state = state::find(self.instance)?.unwrap_or(before);
                if change.state.file.fault.as_ref() != Some(&fault) {
                    warn!("what {} says is not taken over: {error:#}", source.name(self.instance));
                    change.state.file.fault = Some(fault);
                    change.save()?;
                }
            }
        }
        Ok(true)
    }

    async fn take_over(&self, change: &mut Change, source: &Source) -> Result<()> {
        let Some(config) = self.read(&change.state, source)? else {
            info!("SIGHUP: no file is there to be read");
            if change.state.file.fault.take().is_some() {
                change.save()?;
            }
            return Ok(());
        };
        let (prepared, done) = config::apply::carry_out(self.instance, change, &config, source).await?;
        let name = source.name(self.instance);
        info!("read {name} again: {} differences", prepared.differences.len());
        for difference in &prepared.differences {
            info!("{difference}");
        }
        for line in &done.changes {
            info!("{line}");
        }
        for warning in &prepared.warnings {
            warn!("{warning}");
        }
        Ok(())
    }

    fn read(&self, state: &State, source: &Source) -> Result<Option<Config>> {
        let owns =
            !state.file.owned.is_empty() || state.forwards.iter().any(|forward| forward.wish.file.is_some());
        config::again(self.instance, source, owns)
    }
}

/// A fault in a line.
fn brief(error: &anyhow::Error) -> String {
    match error.downcast_ref::<Error>() {
        Some(Error::BadConfig(faults)) => Faults::brief(faults),
        _ => format!("{error:#}").lines().next().unwrap_or_default().to_owned(),
    }
}
