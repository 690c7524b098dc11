//! What `./dev test` runs of it.

use anyhow::Result;
use vmnat_tests::kernels::{Inside, Selection};

/// From `up` to `down`, conversations, a port forward, an agent that dies; and what hook the kernel has.
const SHORT: Selection = Selection { filters: &["kernel::", "life::clsact::"], skips: &[], least: 3 };

#[test]
fn a_few_scenarios_hold_on_linux_6_1() -> Result<()> {
    Inside::boot("bookworm", "6.1")?.must_pass(&SHORT)
}
