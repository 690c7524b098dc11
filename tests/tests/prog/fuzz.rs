//! Frames changed by chance through every program that looks at packets, and what must hold whatever they are (row A2).
//!
//! `VMNAT_FUZZ_SEED` and `VMNAT_FUZZ_FRAMES` ask for another run, or a longer one. What breaks a rule is written down as the shortest
//! run of frames that breaks it again; kept in `tests/corpus/frames` it is replayed from then on. Each line of such a file is a
//! program, the interface, the size of the segments that the frame is cut into (0 for none), and the frame.

mod judge;
mod mutate;
mod seeds;

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
};

use bytemuck::Pod;
use vmnat_common::{Outcome, quota::Quotas, service::ServiceWay};
use vmnat_tests::{
    fuzz::{Random, number},
    lab::frame::Packet,
};
use vmnat_user::tables::Table;

use self::{judge::judge, mutate::mutant, seeds::hooks};
use super::rig::{
    EXTERNAL, FLOWS, GUEST1, GUEST1_MAC, GUEST2, GUEST2_MAC, PORT1, PORT2, Rig, SERVER, UPLINK, from_guest1,
    from_guest2, from_world,
};

const SEED: u64 = 0x5eed_0000_2026_0001;
const FRAMES: u64 = 100_000;

/// Frames between two looks at the live conversations; then the tables begin anew, and the settings are others.
const ROUND: u64 = 5_000;
/// Settings that there are.
const SETTINGS: u64 = 4;
/// The one where the flow table is all but full.
const FULL: u64 = 2;

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/frames");

/// Outcomes that a run comes to whatever its seed; the others are there by chance or need what a rig has not.
const REACHED: usize = 38;

/// One frame for one program.
#[derive(Clone)]
struct Step {
    program: &'static str,
    interface: u32,
    gso_size: u32,
    frame: Vec<u8>,
}

impl Step {
    fn run(&self, rig: &mut Rig) -> Outcome {
        let ran = rig.run_segmented(self.program, self.interface, &self.frame, self.gso_size);
        judge(self.program, &self.frame, &ran);
        ran.outcome
    }

    fn written(&self) -> String {
        let mut line = format!("{} {} {} ", self.program, self.interface, self.gso_size);
        self.frame.iter().for_each(|byte| write!(line, "{byte:02x}").unwrap());
        line
    }

    fn read(line: &str) -> Self {
        let words: Vec<_> = line.split(' ').collect();
        let [program, interface, gso_size, digits] = words[..] else { panic!("{line}") };
        let program = hooks().into_iter().map(|hook| hook.program).find(|name| *name == program);
        let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
        Self {
            program: program.expect("a program's name"),
            interface: interface.parse().unwrap(),
            gso_size: gso_size.parse().unwrap(),
            frame: (0..digits.len()).step_by(2).map(byte).collect(),
        }
    }
}

/// A rig with forwards and a room.
fn rig() -> Rig {
    let rig = Rig::new();
    for protocol in [6, 17] {
        rig.forward(protocol, 8080, GUEST1, 80);
        rig.forward_range(protocol, 9000..=9009, GUEST2, 9000);
    }
    rig.forward(132, 5001, GUEST1, 5001);
    rig.room();
    rig.service(17, 53, ServiceWay::HostOrRelay);
    rig
}

/// Makes the settings others: with and without quotas, guests closed and open to all.
fn vary(rig: &Rig, setting: u64) {
    let quotas = Quotas { flows: 60, half_open: 6, rate: 0, burst: 0 };
    rig.settings(|settings| settings.quotas = if setting & 1 == 0 { Quotas::NONE } else { quotas });
    if setting & 2 == 0 { rig.closed_to_strangers() } else { rig.open_to_all() }
}

/// Empties what packets fill, and opens the live conversations again; with one of the settings the table is all but full.
fn begin(rig: &mut Rig, setting: u64) -> Live {
    vary(rig, setting);
    let tables = &rig.tables;
    for (key, _) in tables.flow.entries().unwrap() {
        tables.flow.remove(&key).unwrap();
    }
    empty(&tables.mapping);
    empty(&tables.guest);
    empty(&tables.lease);
    empty(&tables.station);
    rig.lease(GUEST1, GUEST1_MAC, PORT1);
    rig.lease(GUEST2, GUEST2_MAC, PORT2);
    rig.station(GUEST2_MAC, PORT2);
    for packet in [
        Packet::udp(from_guest1(SERVER), 5000, 7, b"open"),
        Packet::tcp(from_guest1(SERVER), 5000, 80, 1, 2),
        Packet::echo(from_guest1(SERVER), 5000, 1, b"open"),
    ] {
        rig.run("outbound_port", PORT1, &packet.bytes());
    }
    let mut live = Live { ports: None };
    live.assert_alive(rig);
    if setting == FULL {
        for port in 20_000..20_000 + u16::try_from(FLOWS * 3 / 2 - 8).unwrap() {
            rig.run("outbound_port", PORT1, &Packet::udp(from_guest1(SERVER), port, 7, b"fill").bytes());
        }
    }
    live
}

fn empty<K: Pod, V: Pod>(table: &Table<K, V>) {
    for (key, _) in table.entries().unwrap() {
        table.remove(&key).unwrap();
    }
}

/// Conversations of guest 2 by UDP and TCP, which nothing that others send may end or move.
struct Live {
    ports: Option<[u16; 2]>,
}

impl Live {
    fn assert_alive(&mut self, rig: &mut Rig) {
        // As every guest does before long: whoever claims its address by ARP has it only until then.
        rig.run("outbound_port", PORT2, &seeds::announcement(GUEST2_MAC, GUEST2));
        let ends = from_guest2(SERVER);
        let out = [Packet::udp(ends, 6001, 7, b"live"), Packet::tcp(ends, 6002, 80, 1, 0x10)];
        let ports = out.map(|packet| {
            let ran = rig.run("outbound_port", PORT2, &packet.bytes());
            assert_eq!(ran.outcome, Outcome::TranslatedOutbound, "a live conversation has died");
            assert_eq!(ran.packet().source, EXTERNAL);
            ran.packet().ports().unwrap().0
        });
        assert_eq!(*self.ports.get_or_insert(ports), ports, "a live conversation has moved");
        let world = from_world(SERVER);
        let back = [Packet::udp(world, 7, ports[0], b"live"), Packet::tcp(world, 80, ports[1], 1, 0x10)];
        for (packet, port) in back.iter().zip([6001, 6002]) {
            let ran = rig.run("inbound", UPLINK, &packet.bytes());
            assert_eq!(ran.outcome, Outcome::TranslatedInbound, "a live conversation has died");
            assert_eq!((ran.packet().destination, ran.packet().ports().unwrap().1), (GUEST2, port));
        }
    }
}

/// Whether these frames break a rule when they are all there is.
fn breaks(rig: &mut Rig, setting: u64, steps: &[Step]) -> bool {
    let round = AssertUnwindSafe(|| {
        let mut live = begin(rig, setting);
        for step in steps {
            step.run(rig);
        }
        live.assert_alive(rig);
    });
    let broke = catch_unwind(round).is_err();
    rig.forget_counts();
    broke
}

/// The shortest end of these frames that breaks a rule, as a file of the corpus.
fn shortest(rig: &mut Rig, setting: u64, steps: &[Step]) -> String {
    let lengths =
        std::iter::successors(Some(1), |length| Some(length * 2)).take_while(|length| *length < steps.len());
    let ends = lengths.map(|length| &steps[steps.len() - length..]);
    let mut found: Vec<Step> =
        ends.chain([steps]).find(|steps| breaks(rig, setting, steps)).unwrap_or(steps).to_vec();
    let mut at = 0;
    while at < found.len() && found.len() <= 64 {
        let mut fewer = found.clone();
        fewer.remove(at);
        if breaks(rig, setting, &fewer) { found = fewer } else { at += 1 }
    }
    found.iter().map(Step::written).collect::<Vec<_>>().join("\n") + "\n"
}

#[test]
fn mutated_frames_break_no_rule() {
    let (seed, frames) =
        (number("VMNAT_FUZZ_SEED", SEED).unwrap(), number("VMNAT_FUZZ_FRAMES", FRAMES).unwrap());
    let mut rig = rig();
    let hooks = hooks();
    let all: Vec<_> = hooks.iter().flat_map(|hook| hook.seeds.clone()).collect();
    let mut random = Random::new(seed);
    let mut reached = BTreeSet::new();
    let mut done = 0;
    while done < frames {
        let setting = done / ROUND % SETTINGS;
        let mut live = begin(&mut rig, setting);
        let mut steps = Vec::new();
        let round = catch_unwind(AssertUnwindSafe(|| {
            for _ in 0..ROUND.min(frames - done) {
                let hook = random.one_of(&hooks);
                let seeds = if random.once_in(8) { &all } else { &hook.seeds };
                let mutant = mutant(&mut random, seeds, &all);
                let step = Step {
                    program: hook.program,
                    interface: hook.interface,
                    gso_size: mutant.gso_size,
                    frame: mutant.frame,
                };
                steps.push(step.clone());
                let outcome = step.run(&mut rig);
                if reached.insert((hook.program, outcome)) && std::env::var_os("VMNAT_FUZZ_KEEP").is_some() {
                    keep(&step, outcome);
                }
            }
            live.assert_alive(&mut rig);
        }));
        if let Err(reason) = round {
            rig.forget_counts();
            let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("frames-{seed:#x}-{done}"));
            fs::write(&file, shortest(&mut rig, setting, &steps)).unwrap();
            eprintln!(
                "A rule is broken: VMNAT_FUZZ_SEED={seed:#x}, in the round after frame {done}.\nThe frames are in {}; keep them in tests/corpus/frames.",
                file.display()
            );
            resume_unwind(reason);
        }
        done += ROUND;
    }
    let outcomes: BTreeSet<_> = reached.iter().map(|(_, outcome)| outcome.name()).collect();
    println!(
        "{done} frames, seed {seed:#x}: {} outcomes at {} ends: {outcomes:?}",
        outcomes.len(),
        reached.len()
    );
    assert!(frames < FRAMES || outcomes.len() >= REACHED, "only {} outcomes: {outcomes:?}", outcomes.len());
}

/// Adds a frame to the corpus: one for each program and outcome.
fn keep(step: &Step, outcome: Outcome) {
    let file = Path::new(CORPUS).join(step.program);
    let known = fs::read_to_string(&file).unwrap_or_default();
    println!("{} at {}", outcome.name(), step.program);
    fs::write(file, known + &step.written() + "\n").unwrap();
}

#[test]
fn frames_that_were_kept_break_no_rule() {
    let mut rig = rig();
    let files: Vec<_> = fs::read_dir(CORPUS).unwrap().map(|file| file.unwrap().path()).collect();
    assert!(!files.is_empty(), "{CORPUS} is empty");
    for file in files {
        println!("{}", file.display());
        let text = fs::read_to_string(&file).unwrap();
        for setting in 0..SETTINGS {
            let mut live = begin(&mut rig, setting);
            for line in text.lines() {
                Step::read(line).run(&mut rig);
            }
            live.assert_alive(&mut rig);
        }
    }
}
