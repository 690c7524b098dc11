//! What this program does inside of a guest: one call, one line of JSON.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use crate::{connect, latency, statistics::Series};

/// The word by which the program is asked to be a worker.
pub const WORD: &str = "worker";

/// Does what the words say: `connect SECONDS`, `udp PINGS`, `tcp PINGS`.
pub fn run(words: &[String]) -> Result<()> {
    let [what, number] = words else { bail!("a worker is told what, and how much") };
    let number: u32 = number.parse().context("how much")?;
    let said = match &**what {
        "connect" => json!({ "rate": connect::call(Duration::from_secs(number.into()))? }),
        "udp" | "tcp" => {
            let times = Series(latency::ask(what == "tcp", number)?);
            json!({ "microseconds": latency::SHARES.map(|(share, _)| times.quantile(share)) })
        }
        _ => bail!("a worker cannot \"{what}\""),
    };
    println!("{said}");
    Ok(())
}
