//! `guest`: streams, connections and latency of a real guest in QEMU, by turns through what its host sets up.

use std::{env, path::PathBuf, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use vmnat_tests::{
    guest::worker::Worker,
    lab::{EXTERNAL, Lab, SERVER, Setup, iperf::wait_for_listener, vmnat::Hook},
};

use crate::{
    connect,
    forwarding::Forwarding,
    inhabited::WITHOUT_QUOTAS,
    latency::Answerer,
    report::{self, Section, table},
    rulesets,
    statistics::Series,
    worker,
};

/// A busy machine of two cores boots the guest in well under this.
const BOOT: Duration = Duration::from_mins(3);

/// Longer than any command takes.
const PATIENCE: Duration = Duration::from_mins(1);

/// Pings of a round: an emulated processor takes its time.
const PINGS: u32 = 2_000;

const WAYS: [Forwarding; 3] = [Forwarding::Route, Forwarding::Masquerade, Forwarding::Port];

/// What is measured, with its unit.
const FIGURES: [&str; 7] = [
    "TCP stream, guest to world, Gbit/s",
    "TCP stream, world to guest, Gbit/s",
    "TCP conversations a second",
    "UDP ping-pong, p50, µs",
    "UDP ping-pong, p99, µs",
    "TCP ping-pong, p50, µs",
    "TCP ping-pong, p99, µs",
];

/// Figures of one way to forward.
type Measured = [Series; FIGURES.len()];

/// Measures, and describes what came of it.
pub fn run(rounds: usize, seconds: u32) -> Result<Section> {
    let mut lab = Lab::with(Setup { guests: 0, offloads: true, ..Setup::default() })?;
    lab.keep_quiet();
    let own = env::current_exe()?;
    let mut guest = Worker::start(&lab, &[&own, &iperf3()?], BOOT)?;
    let program = own.file_name().context("no name of one's own")?.to_string_lossy().into_owned();
    let mut all: [Measured; 3] = Default::default();
    for round in 0..rounds {
        println!("guest: round {} of {rounds}", round + 1);
        for step in 0..WAYS.len() {
            let at = (round + step) % WAYS.len();
            let (way, measured) = WAYS.get(at).zip(all.get_mut(at)).context("no such way")?;
            set_up(&lab, *way)?;
            let figures = measure(&lab, &mut guest, &program, *way, seconds).with_context(|| way.name())?;
            for (series, figure) in measured.iter_mut().zip(figures) {
                series.0.push(figure);
            }
            take_down(&lab, *way)?;
        }
    }
    Ok(describe(&all, rounds, seconds))
}

fn iperf3() -> Result<PathBuf> {
    let places = ["/usr/bin/iperf3", "/bin/iperf3", "/usr/local/bin/iperf3"].map(PathBuf::from);
    places.into_iter().find(|path| path.is_file()).context("no iperf3: `apt-get install iperf3`")
}

fn set_up(lab: &Lab, way: Forwarding) -> Result<()> {
    match way {
        Forwarding::Route => lab.router.ip(&format!("route add 192.168.122.0/24 via {EXTERNAL}\n"))?,
        Forwarding::Masquerade => lab.host.nft(rulesets::MASQUERADE)?,
        _ => return lab.up_with(Hook::Tcx, &WITHOUT_QUOTAS).map(drop),
    }
    lab.host.set_sysctl("net/ipv4/ip_forward", "1")
}

fn take_down(lab: &Lab, way: Forwarding) -> Result<()> {
    match way {
        Forwarding::Route => lab.router.ip("route del 192.168.122.0/24\n")?,
        Forwarding::Masquerade => lab.host.nft("flush ruleset\n")?,
        _ => return lab.vmnat_ok(&["down"]).map(drop),
    }
    lab.host.set_sysctl("net/ipv4/ip_forward", "0")
}

fn measure(
    lab: &Lab,
    guest: &mut Worker,
    program: &str,
    way: Forwarding,
    seconds: u32,
) -> Result<[f64; FIGURES.len()]> {
    let up = stream(lab, guest, seconds, "")?;
    let down = stream(lab, guest, seconds, " -R")?;
    // Nothing goes past what is measured: without it the guest is cut off.
    let forwarded = lab.host.sysctl("net/ipv4/ip_forward")? == "1";
    ensure!(
        forwarded != way.is_vmnat(),
        "the kernel forwards where vmnat should, or does not where it should"
    );
    let told = format!("{program} {} connect {seconds}", worker::WORD);
    let conversations = connect::beside_server(&lab.world, || Ok(()), || asked(guest, &told))?;
    let conversations = conversations.get("rate").and_then(Value::as_f64).context("no rate")?;
    let (udp50, udp99) = pings(lab, guest, program, false)?;
    let (tcp50, tcp99) = pings(lab, guest, program, true)?;
    Ok([up, down, conversations, udp50, udp99, tcp50, tcp99])
}

/// Runs this program in the guest; what it says.
fn asked(guest: &mut Worker, command: &str) -> Result<Value> {
    let said = guest.run(command, PATIENCE)?;
    serde_json::from_str(said.trim()).with_context(|| format!("`{command}` said {said:?}"))
}

/// Median and p99 of ping-pongs.
fn pings(lab: &Lab, guest: &mut Worker, program: &str, is_tcp: bool) -> Result<(f64, f64)> {
    let answerer = Answerer::open(&lab.world, is_tcp)?;
    let answering = thread::spawn(move || answerer.answer(PINGS));
    let told = format!("{program} {} {} {PINGS}", worker::WORD, if is_tcp { "tcp" } else { "udp" });
    let said = asked(guest, &told)?;
    answering.join().unwrap_or_else(|why| std::panic::resume_unwind(why))?;
    let share =
        |at: usize| said.get("microseconds").and_then(|shares| shares.get(at)).and_then(Value::as_f64);
    share(0).zip(share(1)).context("no times")
}

/// Gbit/s of one TCP stream.
fn stream(lab: &Lab, guest: &mut Worker, seconds: u32, further: &str) -> Result<f64> {
    const PORT: u16 = 5201;
    let serving = lab.world.start(&["iperf3", "-s", "-1", "-p", &PORT.to_string()])?;
    wait_for_listener(&lab.world, PORT)?;
    let report = asked(guest, &format!("iperf3 -J -c {SERVER} -p {PORT} -t {seconds}{further}"))?;
    drop(serving);
    let end = report.get("end").context("iperf3 has no result")?;
    let bits = end.get("sum_received").and_then(|sum| sum.get("bits_per_second")).and_then(Value::as_f64);
    Ok(bits.context("iperf3's report has no sum")? / 1e9)
}

fn describe(all: &[Measured; 3], rounds: usize, seconds: u32) -> Section {
    let how = format!(
        "How: a guest of one processor in QEMU without KVM (`-accel tcg`), with virtio-net on a tap in the bridge, towards a host two hops\n\
         away. {rounds} times the host forwards in every way once, by turns: routing alone, nft masquerade, vmnat. {seconds} s for each\n\
         stream of iperf3 and for the conversations, {PINGS} ping-pongs. The emulated guest costs far more than any way to forward, which the\n\
         ratios show; it is here because it is what guests do, and there are no goals. Medians with quartiles, ratios of each round."
    );
    let [route, masquerade, vmnat] = all;
    let (mut rows, mut values) = (Vec::new(), Vec::new());
    for (at, name) in FIGURES.iter().enumerate() {
        let series = [route, masquerade, vmnat].map(|one| one.get(at).cloned().unwrap_or_default());
        let [route, masquerade, vmnat] = &series;
        let ratio = |other: &Series| vmnat.with(other, |own, other| own / other);
        let decimals = if route.median() < 100.0 { 2 } else { 0 };
        rows.push([
            (*name).to_owned(),
            vmnat.written(decimals),
            masquerade.written(decimals),
            route.written(decimals),
            ratio(masquerade).written(2),
            ratio(route).written(2),
        ]);
        values.push(json!({
            "figure": name, "vmnat": vmnat.json(), "masquerade": masquerade.json(), "route": route.json(),
            "of_masquerade": ratio(masquerade).json(), "of_route": ratio(route).json(),
        }));
    }
    let columns = ["a real guest", "vmnat", "nft masquerade", "L3 forward", "vmnat × nft", "vmnat × L3"];
    let data = json!({
        "schema": 1, "machine": report::machine(), "rounds": rounds, "seconds": seconds, "rows": values,
    });
    let text = [how, table(&columns, &rows)].join("\n\n");
    Section { name: "guest", title: "A real guest", text, data, goals: Vec::new(), plots: Vec::new() }
}
