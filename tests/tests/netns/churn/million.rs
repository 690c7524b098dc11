//! A million flows: listings answer or stream, their memory stays flat, and expiry stalls nobody.

use std::{
    fs::{self, File},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bytemuck::Zeroable as _;
use vmnat_common::{
    Address, Endpoint, Port, Protocol,
    flow::FlowKey,
    session::{Flags, Session},
};
use vmnat_tests::lab::{EXTERNAL, Lab, octets, traffic::Traffic, vmnat, vmnat::Hook, wait_until};
use vmnat_user::{flow_table::FlowTable, paths::Instance, tables::Tables};

const MILLION: u32 = 1_000_000;

/// What a command may take on a machine that does much else; the figures are printed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Both halves of a flow of UDP as the programs write them, of one of 50 guests that say nothing.
fn halves(number: u32, out_if: u32, now: u32) -> Result<[(FlowKey, Session); 2]> {
    let port = |number: u32| Port::new(u16::try_from(number % 20_000).unwrap_or(0) + 1_024);
    let guest = Address::new([192, 168, 122, u8::try_from(200 + number / 20_000)?]);
    let guest = Endpoint::new(guest, port(number));
    let [_, high, middle, low] = number.to_be_bytes();
    let remote = Endpoint::new(Address::new([198, 18 + (high & 1), middle, low]), Port::new(53_000));
    let external = Endpoint::new(Address::new(octets(EXTERNAL)?), port(number));
    let key = FlowKey::guest(Protocol::Udp, guest, remote);
    let back = key.reverse(external);
    let half = |to: Endpoint| Session {
        address: to.address,
        port: to.port,
        flags: Flags::IMPORTED,
        out_if,
        last_seen: now,
        packets: 1,
        bytes: 64,
        ..Session::zeroed()
    };
    Ok([(back, half(guest)), (key, half(external))])
}

fn fill(lab: &Lab, tables: &Tables) -> Result<()> {
    let mut table = FlowTable::open(&Instance::default())?;
    let (out_if, now) = (lab.host.interface("enp3s0")?, tables.clock()?.stamp());
    let numbers: Vec<u32> = (0..MILLION).collect();
    for part in numbers.chunks(50_000) {
        let mut entries = Vec::new();
        for number in part {
            entries.extend(halves(*number, out_if, now)?);
        }
        let entries = entries.iter().map(|(key, session)| (key, session));
        table.insert_all(entries).context("fill the flow table")?;
    }
    Ok(())
}

/// Runs a command to its end with its output thrown away: how long it took, and its largest resident memory in KiB.
fn measure(lab: &Lab, arguments: &[&str]) -> Result<(Duration, u64)> {
    let program = vmnat::program()?;
    let command = [&[program.to_str().context("a path that is no text")?], arguments].concat();
    let since = Instant::now();
    let mut process = lab.host.start_logged(&command, File::options().write(true).open("/dev/null")?)?;
    let mut most = 0;
    while process.is_running() {
        let status = fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let now = line.and_then(|line| line.split_whitespace().next()).and_then(|kib| kib.parse().ok());
        most = most.max(now.unwrap_or(0));
        thread::sleep(Duration::from_millis(2));
    }
    Ok((since.elapsed(), most))
}

/// The time until the first row is printed.
fn first_row(lab: &Lab, arguments: &str) -> Result<Duration> {
    let program = vmnat::program()?;
    let line = format!("{} {arguments} | head -c 4000", program.display());
    let since = Instant::now();
    let printed = lab.host.exec(&["sh", "-c", &line])?;
    ensure!(printed.contains("198.18."), "no flow in {printed}");
    Ok(since.elapsed())
}

/// 1. traffic, and a million flows of other guests; 2. every listing answers or streams, and none takes memory by the number of flows; 3.
///    the million expires at once; nobody has noticed anything.
#[test]
fn a_million_flows_are_listed_and_expire_beside_traffic() -> Result<()> {
    let mut lab = Lab::new()?;
    let options = ["--flows", "1100000", "--timeout", "udp_replied=25", "--reap-interval", "1s"];
    lab.up_with(Hook::Tcx, &options)?;
    let traffic = Traffic::start(&lab)?;
    let tables = Tables::open(&Instance::default())?;
    let since = Instant::now();
    fill(&lab, &tables)?;
    println!("filled in {:?}", since.elapsed());
    for arguments in ["flows", "flows --json"] {
        let first = first_row(&lab, arguments)?;
        println!("{arguments}: the first rows after {first:?}");
        ensure!(first < PATIENCE / 2, "the first row of {arguments} comes after {first:?}");
    }
    let (_, usual) = measure(&lab, &["counters"])?;
    for arguments in
        [&["flows", "--count"][..], &["status"], &["counters"], &["guests"], &["dnat", "list"], &["flows"]]
    {
        let (took, memory) = measure(&lab, arguments)?;
        println!("{}: {took:?}, {memory} KiB", arguments.join(" "));
        ensure!(took < PATIENCE, "{arguments:?} took {took:?}");
        ensure!(memory < usual + 40_000, "{arguments:?} took {memory} KiB where `counters` takes {usual}");
    }
    let since = Instant::now();
    wait_until("the million to expire", Duration::from_secs(90), || {
        Ok(lab.vmnat_ok(&["flows", "--count"])?.trim().parse::<u32>()? < 10_000)
    })?;
    println!("gone after {:?} more", since.elapsed());
    let report = traffic.finish()?;
    println!("a million flows: {report}");
    report.assert_streams_live()?;
    report.assert_same_ports()?;
    for sequence in &report.sequences {
        ensure!(sequence.outage() < Duration::from_millis(500), "{}: {:?}", sequence.name, sequence.outage());
    }
    lab.assert_invariants()
}
