//! ufw with Debian's defaults: what comes in and what is forwarded is dropped.

use anyhow::Result;

use crate::hosts::stage::Stage;

/// Turns it on, with sshd's port let in.
///
/// # Errors
///
/// When it fails.
pub fn enable(stage: &Stage) -> Result<()> {
    stage.run(&["ufw", "allow", "22/tcp"])?;
    stage.run(&["ufw", "--force", "enable"]).map(drop)
}

/// Reloads its rules.
///
/// # Errors
///
/// When it fails.
pub fn reload(stage: &Stage) -> Result<()> {
    stage.run(&["ufw", "reload"]).map(drop)
}

/// Has it flush the chains that others share with it, from the next reload on.
///
/// # Errors
///
/// When its settings cannot be written.
pub fn manage_builtins(stage: &Stage) -> Result<()> {
    stage.run(&["sed", "-i", "s/^MANAGE_BUILTINS=.*/MANAGE_BUILTINS=yes/", "/etc/default/ufw"]).map(drop)
}
