//! The kernel has no memory or no room for a map's entry, a map, a program or a link: a command says so and changes nothing, guests
//! notice nothing, and what could not be put back is true as soon as the kernel lets it.

mod calls;
mod full;

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use vmnat_tests::lab::{
    EXTERNAL, Lab, SERVER_ECHO,
    client::{self, Conversation},
    snapshot::Snapshot,
    vmnat::Hook,
    wait_until,
};

use self::calls::{CREATIONS, Ended, Refusal, Seized, UPDATES, run};
use super::{BRIDGE, MAIN, base, diff, forwards, guest_flows, http, listed, write};

/// How long the agent may take to make things true once it can.
const PATIENCE: Duration = Duration::from_secs(30);

/// What bpf(2) answers where there is no memory, or no room.
const ERRORS: [i32; 3] = [libc::ENOMEM, libc::E2BIG, libc::ENOSPC];

const EVER: usize = usize::MAX;

/// The sampled calls of so many that fail, once or from then on, each with another error.
fn refusals(commands: &'static [u64], calls: usize, samples: usize) -> Vec<Refusal> {
    let samples = samples.min(calls);
    // The two thousand words of the port pool come first, where nothing is there yet.
    let skipped = if calls > 500 { calls.saturating_sub(60) } else { 0 };
    let span = calls.saturating_sub(skipped).saturating_sub(1);
    let nth = |sample: usize| match sample.saturating_mul(span).checked_div(samples.saturating_sub(1)) {
        Some(further) if sample > 0 => skipped.saturating_add(further).saturating_add(1),
        _ => 1,
    };
    let errors = ERRORS.iter().cycle();
    let one = |(sample, errno): (usize, &i32)| Refusal {
        commands,
        from: nth(sample),
        lasts: sample % 2 == 1,
        errno: *errno,
    };
    (0..samples).zip(errors).map(one).collect()
}

/// The number of such calls that a command makes when none fails.
fn calls_of(lab: &Lab, arguments: &[&str], commands: &'static [u64]) -> Result<usize> {
    let ended = run(lab, arguments, Refusal { commands, from: EVER, lasts: false, errno: 0 })?;
    ensure!(ended.code == 0, "`vmnat {}` ends so without any fault: {ended:?}", arguments.join(" "));
    Ok(ended.calls)
}

/// One line that says what, why, what holds, and what to do.
fn is_told(ended: &Ended, refusal: Refusal) -> Result<()> {
    let why = std::io::Error::from_raw_os_error(refusal.errno).to_string();
    let text = &ended.error;
    let states = ["nothing was changed: ", "as soon as the kernel lets it: ", "is undone: "];
    ensure!(ended.code == 1, "{refusal:?} is not refused: {ended:?}");
    ensure!(text.lines().count() == 1 && text.contains(&why), "{refusal:?}: {text}");
    ensure!(text.contains("try again") && states.iter().any(|state| text.contains(state)), "{text}");
    ensure!(refusal.lasts || !text.contains("as soon as"), "{refusal:?}: {text}");
    Ok(())
}

/// Every update of an `add`: the forward that was leads, the new one does not, and a stream of guest 1 goes on.
#[test]
fn an_add_that_the_kernel_refuses_changes_nothing() -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(Hook::of_the_kernel())?;
    lab.vmnat_ok(&["dnat", "add", &http(9090)])?;
    let mut stream = Conversation::open(lab.guest(1)?, SERVER_ECHO)?;
    let add = ["dnat", "add", &http(8080)];
    let calls = calls_of(&lab, &add, UPDATES)?;
    lab.vmnat_ok(&["dnat", "rm", &http(8080)])?;
    ensure!(calls >= 4, "{calls} updates");
    for refusal in refusals(UPDATES, calls, 8) {
        let ended = run(&lab, &add, refusal)?;
        is_told(&ended, refusal)?;
        ensure!(listed(&lab)? == [(http(9090), "command".to_owned())], "{refusal:?}: {:?}", listed(&lab)?);
        let new = || client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/");
        if refusal.lasts {
            wait_until("the agent puts back what was", PATIENCE, || Ok(new().is_err() && is_sound(&lab)?))?;
        }
        client::must_fail("the new one", new()).with_context(|| format!("{refusal:?}"))?;
        client::get(&lab.world, &format!("{EXTERNAL}:9090"), "/").with_context(|| format!("{refusal:?}"))?;
        stream.exchange(2_000)?;
    }
    lab.vmnat_ok(&add)?;
    client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/")?;
    stream.close()?;
    lab.assert_invariants()
}

/// True where `status` has nothing to warn of.
fn is_sound(lab: &Lab) -> Result<bool> {
    Ok(warnings(lab)?.is_empty())
}

fn warnings(lab: &Lab) -> Result<Vec<serde_json::Value>> {
    let status = lab.listing(&["status"])?;
    Ok(status.at(0)["warnings"].as_array().cloned().unwrap_or_default())
}

/// Forwards, a quota, an access list and a destination without translation, all at once.
#[test]
fn an_apply_that_the_kernel_refuses_changes_nothing() -> Result<()> {
    let mut lab = Lab::new()?;
    let hook = Hook::of_the_kernel();
    let old = format!("{}{}{BRIDGE}", base(hook), forwards(8080..8083));
    let rest = "guest-flows = 4096\ndeny = [\"192.0.2.0/24:7/udp\"]\nno-nat = [\"10.8.0.0/16\"]\n";
    let new = format!("{}{rest}{}{BRIDGE}", base(hook), forwards(8082..8090));
    write(MAIN, &old)?;
    lab.vmnat_ok(&["apply"])?;
    let mut stream = Conversation::open(lab.guest(1)?, SERVER_ECHO)?;
    let was = listed(&lab)?;
    write(MAIN, &new)?;
    let calls = calls_of(&lab, &["apply"], UPDATES)?;
    for refusal in refusals(UPDATES, calls, 6) {
        write(MAIN, &old)?;
        lab.vmnat_ok(&["apply"])?;
        write(MAIN, &new)?;
        let ended = run(&lab, &["apply"], refusal)?;
        is_told(&ended, refusal)?;
        wait_until("what was is true", PATIENCE, || is_sound(&lab))?;
        let lists = lab.rows(&["access", "list"])?;
        ensure!(listed(&lab)?.len() == was.len() && guest_flows(&lab)? != 4096, "{refusal:?}: half of it");
        ensure!(lists.is_empty(), "{refusal:?}: {lists:?}");
        client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/").with_context(|| format!("{refusal:?}"))?;
        client::must_fail("a new one", client::get(&lab.world, &format!("{EXTERNAL}:8089"), "/"))?;
        stream.exchange(2_000)?;
        diff(&lab, 1)?;
    }
    lab.vmnat_ok(&["apply"])?;
    ensure!(diff(&lab, 0)?.is_empty(), "it is not true when nothing fails");
    client::get(&lab.world, &format!("{EXTERNAL}:8089"), "/")?;
    stream.close()?;
    lab.assert_invariants()
}

#[test]
fn a_network_that_the_kernel_refuses_is_not_served() -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(Hook::of_the_kernel())?;
    lab.host.ip("link add virbr9 type bridge\naddress add 10.9.9.1/24 dev virbr9\nlink set virbr9 up\n")?;
    let mut stream = Conversation::open(lab.guest(1)?, SERVER_ECHO)?;
    let add = ["network", "add", "virbr9"];
    let calls = calls_of(&lab, &add, UPDATES)?;
    lab.vmnat_ok(&["network", "rm", "virbr9"])?;
    for refusal in refusals(UPDATES, calls, 4) {
        let ended = run(&lab, &add, refusal)?;
        is_told(&ended, refusal)?;
        wait_until("what was is true", PATIENCE, || is_sound(&lab))?;
        ensure!(lab.rows(&["network", "list"])?.len() == 1, "{refusal:?}: it is served");
        stream.exchange(2_000)?;
        client::converse(lab.guest(2)?, SERVER_ECHO)?;
    }
    lab.vmnat_ok(&add)?;
    stream.close()?;
    lab.assert_invariants()
}

/// What is tried again, and probes of what the kernel has, may fail, and then it comes up as a whole.
#[test]
fn an_up_that_the_kernel_refuses_leaves_nothing() -> Result<()> {
    let mut lab = Lab::new()?;
    let before = Snapshot::take(&lab.host)?;
    let up = ["up", "--bridge", "virbr0", "--uplink", "enp3s0"];
    for (commands, samples) in [(UPDATES, 3), (CREATIONS, 5)] {
        let calls = calls_of(&lab, &up, commands)?;
        lab.vmnat_ok(&["down"])?;
        let mut refused = 0;
        for refusal in refusals(commands, calls, samples) {
            // Other errors mean something else where an object is made.
            let errno = if commands == UPDATES { refusal.errno } else { libc::ENOMEM };
            let refusal = Refusal { errno, ..refusal };
            let ended = run(&lab, &up, refusal)?;
            ensure!(ended.was_met(refusal), "{refusal:?} of {calls}: {ended:?}");
            if ended.code == 0 {
                client::converse(lab.guest(1)?, SERVER_ECHO).with_context(|| format!("{refusal:?}"))?;
                lab.vmnat_ok(&["down"])?;
                continue;
            }
            refused += 1;
            let why = std::io::Error::from_raw_os_error(refusal.errno).to_string();
            match ended.code {
                12 => ensure!(ended.error.contains(&why), "{refusal:?}: {ended:?}"),
                _ => is_told(&ended, refusal)?,
            }
            lab.refused_with(9, &["status"])?;
            Snapshot::take(&lab.host)?.assert_same_as(&before).with_context(|| format!("{refusal:?}"))?;
        }
        ensure!(refused > 1, "{refused} of {samples} were refused");
    }
    lab.up(Hook::of_the_kernel())?;
    client::converse(lab.guest(1)?, SERVER_ECHO)?;
    lab.assert_invariants()
}

/// A port comes while the agent may store nothing: its log and `status` say so, and once it may, all is true by itself.
#[test]
fn an_agent_that_the_kernel_refuses_tries_again() -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(Hook::of_the_kernel())?;
    let mut stream = Conversation::open(lab.guest(1)?, SERVER_ECHO)?;
    let refusal = Refusal { commands: UPDATES, from: 1, lasts: true, errno: libc::ENOMEM };
    let seized = Seized::take(lab.agent()?, refusal);
    let newcomer = lab.add_guest()?;
    wait_until("an update was refused twice", PATIENCE, || Ok(seized.refused() >= 2))?;
    wait_until("status tells it", PATIENCE, || {
        Ok(warnings(&lab)?.iter().any(|warning| warning.to_string().contains("Cannot allocate memory")))
    })?;
    stream.exchange(2_000)?;
    seized.let_go()?;
    wait_until("all is true", PATIENCE, || is_sound(&lab))?;
    let state: serde_json::Value = serde_json::from_slice(&fs::read(super::STATE)?)?;
    let log = fs::read_to_string(state["log"].as_str().context("no log")?)?;
    for words in ["cannot bring the instance up to date", "the instance is up to date again"] {
        ensure!(log.contains(words), "no {words:?} in {log}");
    }
    client::converse(lab.guest(newcomer)?, SERVER_ECHO)?;
    stream.close()?;
    lab.assert_invariants()
}
