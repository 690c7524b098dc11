//! What `./dev test` leaves to `./dev test kernels`.

use anyhow::Result;
use vmnat_tests::kernels::{Inside, Selection};

/// Whatever concerns the kernel's part in it.
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

#[test]
fn the_core_holds_on_linux_6_1() -> Result<()> {
    let no_tcx = Selection { filters: CORE, skips: &["::tcx::"], least: 100 };
    Inside::boot("bookworm", "6.1")?.must_pass(&no_tcx)
}

#[test]
fn the_core_holds_on_linux_6_12() -> Result<()> {
    let both = Selection { filters: CORE, skips: &[], least: 200 };
    Inside::boot("trixie", "6.12")?.must_pass(&both)
}
