//! What vmnat does, for a person to watch: guests behind a bridge reach the world while the host's firewall forbids it.
//!
//! Everything happens in namespaces of this process; the machine's own interfaces, firewall and settings stay as they
//! are, also when the demo is interrupted.

#![expect(clippy::print_stdout, reason = "printing is what a demo is for")]

mod measure;
mod report;

use std::{process::ExitCode, thread, time::Duration};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use vmnat_tests::lab::{
    self, Lab, SERVER, Setup, client,
    firewall::{self, NFT_FORWARD_DROP, NFT_MASQUERADE},
    guest_address,
    namespace::Namespace,
    vmnat,
};

use measure::Figures;

/// Seconds of each run of iperf3.
const RUN: u32 = 2;
/// Seconds that all of it takes: two ways of translating, two directions, and the rest.
const SPAN: u32 = 2 * 2 * measure::RUNS * RUN + 6;

fn main() -> ExitCode {
    match demonstrate() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nThe demo has failed: {error:?}");
            ExitCode::FAILURE
        }
    }
}

fn demonstrate() -> Result<()> {
    println!("vmnat demo: about {SPAN} seconds, in network namespaces that touch nothing of this machine.");
    println!("Ctrl-C ends it and cleans up.\n");
    vmnat::program()?;
    let interrupts = block_interrupts()?;
    let mut lab = Lab::with(Setup { offloads: true, ..Setup::default() })?;
    lab.keep_quiet();
    clean_up_on(interrupts, &lab.host);

    chapter(1, "The lab");
    print!("{}", report::PICTURE);

    chapter(2, "The host's firewall forbids forwarding: FORWARD policy DROP");
    lab.host.nft(NFT_FORWARD_DROP)?;
    show(&lab, &["nft", "list", "table", "ip", "filter"])?;
    for number in [1, 2] {
        let attempt = client::ping_as(lab.guest(number)?, 1, SERVER, Duration::from_secs(1));
        client::must_fail("a ping without vmnat", attempt)?;
        println!("   guest {number} ({}) pings the world ({SERVER}): cut off", guest_address(number));
    }

    chapter(3, "vmnat");
    firewall::count_everywhere(&lab.host)?;
    run(&lab, "vmnat up --bridge virbr0 --uplink enp3s0")?;
    run(&lab, "vmnat dnat add 8080:192.168.122.10:80/tcp")?;
    let with_vmnat = Figures::measure(&lab, "through vmnat, FORWARD on drop", RUN)?;

    chapter(4, "What vmnat says");
    run(&lab, "vmnat status")?;
    run(&lab, "vmnat counters")?;

    chapter(5, "The same without vmnat: nftables masquerade, with FORWARD opened for it");
    run(&lab, "vmnat down")?;
    lab.host.nft("flush ruleset\n")?;
    lab.host.set_sysctl("net/ipv4/ip_forward", "1")?;
    lab.host.nft(NFT_MASQUERADE)?;
    lab.host.nft("table ip nat {\n chain pre {\n type nat hook prerouting priority -100;\n iifname enp3s0 tcp dport 8080 dnat to 192.168.122.10:80\n }\n}\n")?;
    firewall::count_everywhere(&lab.host)?;
    let with_masquerade = Figures::measure(&lab, "through nftables masquerade", RUN)?;

    chapter(6, "Side by side");
    println!("{}", report::table(&with_vmnat, &with_masquerade));
    drop(lab);
    println!("The lab is gone; the machine is as it was.");
    Ok(())
}

fn chapter(number: u32, title: &str) {
    println!("\n{number}. {title}\n");
}

fn indented(text: &str) -> String {
    let lines: Vec<String> = text.trim_end().lines().map(|line| format!("   {line}\n")).collect();
    lines.concat()
}

/// Shows a command of the host and what it prints.
fn show(lab: &Lab, command: &[&str]) -> Result<()> {
    let printed = lab.host.exec(command)?;
    println!("   $ {}", command.join(" "));
    print!("{}", indented(&printed));
    Ok(())
}

/// Runs `vmnat` as it stands in `line`, and shows what it prints.
fn run(lab: &Lab, line: &str) -> Result<()> {
    println!("   $ {line}");
    let arguments: Vec<&str> = line.split(' ').skip(1).collect();
    let printed = lab.vmnat_ok(&arguments).with_context(|| line.to_owned())?;
    let counts_nothing =
        |row: &&str| arguments != ["counters"] || !row.split_whitespace().any(|word| word == "0");
    let shown: Vec<&str> = printed.lines().filter(counts_nothing).collect();
    println!("{}", indented(&shown.join("\n")));
    Ok(())
}

/// Keeps interrupts from every thread, so that one of them can wait for them.
fn block_interrupts() -> Result<SigSet> {
    let interrupts: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    interrupts.thread_block()?;
    Ok(interrupts)
}

/// On an interrupt: `vmnat down`, end of every process of the lab, exit. Namespaces and mounts end with the process.
fn clean_up_on(interrupts: SigSet, host: &Namespace) {
    let host = host.clone();
    thread::spawn(move || {
        if interrupts.wait().is_ok() {
            println!("\nInterrupted: cleaning up.");
            if let Ok(program) = vmnat::program() {
                host.output(&[&program.to_string_lossy(), "down"], "").ok();
            }
            lab::end_own_processes();
            println!("The lab is gone; the machine is as it was.");
            std::process::exit(130);
        }
    });
}
