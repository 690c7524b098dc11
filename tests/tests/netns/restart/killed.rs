//! `up`, `down` and an upgrade are killed as they enter a step, of files or of the kernel: the next `up` mends all, and no
//! guest's packet leaves untranslated in between.
//!
//! A command has a hundred or two of them. Some are sampled, evenly and others with each kind of hook; all of them where there
//! is time (`VMNAT_LONG`).

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use vmnat_tests::lab::{
    Lab, SERVER_ECHO, client, snapshot::Snapshot, traffic::Traffic, vmnat, vmnat::Hook, wait_until,
};

use super::{
    super::config::atomic::trace::{Steps, run_until},
    PATIENCE,
    census::Census,
    is_long,
    upgrade::another_program,
};

on_both_hooks!(
    an_up_that_is_killed_is_mended,
    a_down_that_is_killed_is_mended,
    an_upgrade_that_is_killed_is_mended_unnoticed,
    pins_of_what_has_vanished_are_dropped,
);

/// How many steps are sampled.
const SAMPLES: usize = 3;

/// The steps at which a command of so many is killed.
fn samples(hook: Hook, steps: usize) -> Vec<usize> {
    if is_long() {
        return (1..=steps).collect();
    }
    let offset = if hook == Hook::Tcx { 1 } else { 2 };
    (0..SAMPLES).map(|sample| (sample * 3 + offset) * steps / (SAMPLES * 3)).collect()
}

/// Kills a command of `vmnat` at each sampled step, between a preparation and a look; the number of its steps.
fn kill_at_each(
    lab: &Lab,
    hook: Hook,
    arguments: &[&str],
    prepare: impl Fn() -> Result<()>,
    look: impl Fn() -> Result<()>,
) -> Result<()> {
    let program = vmnat::program()?;
    prepare()?;
    let whole = run_until(lab, &program, arguments, (Steps::All, usize::MAX))?;
    let steps = whole.context("it was killed")?;
    look()?;
    let samples = samples(hook, steps);
    for step in &samples {
        prepare()?;
        let step = *step;
        run_until(lab, &program, arguments, (Steps::All, step))?;
        look().with_context(|| format!("killed at step {step} of {steps}"))?;
    }
    println!("{hook:?}, {}: killed at {} of {steps} steps: {samples:?}", arguments[0], samples.len());
    Ok(())
}

/// 1. nothing runs; 2. `up` is killed; 3. `up` serves the guests, and `down` leaves the host as it was.
fn an_up_that_is_killed_is_mended(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    let before = Snapshot::take(&lab.host)?;
    let up = ["up", "--bridge", "virbr0", "--uplink", "enp3s0", "--hook", hook.name()];
    lab.beside_a_busy_guest(|| {
        let look = || {
            lab.up(hook)?;
            client::converse(lab.guest(2)?, SERVER_ECHO)?;
            lab.vmnat_ok(&["status"])?;
            lab.vmnat_ok(&["down"])?;
            Snapshot::take(&lab.host)?.assert_same_as(&before)
        };
        kill_at_each(&lab, hook, &up, || Ok(()), look)
    })?;
    lab.up(hook)?;
    lab.assert_sound_but_for_invalid_packets()
}

/// 1. all is up; 2. `down` is killed; 3. `up` serves the guests, and `down` leaves the host as it was.
fn a_down_that_is_killed_is_mended(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    let before = Snapshot::take(&lab.host)?;
    lab.beside_a_busy_guest(|| {
        let prepare = || lab.up(hook).map(drop);
        let look = || {
            lab.up(hook)?;
            client::converse(lab.guest(2)?, SERVER_ECHO)?;
            lab.vmnat_ok(&["status"])?;
            lab.vmnat_ok(&["down"])?;
            Snapshot::take(&lab.host)?.assert_same_as(&before)
        };
        kill_at_each(&lab, hook, &["down"], prepare, look)
    })?;
    lab.up(hook)?;
    lab.assert_sound_but_for_invalid_packets()
}

/// An upgrade that makes some maps anew is killed, and begun once more; then back. Streams, ports and datagrams go on all the
/// while, and nothing is left over.
fn an_upgrade_that_is_killed_is_mended_unnoticed(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let own = vmnat::program()?;
    let later = another_program(Path::new("/run/vmnat-later"), &[("GUEST", 8_192), ("LEASE", 32_768)])?;
    let traffic = Traffic::start(&lab)?;
    let before = Census::take(&lab)?;
    let up = |program: &Path| lab.host.exec(&[&program.to_string_lossy(), "up"]);
    let steps = run_until(&lab, &later, &["up"], (Steps::All, usize::MAX))?.context("it was killed")?;
    up(&own)?;
    let samples = samples(hook, steps);
    for step in &samples {
        let killed = run_until(&lab, &later, &["up"], (Steps::All, *step))?;
        let mended = up(&later).and_then(|_| traffic.moves(PATIENCE));
        mended.with_context(|| format!("killed at step {step} of {steps} ({killed:?})"))?;
        up(&own)?;
    }
    println!("{hook:?}, an upgrade: killed at {} of {steps} steps: {samples:?}", samples.len());
    traffic.moves(PATIENCE)?;
    let report = traffic.finish()?;
    println!("{hook:?}, upgrades that are killed: {report}");
    report.assert_unnoticed(u32::try_from(3 * samples.len() + 2)?)?;
    // The maps that changed are others by now; their pins are not.
    before.assert_same_but_for_maps(&lab)?;
    lab.assert_invariants()
}

/// 1. without an agent, guest 2's port and the bridge's uplink address go, and pins and half-made directories lie about, as a kill
///    leaves them; 2. `run` drops all that, and guest 1 goes on.
fn pins_of_what_has_vanished_are_dropped(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    let traffic_of_one = client::Asker::new(lab.guest(1)?, 20_000)?;
    let seen_as = traffic_of_one.ask(SERVER_ECHO)?;
    lab.kill_agent()?;
    lab.host.ip("link delete vnet2\n")?;
    let pins = PathBuf::from("/sys/fs/bpf/vmnat/default");
    let former = format!("v{}-former001", vmnat_common::SCHEMA_VERSION);
    // An upgrade that was killed before it had pinned anything.
    fs::create_dir_all(pins.join(&former).join("maps"))?;
    fs::create_dir_all(pins.join(&former).join("links"))?;
    let stale = vmnat_user::paths::Instance::default().schema_pins().join("links/vnet2-ingress");
    ensure!(stale.exists() == (hook == Hook::Tcx), "the pin of a link that is severed");
    let agent = super::run(&lab)?;
    wait_until("stale pins are gone", PATIENCE, || Ok(!stale.exists() && !pins.join(&former).exists()))?;
    ensure!(traffic_of_one.ask(SERVER_ECHO)? == seen_as, "guest 1 has lost its port");
    drop(agent);
    lab.assert_invariants()
}
