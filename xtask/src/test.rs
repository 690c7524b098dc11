//! `test`: the checks, then the four tiers and short cuts of the others, then one line that adds them up.

use std::{fs, io::ErrorKind, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum};
use serde_json::Value;

use crate::{
    check::{CHECKS, Check},
    command::{self, cargo, program},
    demo, dist, project, setup,
    setup::{dnsmasq, guest_kernel, guest_root, host_kernels, hosts, stun, wireguard},
    steps::Steps,
};

/// Runs the checks and the tests; one tier alone leaves out the checks
#[derive(Parser)]
pub struct Args {
    /// Which tests
    #[arg(value_enum, default_value_t = Choice::All)]
    tier: Choice,
    /// Only tests whose name contains this
    filter: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Choice {
    /// The checks, the first four tiers, and of the others what needs one tree
    All,
    /// Pure rules, without root
    Unit,
    /// The verified programs through `BPF_PROG_TEST_RUN`
    Prog,
    /// Real bridges and veths in network namespaces
    Netns,
    /// A real QEMU guest
    Vm,
    /// The real software that cuts guests off, each in a machine of namespaces
    Hosts,
    /// The packages on systems with systemd, in QEMU
    Packages,
    /// The core of netns on the kernels of those systems
    Kernels,
}

/// A tier, and what its `cargo test` is told.
struct Tier {
    choice: Choice,
    name: &'static str,
    selection: &'static [&'static str],
    /// For the test harness itself: scenarios with clocks or a guest do not share two cores well.
    harness: &'static [&'static str],
}

const TIERS: [Tier; 7] = [
    Tier {
        choice: Choice::Unit,
        name: "unit",
        selection: &["--workspace", "--exclude", project::TESTS],
        harness: &[],
    },
    Tier { choice: Choice::Prog, name: "prog", selection: &["--test", "prog"], harness: &[] },
    Tier {
        choice: Choice::Netns,
        name: "netns",
        selection: &["--test", "netns"],
        harness: &["--test-threads=2"],
    },
    Tier { choice: Choice::Vm, name: "vm", selection: &["--test", "vm"], harness: &["--test-threads=1"] },
    Tier {
        choice: Choice::Hosts,
        name: "hosts",
        selection: &["--test", "hosts"],
        harness: &["--test-threads=2"],
    },
    Tier {
        choice: Choice::Packages,
        name: "packages",
        selection: &["--test", "packages"],
        harness: &["--test-threads=1"],
    },
    Tier {
        choice: Choice::Kernels,
        name: "kernels",
        selection: &["--test", "kernels"],
        // What the tests inside say is shown as they say it: they take long.
        harness: &["--test-threads=1", "--nocapture"],
    },
];

/// What `./dev test` leaves to the tiers alone: `./dev test hosts`, `packages`, `kernels`.
const LONG: [&str; 2] = ["--skip", "full::"];

/// Runs what was asked for to the end, whatever fails on the way.
pub fn run(args: &Args) -> Result<()> {
    let Args { tier: choice, filter } = args;
    let tiers: Vec<_> = TIERS.iter().filter(|tier| [tier.choice, Choice::All].contains(choice)).collect();
    let checks = if *choice == Choice::All { &CHECKS[..] } else { &[] };
    let in_lab = *choice != Choice::Unit;
    let has_hosts = tiers.iter().any(|tier| tier.choice == Choice::Hosts);
    let around = 1_usize.saturating_add(in_lab.into()).saturating_add(has_hosts.into());
    let scope = match choice {
        Choice::Unit => setup::Scope::Build,
        Choice::Hosts => setup::Scope::Hosts,
        Choice::Packages | Choice::Kernels => setup::Scope::Packages,
        Choice::All => setup::Scope::Tests,
        _ => setup::Scope::Lab,
    };

    let mut steps = Steps::new(checks.len().saturating_add(tiers.len()).saturating_add(around));
    steps.step("set-up", || setup::ensure(scope))?;
    let mut tally = Tally::default();
    for Check { title, work } in checks {
        tally.note(title, steps.step(title, work));
    }
    if in_lab {
        tally.note("build", steps.step("build (release)", demo::build_lab));
    }
    for tier in tiers {
        let result = steps.step(tier.name, || {
            let mut command = tier.command(filter.as_deref());
            match tier.choice {
                Choice::Hosts => forget_matrix()?,
                Choice::Packages => dist::make(&packages())?,
                Choice::Kernels => {
                    command.env(project::NETNS, netns_program()?);
                }
                Choice::All | Choice::Unit | Choice::Prog | Choice::Netns | Choice::Vm => {}
            }
            if *choice == Choice::All && tier.is_long() {
                command.args(LONG);
            }
            command::run_lines(&mut command, |line| {
                println!("{line}");
                tally.add(line);
            })
        });
        tally.note(tier.name, result);
    }
    if has_hosts {
        tally.note("matrix", steps.step("matrix", print_matrix));
    }
    tally.close()
}

/// Builds the netns tier and tells where its program lies, which has a name of cargo's choice.
fn netns_program() -> Result<String> {
    let mut build = cargo(["test", "--no-run", "--message-format=json-render-diagnostics"]);
    let messages = command::output(build.args(project::LAB).args(["--test", "netns"]))?;
    executable_among(&messages, "netns").context("cargo does not say where it has put the netns tier")
}

/// Where a tier's program lies according to cargo's messages, a JSON document a line. They name the package's other programs
/// too, in the order in which they were ready.
fn executable_among(messages: &str, tier: &str) -> Option<String> {
    let documents = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    documents.filter(|said| text(said, "/target/kind/0") == Some("test")).find_map(|said| {
        let path = text(&said, "/executable")?;
        (text(&said, "/target/name") == Some(tier)).then(|| path.to_owned())
    })
}

/// A string of a JSON document, by a JSON pointer (RFC 6901).
fn text<'document>(document: &'document Value, pointer: &str) -> Option<&'document str> {
    document.pointer(pointer).and_then(Value::as_str)
}

/// Where the hosts tier notes what it finds.
fn results() -> PathBuf {
    project::target().join("hosts-results")
}

/// Where the packages lie that the packages tier installs.
fn packages() -> PathBuf {
    project::target().join("packages")
}

fn forget_matrix() -> Result<()> {
    match fs::remove_dir_all(results()) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", results().display()))
        }
        _ => Ok(()),
    }
}

/// Prints the table of what the hosts tier has found; a whole one is compared with docs/hosts.md, or written there.
fn print_matrix() -> Result<()> {
    let mut matrix = program(&project::built("hosts").to_string_lossy(), [results()]);
    command::run(matrix.arg(project::root().join("docs/hosts.md")))
}

impl Tier {
    /// Whether `./dev test` leaves the better part of it out.
    fn is_long(&self) -> bool {
        matches!(self.choice, Choice::Hosts | Choice::Packages | Choice::Kernels)
    }

    fn command(&self, filter: Option<&str>) -> Command {
        let mut command = cargo(["test", "--no-fail-fast"]);
        if self.choice != Choice::Unit {
            command.args(project::LAB);
        }
        command.args(self.selection).arg("--").args(self.harness).args(filter);
        command.env(guest_kernel::VARIABLE, guest_kernel::dir()).env(guest_root::VARIABLE, guest_root::dir());
        command.env(stun::VARIABLE, stun::dir()).env(dnsmasq::VARIABLE, dnsmasq::dir());
        command.env(hosts::VARIABLE, hosts::dir()).env(hosts::RESULTS, results());
        command.env(wireguard::VARIABLE, wireguard::dir());
        command.env(host_kernels::VARIABLE, host_kernels::dir()).env(dist::VARIABLE, packages());
        command.env(project::VMNAT, project::built("vmnat")).env(project::STEADY, project::built("steady"));
        command
    }
}

/// What passed and what failed so far.
#[derive(Default)]
struct Tally {
    passed: u64,
    failed: u64,
    /// Steps that failed, with their reasons.
    broken: Vec<String>,
    /// `failed` as it was when the last step ended.
    failed_before: u64,
}

impl Tally {
    /// Adds a line like `test result: FAILED. 3 passed; 1 failed; 0 ignored; ...`; other lines count for nothing.
    fn add(&mut self, line: &str) {
        let Some((_, counts)) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for count in counts.split("; ") {
            match count.split_once(' ') {
                Some((number, "passed")) => {
                    self.passed = self.passed.saturating_add(number.parse().unwrap_or(0));
                }
                Some((number, "failed")) => {
                    self.failed = self.failed.saturating_add(number.parse().unwrap_or(0));
                }
                _ => {}
            }
        }
    }

    /// Takes the end of a step; one that fails without a failed test (a check, a build) counts as one.
    fn note(&mut self, title: &str, result: Result<()>) {
        if let Err(error) = result {
            if self.failed == self.failed_before {
                self.failed = self.failed.saturating_add(1);
            }
            eprintln!("xtask: {title}: {error:#}");
            self.broken.push(title.to_owned());
        }
        self.failed_before = self.failed;
    }

    fn close(self) -> Result<()> {
        println!("\n{} passed, {} failed", self.passed, self.failed);
        ensure!(self.broken.is_empty() && self.failed == 0, "failed: {}", self.broken.join(", "));
        ensure!(self.passed > 0, "no test ran: does the filter match a name?");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::{Tally, executable_among};

    #[test]
    fn the_closing_line_adds_up_what_cargo_test_says() {
        let mut tally = Tally::default();
        tally.add("running 4 tests");
        tally.add(
            "test result: ok. 4 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s",
        );
        tally.add(
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s",
        );
        assert_eq!((tally.passed, tally.failed), (7, 2));
    }

    #[test]
    fn the_tests_program_is_the_one_that_cargo_names() {
        let artifact = |kind: &str, name: &str, path: &str| {
            let target = serde_json::json!({"kind": [kind], "name": name});
            serde_json::json!({"reason": "compiler-artifact", "target": target, "executable": path})
                .to_string()
        };
        let messages = [
            r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"netns"},"executable":null}"#
                .to_owned(),
            artifact("test", "vm", "/t/deps/vm-1"),
            artifact("test", "netns", "/t/deps/netns-1"),
            artifact("bin", "demo", "/t/demo"),
            r#"{"reason":"build-finished"}"#.to_owned(),
        ];
        assert_eq!(executable_among(&messages.join("\n"), "netns").as_deref(), Some("/t/deps/netns-1"));
        assert_eq!(executable_among("{}", "netns"), None);
    }

    #[test]
    fn a_step_that_breaks_before_any_test_counts_as_one_failure() {
        let mut tally = Tally::default();
        tally.note("clippy", Err(anyhow!("a lint")));
        tally.add("test result: FAILED. 3 passed; 2 failed; 0 ignored");
        tally.note("unit", Err(anyhow!("two tests")));
        assert_eq!((tally.passed, tally.failed), (3, 3));
        assert!(tally.close().is_err());
    }
}
