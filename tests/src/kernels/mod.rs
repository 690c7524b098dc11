//! The netns tier inside a machine with another kernel: a distribution's system in QEMU, with systemd as process 1.

pub mod report;
mod stage;

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use self::{report::Report, stage::Stage};
use crate::{
    lab::patience::{self, patiently},
    packages::Machine,
};

/// In mebibytes: two labs at once, each with its own tables, beside the system.
const MEMORY: u32 = 2_560;
/// How much slower than a real one a machine is that is emulated beside others.
const FACTOR: u32 = 4;
/// The inner tests say something at least so often.
const SILENCE: Duration = Duration::from_mins(10);
/// How often they are looked after.
const PAUSE: Duration = Duration::from_secs(2);

/// What the kernel loads by itself when it is asked as root of the machine, and the lab finds missing in its namespaces; and
/// what nothing asks for by name.
const MODULES: &str = "br_netfilter veth bridge overlay sch_ingress cls_bpf nf_tables nf_conntrack";

/// What of the netns tier is to run.
#[derive(Clone, Copy, Debug)]
pub struct Selection {
    /// Tests whose name contains one of these; each must match some.
    pub filters: &'static [&'static str],
    /// But none whose name contains one of these.
    pub skips: &'static [&'static str],
    /// So many at least: what is lost when names change shall be missed.
    pub least: usize,
}

/// A machine with another kernel, and the netns tier in it.
#[derive(Debug)]
pub struct Inside {
    machine: Machine,
    kernel: String,
    _stage: Stage,
}

impl Inside {
    /// Boots a distribution whose kernel is of a version, and brings the netns tier in.
    ///
    /// # Errors
    ///
    /// When something to boot or to bring in is missing; the message says which and how to get it.
    pub fn boot(suite: &str, version: &str) -> Result<Self> {
        let stage = Stage::make(suite)?;
        let mut machine = Machine::boot_with(suite, stage.folder(), MEMORY)?;
        let kernel = machine.run("uname -r")?.trim().to_owned();
        ensure!(kernel.starts_with(&format!("{version}.")), "{suite} runs Linux {kernel}, not {version}");
        let first = machine.run("readlink /proc/1/exe")?;
        ensure!(first.contains("systemd"), "process 1 is {first}");
        machine.run(&format!("modprobe --all {MODULES}"))?;
        Ok(Self { machine, kernel, _stage: stage })
    }

    /// Runs tests of the netns tier, relays what they say, and tells how many passed in what time.
    ///
    /// # Errors
    ///
    /// When one fails, too few run, or they do not come to an end.
    pub fn must_pass(&mut self, selection: &Selection) -> Result<()> {
        let begun = Instant::now();
        let report = self.run(selection.filters, selection.skips)?;
        self.judge(&report, selection, begun)
    }

    /// Like [`Inside::must_pass`], with a run for each filter, so that causes of failures are told before the end.
    ///
    /// # Errors
    ///
    /// As [`Inside::must_pass`].
    pub fn must_pass_apart(&mut self, selection: &Selection) -> Result<()> {
        let begun = Instant::now();
        let mut all = Report::default();
        for &filter in selection.filters {
            all.join(self.run(&[filter], selection.skips)?);
        }
        self.judge(&all, selection, begun)
    }

    fn judge(&self, report: &Report, selection: &Selection, begun: Instant) -> Result<()> {
        let took = begun.elapsed().as_secs();
        println!(
            "Linux {}: {} tests of the netns tier passed, {} failed, in {} min {} s",
            self.kernel,
            report.passed.len(),
            report.failed.len(),
            took / 60,
            took % 60
        );
        report.judge(selection).with_context(|| format!("the netns tier on Linux {}", self.kernel))
    }

    /// Runs the test program once.
    fn run(&mut self, filters: &[&str], skips: &[&str]) -> Result<Report> {
        let skips: Vec<String> = skips.iter().map(|skip| format!("--skip {skip}")).collect();
        let script = format!(
            ". /stage/environment\nexport {}={}\n/stage/netns --test-threads=2 {} {} >/run/inside.log 2>&1\n\
             echo $? >/run/inside.next; mv /run/inside.next /run/inside.end\n",
            patience::VARIABLE,
            FACTOR.saturating_mul(patience::factor()),
            filters.join(" "),
            skips.join(" ")
        );
        let started = self.machine.ask(&format!(
            "rm -f /run/inside.end; : >/run/inside.log; cat >/run/inside.sh <<'END'\n{script}END\n\
             systemd-run --quiet --collect bash /run/inside.sh"
        ))?;
        ensure!(started.code == 0, "the tests cannot be started: {}", started.text);
        self.follow()
    }

    /// Relays until the end.
    fn follow(&mut self) -> Result<Report> {
        let mut report = Report::default();
        let mut heard = Instant::now();
        loop {
            thread::sleep(PAUSE);
            // Asked for before the text is, so that the text is whole where there is an end.
            let asked = format!(
                "cat /run/inside.end 2>/dev/null || echo; tail -n +{} /run/inside.log",
                report.lines().saturating_add(1)
            );
            let answer = self.machine.ask(&asked)?;
            let (end, text) = answer.text.split_once('\n').context("no answer about the end")?;
            let before = report.lines();
            for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
                println!("Linux {} | {}", self.kernel, line.trim_end());
                report.take(line.trim_end());
            }
            if report.lines() != before {
                heard = Instant::now();
            }
            if !end.is_empty() {
                report.end = Some(end.to_owned());
                return Ok(report);
            }
            if heard.elapsed() > patiently(SILENCE) {
                let tasks = self.machine.ask("journalctl -b -p warning --no-pager | tail -n 40; free -m")?;
                bail!("nothing from the tests for {SILENCE:?}; the machine: {}", tasks.text);
            }
        }
    }
}
