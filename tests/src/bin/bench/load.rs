//! iperf3: streams of TCP and of UDP, one run or in the background.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use vmnat_tests::lab::{
    iperf::{Way, wait_for_listener},
    namespace::{Namespace, Process},
};

const PORT: u16 = 5201;

/// Bytes of a datagram of UDP: what fits 1,500 bytes with room for a tunnel's header.
const DATAGRAM: &str = "1400";

/// What is to run.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// UDP, as fast as it goes, instead of TCP.
    pub is_udp: bool,
    /// Streams at once.
    pub streams: u32,
    /// Which way.
    pub way: Way,
    /// How long.
    pub seconds: u32,
}

impl Default for Load {
    fn default() -> Self {
        Self { is_udp: false, streams: 1, way: Way::Up, seconds: 2 }
    }
}

impl Load {
    fn command(self, server: &str) -> Vec<String> {
        let Self { is_udp, streams, way, seconds } = self;
        let kind =
            if is_udp { format!("-u -b 0 -l {DATAGRAM}") } else { "--connect-timeout 4000".to_owned() };
        let mut words = format!("iperf3 -J -c {server} -p {PORT} -t {seconds} -P {streams} {kind}");
        if way == Way::Down {
            words.push_str(" -R");
        }
        words.split(' ').map(str::to_owned).collect()
    }
}

/// Runs to the end; bits a second that arrived.
pub fn run(guest: &Namespace, world: &Namespace, server: &str, load: Load) -> Result<f64> {
    let mut serving = serve(world, server)?;
    let command = load.command(server);
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let finished = guest.output(&command, "")?;
    let report: Value = serde_json::from_slice(&finished.stdout).context("iperf3's report")?;
    let end = report.get("end").cloned().unwrap_or_default();
    let error = report.get("error").cloned().unwrap_or_default();
    ensure!(error.is_null(), "iperf3 {load:?}: {error}");
    // Its server ends by itself after one client; waiting frees the port for the next.
    let deadline = Instant::now() + Duration::from_secs(3);
    while serving.is_running() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
    let received = end.get("sum_received").and_then(|sum| sum.get("bits_per_second")).and_then(Value::as_f64);
    received.context("iperf3's report has no sum")
}

/// A stream in the background.
#[derive(Debug)]
pub struct Bulk {
    client: std::sync::Mutex<Process>,
    _server: Process,
    guest: Namespace,
    bytes: u64,
}

/// Starts a stream, and returns once it flows. It ends with the value.
pub fn start(guest: &Namespace, world: &Namespace, server: &str, load: Load) -> Result<Bulk> {
    let serving = serve(world, server)?;
    let command = load.command(server);
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let before = sent(guest)?;
    let client = guest.start(&command)?;
    let deadline = Instant::now() + Duration::from_secs(10);
    // A few hundred milliseconds of a stream that has its speed.
    while sent(guest)? < before + (100 << 20) {
        ensure!(Instant::now() < deadline, "the bulk stream does not flow");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(Bulk { client: client.into(), _server: serving, guest: guest.clone(), bytes: sent(guest)? })
}

impl Bulk {
    /// True when it has gone on until now.
    pub fn is_flowing(&self) -> Result<bool> {
        let runs = self.client.lock().is_ok_and(|mut client| client.is_running());
        Ok(runs && sent(&self.guest)? > self.bytes)
    }
}

/// Bytes that the guest has sent.
fn sent(guest: &Namespace) -> Result<u64> {
    let table = guest.run(|| fs::read_to_string("/proc/thread-self/net/dev"))?;
    let row = table.lines().find_map(|line| line.trim().strip_prefix("eth0:")).context("no eth0")?;
    row.split_whitespace().nth(8).context("no count")?.parse().context("bytes sent")
}

/// Its answers by UDP must come from where they were asked.
fn serve(world: &Namespace, server: &str) -> Result<Process> {
    let serving = world.start(&["iperf3", "-s", "-1", "-B", server, "-p", &PORT.to_string()])?;
    wait_for_listener(world, PORT)?;
    Ok(serving)
}
