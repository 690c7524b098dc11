//! All or nothing: full disks, a program that is killed between any two steps, two writers, thousands of rules.

pub(crate) mod trace;

use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    mount::{MsFlags, mount},
    sys::statvfs::statvfs,
};
use vmnat_tests::lab::{EXTERNAL, Lab, SERVER_ECHO, client, vmnat::Hook, wait_until};

use self::trace::killed_at;
use super::{BRIDGE, MAIN, STATE, base, diff, forwards, guest_flows, http, listed, write};

on_both_hooks!(
    a_full_disk_at_an_apply_changes_nothing,
    an_apply_that_is_killed_at_any_step_leaves_old_or_new,
    an_add_that_is_killed_at_any_step_leaves_old_or_new,
    the_second_of_two_writers_waits,
    thousands_of_forwards_come_by_file,
);

/// More steps than a command has.
const MOST_STEPS: usize = 200;

/// A tmpfs without room; there is some again when the value goes.
struct Full(&'static str);

impl Full {
    fn of(folder: &'static str) -> Result<Self> {
        // A page more than is in use, which a file takes then: the machine's memory is not for filling.
        let used = statvfs(folder).map(|disk| disk.blocks().saturating_sub(disk.blocks_free()))?;
        resize(folder, &format!("size={}k", used.saturating_add(1).saturating_mul(4)))?;
        let full = Self(folder);
        fs::write(full.fill(), [b'x'; 4096])?;
        Ok(full)
    }

    fn fill(&self) -> String {
        format!("{}/fill", self.0)
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        fs::remove_file(self.fill()).ok();
        resize(self.0, "size=64m").ok();
    }
}

fn resize(folder: &str, size: &str) -> Result<()> {
    let remount = mount(None::<&str>, folder, None::<&str>, MsFlags::MS_REMOUNT, Some(size));
    remount.with_context(|| format!("{size} for {folder}"))
}

fn temporary_files() -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for folder in ["/run/vmnat/default", "/var/lib/vmnat/default"] {
        for file in fs::read_dir(folder)? {
            all.extend(Some(file?.path()).filter(|path| path.extension().is_some_and(|end| end == "next")));
        }
    }
    Ok(all)
}

fn no_temporary_file() -> Result<()> {
    let left = temporary_files()?;
    ensure!(left.is_empty(), "there still are {left:?}");
    Ok(())
}

/// First where the state is, then where what outlives `down` is.
fn a_full_disk_at_an_apply_changes_nothing(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    let old = format!("{}{}{BRIDGE}", base(hook), forwards(8080..8081));
    write(MAIN, &old)?;
    lab.vmnat_ok(&["apply"])?;
    lab.vmnat_ok(&["dnat", "add", &http(9090)])?;
    // What the agent writes by the way is no matter of this, nor what it leaves half written.
    lab.kill_agent()?;
    for half in temporary_files()? {
        fs::remove_file(half)?;
    }
    let store = "/var/lib/vmnat/default/forwards.json";
    let before = (fs::read(STATE)?, fs::read(store)?);
    write(MAIN, &format!("{}guest-flows = 9\n{}{BRIDGE}", base(hook), forwards(8081..8300)))?;
    for (folder, file) in [("/run", "state.json"), ("/var/lib", "forwards.json")] {
        let full = Full::of(folder)?;
        let error = lab.vmnat_refused(&["apply"])?;
        ensure!(error.contains(file) && error.contains("No space left"), "{folder}: {error}");
        ensure!((fs::read(STATE)?, fs::read(store)?) == before, "{folder}: a file has changed");
        drop(full);
        no_temporary_file()?;
        client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/")?;
        client::get(&lab.world, &format!("{EXTERNAL}:9090"), "/")?;
        client::must_fail("what failed", client::get(&lab.world, &format!("{EXTERNAL}:8081"), "/"))?;
    }
    lab.vmnat_ok(&["apply"])?;
    ensure!(diff(&lab, 0)?.is_empty() && listed(&lab)?.len() == 220, "there is room again");
    lab.assert_invariants()
}

/// What is asked for, by the state's files alone.
fn asked_for(lab: &Lab) -> Result<(Vec<(String, String)>, bool)> {
    let state: serde_json::Value = serde_json::from_slice(&fs::read(STATE)?).context("half a state file")?;
    Ok((listed(lab)?, state.pointer("/quotas/flows").is_some_and(|flows| flows == 4096)))
}

/// Killed at each write, sync and rename: the files say the old or the new as a whole, the command line's forward is never
/// lost, and the next command makes everything true.
fn an_apply_that_is_killed_at_any_step_leaves_old_or_new(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    let old = format!("{}{}{BRIDGE}", base(hook), forwards(8080..8083));
    let new = format!("{}guest-flows = 4096\n{}{BRIDGE}", base(hook), forwards(8082..8090));
    write(MAIN, &old)?;
    lab.vmnat_ok(&["apply"])?;
    lab.vmnat_ok(&["dnat", "add", &http(9090)])?;
    lab.kill_agent()?;
    let set = |mut list: Vec<(String, String)>| {
        list.sort();
        list
    };
    let of_files = |ports: std::ops::Range<u16>| {
        let mut all: Vec<_> = ports.map(|port| (http(port), "file".to_owned())).collect();
        all.push((http(9090), "command".to_owned()));
        set(all)
    };
    let (was, is) = ((of_files(8080..8083), false), (of_files(8082..8090), true));
    let (mut steps, mut seen) = (0_usize, Vec::new());
    while steps < MOST_STEPS {
        steps = steps.saturating_add(1);
        write(MAIN, &new)?;
        let was_killed = killed_at(&lab, &["apply"], steps)?;
        let (list, quotas) = asked_for(&lab)?;
        let found = (set(list), quotas);
        ensure!(found == was || found == is, "killed at step {steps}: {found:?}");
        ensure!(was_killed || found == is, "it ended by itself, and {found:?}");
        seen.push(found == is);
        client::get(&lab.world, &format!("{EXTERNAL}:8082"), "/").with_context(|| format!("step {steps}"))?;
        client::get(&lab.world, &format!("{EXTERNAL}:9090"), "/").with_context(|| format!("step {steps}"))?;
        // The next command: the old files again.
        write(MAIN, &old)?;
        lab.vmnat_ok(&["apply"])?;
        // An agent that is killed while it writes leaves its own half file, which is no matter of this.
        wait_until("no temporary file", Duration::from_secs(20), || Ok(no_temporary_file().is_ok()))?;
        lab.kill_agent()?;
        ensure!(
            (set(listed(&lab)?), false) == was && diff(&lab, 0)?.is_empty(),
            "step {steps} is not mended"
        );
        client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/")?;
        client::must_fail("a new one", client::get(&lab.world, &format!("{EXTERNAL}:8089"), "/"))?;
        if !was_killed {
            break;
        }
    }
    tell(steps, &seen)?;
    lab.assert_invariants()
}

/// Prints which state was found how often, after each step but the last, which none was.
fn tell(steps: usize, seen: &[bool]) -> Result<()> {
    let new = seen.iter().filter(|is_new| **is_new).count();
    let old = seen.len().saturating_sub(new);
    println!("killed at each of {} steps: old state {old}, new state {new} times", steps.saturating_sub(1));
    ensure!(steps > 6 && steps < MOST_STEPS && old > 3 && new > 1, "{steps} steps, {old} old, {new} new");
    Ok(())
}

fn an_add_that_is_killed_at_any_step_leaves_old_or_new(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    lab.vmnat_ok(&["dnat", "add", &http(9090)])?;
    lab.kill_agent()?;
    let (mut steps, mut seen) = (0_usize, Vec::new());
    while steps < MOST_STEPS {
        steps = steps.saturating_add(1);
        let was_killed = killed_at(&lab, &["dnat", "add", &http(8080)], steps)?;
        let list = listed(&lab)?;
        ensure!(list.first().is_some_and(|(spec, _)| *spec == http(9090)), "step {steps}: {list:?}");
        ensure!(list.len() <= 2 && (was_killed || list.len() == 2), "step {steps}: {list:?}");
        seen.push(list.len() == 2);
        lab.vmnat_ok(&["network", "add", "virbr0"])?;
        let works = client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/");
        ensure!(works.is_ok() == (list.len() == 2), "step {steps}: the next command has not made it true");
        if list.len() == 2 {
            lab.vmnat_ok(&["dnat", "rm", &http(8080)])?;
        }
        client::get(&lab.world, &format!("{EXTERNAL}:9090"), "/")?;
        if !was_killed {
            break;
        }
    }
    tell(steps, &seen)?;
    lab.assert_invariants()
}

/// Both come true, one after the other: the last has the word as a whole.
fn the_second_of_two_writers_waits(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    write("/run/a.toml", &forwards(10_000..10_300))?;
    write("/run/b.toml", &format!("guest-flows = 4096\n{}", forwards(10_200..10_400)))?;
    for _ in 0..3 {
        thread::scope(|scope| -> Result<()> {
            let writers = ["/run/a.toml", "/run/b.toml"].map(|file| {
                let lab = &lab;
                scope.spawn(move || lab.vmnat_ok(&["apply", "-f", file]))
            });
            for writer in writers {
                writer.join().map_err(|_| anyhow::anyhow!("a writer panicked"))??;
            }
            Ok(())
        })?;
        let count = listed(&lab)?.len();
        let quota = guest_flows(&lab)? == 4096;
        ensure!((count == 300 && !quota) || (count == 200 && quota), "a mixture of both: {count}, {quota}");
    }
    client::converse(lab.guest(1)?, SERVER_ECHO)?;
    lab.assert_invariants()
}

/// The time is printed and not judged: other programs run beside this.
fn thousands_of_forwards_come_by_file(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    write(MAIN, &format!("{}{BRIDGE}", base(hook)))?;
    lab.vmnat_ok(&["apply"])?;
    write(MAIN, &format!("{}{}{BRIDGE}", base(hook), forwards(10_000..15_000)))?;
    for what in ["5,000 port forwards by file", "the same once more", "none of them any more"] {
        if what.starts_with("none") {
            write(MAIN, &format!("{}{BRIDGE}", base(hook)))?;
        }
        let since = Instant::now();
        lab.vmnat_ok(&["apply"])?;
        println!("{what}: {:.2} s", since.elapsed().as_secs_f64());
        if what.starts_with("5,000") {
            client::get(&lab.world, &format!("{EXTERNAL}:14999"), "/")?;
        }
    }
    ensure!(listed(&lab)?.is_empty(), "some are left");
    lab.assert_invariants()
}
