//! SIGHUP: the operator's files are read again and taken over, as `vmnat apply` does it. Files with a fault leave everything
//! as it is.

use anyhow::Result;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{Agent, Readiness, SETTLE};
use crate::{
    change::Change,
    config, facts,
    kernel_log::KernelLog,
    state::{self, Lock},
    systemd,
};

impl Agent<'_> {
    /// Reads the files again, and makes true what they say. systemd hears when that is over, whatever came of it.
    pub(super) async fn reload(&mut self, kernel_log: &mut Option<KernelLog>) {
        self.reload_due = None;
        systemd::reloading();
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
        // An agent that is not ready yet says so by itself.
        if self.reload_due.is_none() && self.readiness == Readiness::Told {
            systemd::ready();
        }
    }

    async fn try_reload(&mut self) -> Result<bool> {
        let Some(lock) = Lock::try_take_existing(self.instance)? else { return Ok(false) };
        let Some(state) = state::find(self.instance)? else { return Ok(true) };
        let facts = facts::gather(&self.handle).await?;
        let mut change = Change::with(self.instance, self.handle.clone(), lock, state, facts);
        if !config::renew(self.instance, &mut change).await? {
            info!("SIGHUP: no file is there to be read");
        }
        self.kernel_log = change.state.kernel_log;
        Ok(true)
    }
}
