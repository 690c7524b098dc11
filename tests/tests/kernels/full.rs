//! What `./dev test` leaves to `./dev test kernels`.

use anyhow::Result;
use vmnat_tests::kernels::{Inside, Selection};

/// Whatever the kernel has a part in.
const CORE: &[&str] = &[
    "kernel::",
    "commands::",
    "errors::",
    "filtering::",
    "firewalls::",
    "forwards::",
    "hostile::",
    "leases::",
    "life::",
    "neighbours::",
    "quotas::",
    "rfc::stun::",
    "room::",
    "services::",
    "sources::",
    "takeover::",
    "traffic::",
];

/// What concerns files alone.
const FILES: &str = "forwards::files::";

/// Linux 6.1 has no tcx, which `kernel::` shows.
const WITHOUT_TCX: Selection = Selection { filters: CORE, skips: &["::tcx::", FILES], least: 130 };

const BOTH_HOOKS: Selection = Selection { filters: CORE, skips: &[FILES], least: 250 };

#[test]
fn the_core_holds_on_linux_6_1() -> Result<()> {
    Inside::boot("bookworm", "6.1")?.must_pass_apart(&WITHOUT_TCX)
}

#[test]
fn the_core_holds_on_linux_6_12() -> Result<()> {
    Inside::boot("trixie", "6.12")?.must_pass_apart(&BOTH_HOOKS)
}
