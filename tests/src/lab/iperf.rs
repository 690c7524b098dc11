//! One run of iperf3, as the figure that people know.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{namespace::Namespace, patience::patiently};

/// Which way the bytes go, seen from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Guest to world.
    Up,
    /// World to guest.
    Down,
}

/// Runs one stream from `guest` against a server of its own at `server_address` and returns bits a second.
///
/// # Errors
///
/// When iperf3 is missing or gets nothing through.
pub fn run(
    guest: &Namespace,
    server: &Namespace,
    server_address: &str,
    way: Way,
    seconds: u32,
) -> Result<f64> {
    const PORT: u16 = 5201;
    let port = PORT.to_string();
    let mut serving = server.start(&["iperf3", "-s", "-1", "-p", &port])?;
    wait_for_listener(server, PORT)?;
    let seconds = seconds.to_string();
    let mut client =
        vec!["iperf3", "-J", "-c", server_address, "-p", &port, "-t", &seconds, "--connect-timeout", "4000"];
    if way == Way::Down {
        client.push("-R");
    }
    let finished = guest.output(&client, "")?;
    let report: serde_json::Value = serde_json::from_slice(&finished.stdout).context("iperf3's report")?;
    ensure!(report["error"].is_null(), "iperf3 {way:?}: {}", report["error"]);
    // Its server ends by itself after one client; waiting frees the port for the next.
    let deadline = Instant::now() + patiently(Duration::from_secs(3));
    while serving.is_running() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
    report["end"]["sum_received"]["bits_per_second"].as_f64().context("iperf3's report has no sum")
}

/// Waits until something listens on a TCP port.
///
/// # Errors
///
/// When nothing does within five seconds.
pub fn wait_for_listener(namespace: &Namespace, port: u16) -> Result<()> {
    let needle = format!(":{port:04X} ");
    let listens = || {
        namespace.run(|| {
            let tables = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];
            let rows = tables.map(|table| std::fs::read_to_string(table).unwrap_or_default()).concat();
            // Column 2 is the local address, column 4 the state; 0A listens.
            rows.lines().any(|row| {
                let mut columns = row.split_whitespace().skip(1);
                columns.next().is_some_and(|local| format!("{local} ").ends_with(&needle))
                    && columns.nth(1) == Some("0A")
            })
        })
    };
    let deadline = Instant::now() + patiently(Duration::from_secs(5));
    while !listens() {
        ensure!(Instant::now() < deadline, "nothing listens on port {port} in {}", namespace.name());
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
