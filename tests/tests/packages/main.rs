//! The packages, on a distribution's own system: installed, upgraded, removed, and what the unit does in between.

use anyhow::Result;
use vmnat_tests::packages::{Machine, Packages};

#[test]
fn it_boots() -> Result<()> {
    let packages = Packages::find()?;
    let suite = std::env::var("SUITE").unwrap_or("bookworm".into());
    let mut machine = Machine::boot(&suite, packages.folder())?;
    let script = std::env::var("SCRIPT")?;
    for line in std::fs::read_to_string(script)?.lines().filter(|line| !line.is_empty()) {
        let since = std::time::Instant::now();
        if line == "REBOOT" {
            machine.reboot()?;
        } else {
            machine.try_run(line)?;
        }
        println!("  {:?}", since.elapsed());
    }
    Ok(())
}
