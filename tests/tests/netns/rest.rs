//! A freed port rests also after the maps that knew of it were lost.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use vmnat_tests::lab::{
    Lab, SERVER_ECHO,
    client::Asker,
    vmnat::{Hook, INSTANCE},
    wait_until,
};

on_both_hooks!(
    nobody_gets_anothers_port_over_down_and_up,
    the_agent_writes_mappings_down_for_a_loss_without_down
);

/// 1. both guests want port 20000, and guest 1 has it; 2. `down` and `up`; 3. guest 2 asks first, and has the port that it had
///    before; guest 1 has its own.
fn nobody_gets_anothers_port_over_down_and_up(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let (first, second) = (Asker::new(lab.guest(1)?, 20_000)?, Asker::new(lab.guest(2)?, 20_000)?);
    let before = (first.ask(SERVER_ECHO)?, second.ask(SERVER_ECHO)?);
    ensure!(before.0.port() == 20_000 && before.1.port() != 20_000, "{before:?}");
    for _ in 0..2 {
        lab.vmnat_ok(&["down"])?;
        lab.up(hook)?;
        let (second, first) = (second.ask(SERVER_ECHO)?, first.ask(SERVER_ECHO)?);
        ensure!((first, second) == before, "before {before:?}, after {first} and {second}");
    }
    lab.assert_invariants()
}

/// 1. both guests want port 20000; 2. the agent has written it down, is killed, and the maps go without a last word; 3. guest 2
///    asks first, and has the port that it had before.
fn the_agent_writes_mappings_down_for_a_loss_without_down(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up_with(hook, &["--reap-interval", "300ms"])?;
    let (first, second) = (Asker::new(lab.guest(1)?, 20_000)?, Asker::new(lab.guest(2)?, 20_000)?);
    let before = (first.ask(SERVER_ECHO)?, second.ask(SERVER_ECHO)?);
    let path = format!("/var/lib/vmnat/{INSTANCE}/mappings");
    // 32 bytes of header and 16 a mapping; the lab has no others.
    let length = || fs::metadata(&path).map_or(0, |file| file.len());
    wait_until("the mappings to be written", Duration::from_secs(15), || Ok(length() >= 32 + 2 * 16))?;
    let written = fs::read(&path)?;
    lab.kill_agent()?;
    lab.vmnat_ok(&["down"])?;
    // What `down` has written is not there after a loss.
    fs::write(&path, written)?;
    lab.up(hook)?;
    let (second, first) = (second.ask(SERVER_ECHO)?, first.ask(SERVER_ECHO)?);
    ensure!((first, second) == before, "before {before:?}, after {first} and {second}");
    lab.assert_invariants()
}
