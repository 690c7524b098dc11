//! The same checks and runs, whoever translates.

use std::time::Duration;

use anyhow::{Context, Result};
use vmnat_tests::lab::{
    EXTERNAL, Lab, SERVER, SERVER_ECHO, SERVER_HTTP, client,
    firewall::{counted, stop_counting},
    iperf::{self, Way},
};

/// Size of the download, bytes.
pub const DOWNLOAD: usize = 4_000_000;

/// Runs of iperf3 each way; the best one counts, since a machine has other things to do.
pub const RUNS: u32 = 2;

/// What one way of translating achieves, once downloads and the port forward have passed their checks.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Median time of a ping.
    pub ping: Duration,
    /// Whether the world sees guests as the external address.
    pub is_masked: bool,
    /// Packets of guests that netfilter's hooks have seen meanwhile.
    pub seen_by_netfilter: u64,
    /// Whether no private source left by the uplink.
    pub is_tight: bool,
    /// Bits a second from guest to world.
    pub up: f64,
    /// Bits a second from world to guest.
    pub down: f64,
}

impl Figures {
    /// Checks, then measures; iperf3 runs without the counting rules, which would slow masquerade down.
    pub fn measure(lab: &Lab, how: &str, seconds: u32) -> Result<Self> {
        let guest = lab.guest(1)?;
        let before = counted(&lab.host)?;
        let ping = ping_median(lab)?;
        println!("   guest 1 pings {SERVER} {how}: {:.3} ms", ping.as_secs_f64() * 1e3);
        let seen_as = client::converse(guest, SERVER_ECHO)?;
        println!("   the world sees guest 1 as {seen_as}");
        client::download(guest, SERVER_HTTP, DOWNLOAD).context("the download")?;
        println!("   guest 1 downloads {} MB by HTTP: SHA-256 as it must be", DOWNLOAD / 1_000_000);
        client::download(&lab.world, &format!("{EXTERNAL}:8080"), DOWNLOAD).context("the port forward")?;
        println!("   the world downloads from guest 1 through {EXTERNAL}:8080: SHA-256 as it must be");
        let seen_by_netfilter = counted(&lab.host)?.saturating_sub(before);
        println!("   packets of all this in netfilter's hooks: {seen_by_netfilter}");
        stop_counting(&lab.host)?;
        let mut rates = [0.0; 2];
        for (rate, way) in rates.iter_mut().zip([Way::Up, Way::Down]) {
            for _ in 0..RUNS {
                *rate = iperf::run(guest, &lab.world, SERVER, way, seconds)?.max(*rate);
            }
            let words = if way == Way::Up { "guest to world" } else { "world to guest" };
            println!("   iperf3, {words}, better of {RUNS} runs of {seconds} s: {:.2} Gbit/s", *rate / 1e9);
        }
        let [up, down] = rates;
        Ok(Self {
            ping,
            is_masked: seen_as.ip().to_string() == EXTERNAL,
            seen_by_netfilter,
            is_tight: lab.leaks.assert_none().is_ok(),
            up,
            down,
        })
    }
}

fn ping_median(lab: &Lab) -> Result<Duration> {
    let mut times = Vec::new();
    for _ in 0..11 {
        times.push(client::ping(lab.guest(1)?, SERVER)?.took);
    }
    times.sort_unstable();
    times.get(5).copied().context("no pings")
}
