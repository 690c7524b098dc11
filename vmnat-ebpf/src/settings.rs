//! What user space told the programs, and the clock they share.

use aya_ebpf::helpers::generated::bpf_jiffies64;
use vmnat_common::{Outcome, settings::Settings};

use crate::maps::SETTINGS;

/// The settings. An array's slot always exists, so the error is the verifier's demand only.
#[inline(always)]
pub fn get() -> Result<&'static Settings, Outcome> {
    SETTINGS.get(0).ok_or(Outcome::Unmanaged)
}

/// Jiffies since boot.
#[inline(always)]
pub fn jiffies() -> u64 {
    // SAFETY: the helper takes nothing and reads a kernel variable.
    unsafe { bpf_jiffies64() }
}
