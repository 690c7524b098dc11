//! `program`: the programs alone, by `BPF_PROG_TEST_RUN`, and how many instructions they have; of another build beside.
//!
//! A program changes the frame that it is run on, so each run begins with a small program that writes the frame anew and goes
//! on to the program by a tail call; the same before an empty program is the floor.

use std::{
    fs,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use vmnat_tests::lab::{Lab, Setup};
use vmnat_user::rawbpf::object_get;

use crate::{
    bpf::{self, Kind, ProgramInfo},
    count::Count,
    cpu,
    forwarding::{Direction, Forwarding},
    goal::{self, Bound, Goal},
    program,
    report::{self, Section, table},
    rig::{Rig, lane},
    statistics::Series,
};

/// Runs of a program in a round.
const RUNS: u32 = 200_000;

/// What counts as no slower than another build.
const NO_SLOWER: f64 = 1.05;

/// A program and what it is run on.
#[derive(Clone, Copy, Debug)]
struct Case {
    name: &'static str,
    program: &'static str,
    interface: &'static str,
    direction: Direction,
    /// Whether the frame is of the guest's flow, or the host's own.
    is_guests: bool,
    outcome: &'static str,
}

const CASES: [Case; 5] = [
    Case {
        name: "a packet of a known flow, at the port",
        program: "outbound_port",
        interface: "vnet1",
        direction: Direction::Outbound,
        is_guests: true,
        outcome: "translated_outbound",
    },
    Case {
        name: "an answer to it, at the uplink",
        program: "inbound",
        interface: "enp3s0",
        direction: Direction::Inbound,
        is_guests: true,
        outcome: "translated_inbound",
    },
    Case {
        name: "the host's own packet, at the uplink",
        program: "inbound",
        interface: "enp3s0",
        direction: Direction::Inbound,
        is_guests: false,
        outcome: "no_flow",
    },
    Case {
        name: "a clean packet that leaves by the uplink",
        program: "guard",
        interface: "enp3s0",
        direction: Direction::Outbound,
        is_guests: false,
        outcome: "clean",
    },
    // Last: it moves the flow to the bridge.
    Case {
        name: "a packet of a known flow, at the bridge",
        program: "outbound_bridge",
        interface: "virbr0",
        direction: Direction::Outbound,
        is_guests: true,
        outcome: "translated_outbound",
    },
];

/// A build, on a rig of its own.
#[derive(Debug)]
struct Build {
    rig: Rig,
    programs: Vec<(String, ProgramInfo)>,
}

impl Build {
    fn new(forwarding: Forwarding, vmnat: Option<&Path>) -> Result<Self> {
        let mut rig = Rig::new(forwarding, false)?;
        rig.program = vmnat.map(Path::to_owned);
        rig.start()?;
        rig.converse()?;
        let mut programs = Vec::new();
        for pin in fs::read_dir(pins(&rig)?)? {
            let pin = pin?.path();
            let name = pin.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            programs.push((name, bpf::program_info(object_get(&pin)?.as_fd())?));
        }
        Ok(Self { rig, programs })
    }

    /// The program of a case behind what writes its frame, and its frame.
    fn load(&self, case: &Case) -> Result<Loaded> {
        let target =
            object_get(&pins(&self.rig)?.join(case.program)).with_context(|| case.program.to_owned())?;
        let frame = if case.is_guests {
            self.rig.frame(case.direction, 64)?
        } else {
            lane::hosts_frame(case.direction, 64)?
        };
        Loaded::new(&target, frame)
    }

    /// Nanoseconds of a run; the outcome that is meant must be counted for every one.
    fn run(&self, case: &Case, loaded: &Loaded) -> Result<f64> {
        let interface = self.rig.host.interface(case.interface)?;
        let of = |counts: &[Count], name: &str| {
            counts.iter().find(|count| count.name == name).map_or(0, |count| count.packets)
        };
        let before = self.rig.outcomes()?;
        let nanoseconds = loaded.run(&self.rig, interface)?;
        let after = self.rig.outcomes()?;
        let moved = of(&after, case.outcome).wrapping_sub(of(&before, case.outcome));
        // The host's own packets may add a few.
        let right = u64::from(RUNS)..=u64::from(RUNS) + 8;
        let others =
            || after.iter().filter(|count| count.packets != of(&before, &count.name)).collect::<Vec<_>>();
        ensure!(
            right.contains(&moved),
            "{}: `{}` moved by {moved} in {RUNS} runs; what has moved: {:?}",
            case.name,
            case.outcome,
            others()
        );
        Ok(nanoseconds)
    }
}

/// Where a build has pinned its programs, whatever its schema.
fn pins(rig: &Rig) -> Result<PathBuf> {
    let versions = fs::read_dir(Path::new("/sys/fs/bpf/vmnat").join(&rig.instance))?;
    let found = versions.flatten().map(|version| version.path().join("progs")).find(|path| path.is_dir());
    found.context("no pinned programs")
}

/// What was measured of a case.
#[derive(Debug)]
struct Measured {
    case: &'static Case,
    own: Series,
    other: Series,
}

/// Measures, and describes what came of it.
pub fn run(rounds: usize, against: Option<(&Path, &str)>) -> Result<Section> {
    let mut shelter = Lab::with(Setup { guests: 0, ..Setup::default() })?;
    shelter.keep_quiet();
    let own = Build::new(Forwarding::Port, None)?;
    let other = against.map(|(vmnat, _)| Build::new(Forwarding::Against, Some(vmnat))).transpose()?;
    let floor = Loaded::new(&bpf::load(Kind::Classifier, &program::sink())?, vec![0; 64])?;
    let mut all = Vec::new();
    for case in &CASES {
        println!("program: {}", case.name);
        let loaded = own.load(case)?;
        let others = other.as_ref().map(|other| other.load(case)).transpose()?;
        let mut measured = Measured { case, own: Series::default(), other: Series::default() };
        for round in 0..rounds {
            let floor = floor.run(&own.rig, own.rig.host.interface("vnet1")?)?;
            let mut turns = vec![(&own, &loaded, &mut measured.own)];
            turns.extend(
                other
                    .as_ref()
                    .zip(others.as_ref())
                    .map(|(build, loaded)| (build, loaded, &mut measured.other)),
            );
            if round % 2 != 0 {
                turns.reverse();
            }
            for (build, loaded, series) in turns {
                series.0.push(build.run(case, loaded)? - floor);
            }
        }
        all.push(measured);
    }
    own.rig.stop()?;
    other.iter().try_for_each(|other| other.rig.stop())?;
    Ok(describe(&own, other.as_ref().zip(against.map(|(_, name)| name)), &all, rounds))
}

/// A program behind what writes its frame.
#[derive(Debug)]
struct Loaded {
    writer: OwnedFd,
    frame: Vec<u8>,
    // The kernel empties an array of programs once no process holds it.
    _entry: OwnedFd,
}

impl Loaded {
    fn new(target: &OwnedFd, frame: Vec<u8>) -> Result<Self> {
        let entry = bpf::tail_call(target.as_fd())?;
        let writer = bpf::load(Kind::Classifier, &program::rewriter(&frame, entry.as_fd()))?;
        Ok(Self { writer, frame, _entry: entry })
    }

    /// Nanoseconds of a run on a rig's host.
    fn run(&self, rig: &Rig, interface: u32) -> Result<f64> {
        let nanoseconds = rig.host.run(|| {
            cpu::hold()?;
            bpf::run(self.writer.as_fd(), interface, &self.frame, RUNS)
        })?;
        Ok(f64::from(nanoseconds))
    }
}

fn describe(own: &Build, other: Option<(&Build, &str)>, all: &[Measured], rounds: usize) -> Section {
    let beside = other.map_or_else(String::new, |(_, name)| format!("\n\nThe other build is {name}."));
    let other = other.map(|(build, _)| build);
    let how = format!(
        "How: `BPF_PROG_TEST_RUN`, {RUNS} runs of each row in each of {rounds} rounds, by turns with the other build where there is one, on one\n\
         CPU held by SCHED_FIFO. A small program writes the frame of 64 bytes anew before each run, since the program changes it; what\n\
         that takes before an empty program is subtracted. The redirect itself is not in these figures, only asking for it. vmnat's\n\
         counters agree with the number of runs. Nanoseconds, medians with quartiles. Instructions: walked by the verifier, and\n\
         as the kernel translated them."
    );
    let ratio = |measured: &Measured| measured.own.with(&measured.other, |own, other| own / other);
    let written = |series: &Series, decimals| {
        if series.0.is_empty() { String::new() } else { series.written(decimals) }
    };
    let rows: Vec<_> = all
        .iter()
        .map(|measured| {
            let Measured { case, own, other } = measured;
            let name = format!("`{}`: {}", case.program, case.name);
            [name, own.written(0), written(other, 0), written(&ratio(measured), 2)]
        })
        .collect();
    let goals: Vec<_> = all
        .iter()
        .filter(|measured| measured.case.is_guests && !measured.other.0.is_empty())
        .map(|measured| Goal {
            what: format!("{}: of the other build", measured.case.name),
            ratio: ratio(measured).median(),
            bound: Bound::AtMost(NO_SLOWER),
        })
        .collect();
    let mut paragraphs = vec![
        how + &beside,
        table(&["program", "ns", "other build", "ratio"], &rows),
        instructions(own, other),
    ];
    if !goals.is_empty() {
        paragraphs.push(goal::table_of(&goals, "goal, median ratio"));
    }
    let cases: Vec<Value> = all
        .iter()
        .map(|measured| {
            json!({
                "program": measured.case.program, "case": measured.case.name, "nanoseconds": measured.own.json(),
                "other_nanoseconds": measured.other.json(), "ratio": ratio(measured).json(),
            })
        })
        .collect();
    let sizes = |build: &Build| -> Vec<Value> {
        let of = |(name, info): &(String, ProgramInfo)| {
            json!({
                "program": name, "verified": info.verified, "translated": info.translated, "jited_bytes": info.jited_bytes,
            })
        };
        build.programs.iter().map(of).collect()
    };
    let data = json!({
        "schema": 1, "machine": report::machine(), "rounds": rounds, "runs": RUNS, "rows": cases,
        "programs": sizes(own), "other_programs": other.map(sizes),
    });
    let text = paragraphs.join("\n\n");
    Section { name: "program", title: "Programs alone", text, data, goals, plots: Vec::new() }
}

/// How many instructions each program has.
fn instructions(own: &Build, other: Option<&Build>) -> String {
    let mut names: Vec<&String> = own.programs.iter().map(|(name, _)| name).collect();
    names.sort();
    let info = |build: Option<&Build>, name: &str| {
        build.and_then(|build| build.programs.iter().find(|(own, _)| own == name)).map(|(_, info)| *info)
    };
    let rows: Vec<_> = names
        .into_iter()
        .map(|name| {
            let (own, other) = (info(Some(own), name), info(other, name));
            let cell = |info: Option<ProgramInfo>, part: fn(ProgramInfo) -> u32| {
                info.map_or_else(String::new, |info| report::thousands(part(info)))
            };
            let [verified, translated, jited]: [fn(ProgramInfo) -> u32; 3] =
                [|info| info.verified, |info| info.translated, |info| info.jited_bytes];
            [
                format!("`{name}`"),
                cell(own, verified),
                cell(other, verified),
                cell(own, translated),
                cell(other, translated),
                cell(own, jited),
            ]
        })
        .collect();
    let columns = ["program", "verified", "other build", "translated", "other build", "machine code, bytes"];
    table(&columns, &rows)
}
