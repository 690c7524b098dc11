//! What `./dev test` leaves to `./dev test packages`.

use anyhow::Result;

use crate::life;

#[test]
fn the_package_lives_on_linux_6_12() -> Result<()> {
    life::must_be_good("trixie", "6.12.", "tcx", "After")
}
