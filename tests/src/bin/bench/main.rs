//! What vmnat costs, beside the kernel's own paths: `cargo xtask bench`, a module for each of its benches.
//!
//! Everything is measured side by side within one run, in network namespaces of this process, by turns.

#![expect(clippy::print_stdout, reason = "printing is what a benchmark is for")]
#![expect(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "figures of a benchmark's own making, far from any limit"
)]

mod bpf;
mod connect;
mod count;
mod cpu;
mod dnat;
mod flows;
mod forwarding;
mod goal;
mod guest;
mod hook;
mod inhabited;
mod latency;
mod load;
mod packet;
mod plot;
mod program;
mod programs;
mod ranges;
mod report;
mod rig;
mod rulesets;
mod statistics;
mod stream;
mod worker;

use std::{path::PathBuf, process::ExitCode, thread, time::Instant};

use anyhow::Result;
use clap::{Parser, ValueEnum};
use nix::sys::signal::{SigSet, Signal};
use vmnat_tests::lab::{self, vmnat};

use forwarding::Forwarding;
use goal::Goal;
use hook::ModeHook;
use packet::Extent;

/// Measures vmnat beside the kernel's own ways to forward
#[derive(Debug, Parser)]
#[command(name = "bench", max_term_width = 100)]
struct Args {
    /// What to measure [default: everything]
    #[arg(value_enum)]
    benches: Vec<Bench>,
    /// Only measure: a missed goal is no failure
    #[arg(long)]
    no_goals: bool,
    /// Rounds of `packet`, `flows`, `program` and `ranges`
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Packets of each row in each round of `packet`, `flows` and `ranges`; `ranges` opens at most 60000 conversations a round
    #[arg(long, default_value_t = 200_000)]
    packets: u32,
    /// Frame sizes of `packet`, bytes without the frame check sequence; goals are about the first
    #[arg(long, value_delimiter = ',', default_values_t = [64, 1514])]
    sizes: Vec<usize>,
    /// Also measure parts of vmnat's way in `packet`
    #[arg(long)]
    parts: bool,
    /// Also measure the `vmnat` of another build in `packet` and `program`, beside this one
    #[arg(long, value_name = "PROGRAM")]
    against: Option<PathBuf>,
    /// What to call that build
    #[arg(long, value_name = "NAME", default_value = "another one")]
    against_name: String,
    /// A trial: few rounds of little, and goals do not matter
    #[arg(long)]
    quick: bool,
    /// The most live flows of `flows`
    #[arg(long, default_value_t = 1_000_000)]
    flows: u32,
    /// Rounds of `guest`
    #[arg(long, default_value_t = 5)]
    guest_rounds: usize,
    /// Rounds of `stream`, `connect` and `latency`
    #[arg(long, default_value_t = 11)]
    stream_rounds: usize,
    /// Seconds of each run of `stream`, `connect` and `guest`
    #[arg(long, default_value_t = 2)]
    seconds: u32,
    /// Ping-pongs of each row in each round of `latency`
    #[arg(long, default_value_t = 10_000)]
    pings: u32,
    /// Another NAT to be compared in `packet`, `stream`, `connect` and `latency`; repeatable
    ///
    /// The script is called with `up`, and at the end with `down`, in the network namespace of a host of the bench's own. It finds
    /// there the bridge, the guest's port, the uplink, the guests' gateway and network, the external address and the
    /// router in `VMNAT_BENCH_BRIDGE`, `_PORT`, `_UPLINK`, `_GATEWAY`, `_NETWORK`, `_EXTERNAL` and `_ROUTER`.
    #[arg(long = "mode-hook", value_name = "NAME=SCRIPT", value_parser = hook)]
    mode_hooks: Vec<&'static ModeHook>,
    /// Rounds of `dnat`
    #[arg(long, default_value_t = 9)]
    dnat_rounds: usize,
    /// Write the results into this folder as benchmarks.md and benchmarks/*.json
    #[arg(long, value_name = "FOLDER")]
    write: Option<PathBuf>,
}

impl Args {
    /// Little of everything: enough to see that all works, too little for figures.
    fn quickened(self) -> Self {
        Self {
            rounds: 3,
            packets: 50_000,
            sizes: vec![64],
            flows: 100_000,
            stream_rounds: 2,
            seconds: 1,
            pings: 2_000,
            dnat_rounds: 2,
            guest_rounds: 1,
            no_goals: true,
            ..self
        }
    }

    fn extent<'a>(&'a self, hooked: &'a [Forwarding]) -> Extent<'a> {
        Extent {
            rounds: self.rounds,
            packets: self.packets,
            sizes: &self.sizes,
            parts: self.parts,
            against: self.against.as_deref(),
            hooked,
        }
    }
}

fn hook(text: &str) -> Result<&'static ModeHook, String> {
    ModeHook::parse(text).map_err(|error| format!("{error:#}"))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Bench {
    /// Nanoseconds of a packet
    Packet,
    /// What many flows cost
    Flows,
    /// What a forward of many ports costs beside one of a single port
    Ranges,
    /// The programs alone, and how many instructions they have
    Program,
    /// Bulk traffic of iperf3
    Stream,
    /// All of these of a real guest in QEMU
    Guest,
    /// TCP conversations a second
    Connect,
    /// Ping-pong of small messages
    Latency,
    /// Thousands of port forwards in one call
    Dnat,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some((worker::WORD, words)) = words.split_first().map(|(first, rest)| (&**first, rest)) {
        return match worker::run(words) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                println!("{error:?}");
                ExitCode::FAILURE
            }
        };
    }
    let args = Args::parse();
    match run(&if args.quick { args.quickened() } else { args }) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("\nbench: a goal is missed");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("\nbench: {error:?}");
            ExitCode::FAILURE
        }
    }
}

/// Runs what was asked for; true when the goals are met, or do not matter.
fn run(args: &Args) -> Result<bool> {
    vmnat::program()?;
    end_on_interrupt()?;
    let benches = if args.benches.is_empty() { Bench::value_variants() } else { &args.benches };
    let hooked: Vec<_> = args.mode_hooks.iter().map(|hook| Forwarding::Hooked(hook)).collect();
    let conversing: Vec<Forwarding> = [Forwarding::Route, Forwarding::Masquerade, Forwarding::Port]
        .into_iter()
        .chain(hooked.iter().copied())
        .collect();
    let mut goals: Vec<Goal> = Vec::new();
    for bench in benches {
        let begun = Instant::now();
        let section = match bench {
            Bench::Packet => packet::run(args.extent(&hooked))?,
            Bench::Flows => flows::run(flows::Extent {
                rounds: args.rounds,
                packets: args.packets,
                most: args.flows,
                creations: args.flows,
            })?,
            Bench::Program => {
                programs::run(args.rounds, args.against.as_deref().zip(Some(&*args.against_name)))?
            }
            Bench::Ranges => ranges::run(args.rounds, args.packets)?,
            Bench::Stream => stream::run(&conversing, args.stream_rounds, args.seconds)?,
            Bench::Guest => guest::run(args.guest_rounds, args.seconds)?,
            Bench::Connect => connect::run(&conversing, args.stream_rounds, args.seconds)?,
            Bench::Latency => latency::run(&conversing, args.stream_rounds, args.pings)?,
            Bench::Dnat => dnat::run(args.dnat_rounds)?,
        };
        println!("\n{}", section.text);
        println!("\n{}: took {} s", section.name, begun.elapsed().as_secs());
        if let Some(folder) = &args.write {
            section.write(folder)?;
        }
        goals.extend(section.goals);
    }
    Ok(args.no_goals || goals.iter().all(Goal::is_met))
}

/// On an interrupt, ends the agents that this process started; namespaces and mounts end with the process.
fn end_on_interrupt() -> Result<()> {
    let interrupts: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    interrupts.thread_block()?;
    thread::spawn(move || {
        if interrupts.wait().is_ok() {
            lab::end_own_processes();
            std::process::exit(130);
        }
    });
    Ok(())
}
