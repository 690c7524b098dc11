//! A guest that knows nothing of its network: it asks for an address, and then tries all that a guest does.

use std::time::Duration;

use anyhow::{Context, Result};

use super::{MODULES, VirtualMachine, boot_guest, init};
use crate::{
    boot::{self, Kernel},
    hosts::checks::Check,
    lab::Lab,
};

/// What it has found: its address where it was given one, and how each check went.
#[derive(Debug)]
pub struct Found {
    /// The address that it got by DHCP.
    pub leased: Option<String>,
    /// Each check with what it said, as an error where it failed.
    pub checks: Vec<(Check, Result<()>)>,
}

impl VirtualMachine {
    /// Starts the guest without an address. Where nobody gives it one, it takes [`super::ADDRESS`] for the rest.
    ///
    /// # Errors
    ///
    /// As [`VirtualMachine::start`].
    pub fn start_fresh(lab: &Lab) -> Result<Self> {
        let kernel = Kernel::find(&MODULES)?;
        let archive = boot::initramfs(&kernel, &init::fresh())?;
        boot_guest(lab, &kernel, archive)
    }

    /// Waits until the fresh guest has tried everything.
    ///
    /// # Errors
    ///
    /// When it does not finish within `patience`.
    pub fn found(&mut self, patience: Duration) -> Result<Found> {
        let mut found = Found { leased: None, checks: Vec::new() };
        for line in self.lines(patience)? {
            let mut words = line.trim_start_matches("vm:").splitn(3, ' ');
            let (name, verdict) = words.next().zip(words.next()).with_context(|| line.clone())?;
            let said = words.next().unwrap_or_default().to_owned();
            let Some(check) = Check::named(&name.replace('-', " ")) else { continue };
            let result =
                if verdict == "ok" { Ok(()) } else { Err(anyhow::anyhow!("the guest says {said:?}")) };
            if check == Check::Dhcp && result.is_ok() {
                found.leased = Some(said);
            }
            found.checks.push((check, result));
        }
        Ok(found)
    }
}
