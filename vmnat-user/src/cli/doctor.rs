//! `vmnat doctor`: why guests are offline.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};

use super::print;
use crate::{
    doctor::{
        self,
        facts::Wanted,
        probe::{self, Target},
    },
    error::Error,
    paths::Instance,
};

const EXAMPLES: &str = "\
Examples:
  vmnat doctor                                why guests are offline, on every bridge that has some
  vmnat doctor --bridge virbr0                on this bridge alone
  vmnat doctor --json | jq -r '.rows[0].cause'
  vmnat doctor --fine                         also what is as it should be
  vmnat doctor --probe                        try it from a guest made for the purpose
  vmnat doctor --probe --probe-target 192.0.2.1:443
";

/// Find out why guests are offline
///
/// Looks at firewalls (nftables and both iptables, asked from the kernel, so neither need be installed), kernel
/// settings, bridges, taps, uplinks, DHCP and DNS, and says what keeps guests from the world: the true cause first, with what
/// shows it, whether vmnat gets past it, and the command that mends it otherwise. Works whether vmnat runs or not, and
/// changes nothing.
///
/// With `--probe`, a guest is made at each bridge (an interface, a MAC and an address of its own) that tries DHCP, the gateway, DNS,
/// pings, TCP, fragments and the path's MTU; it is gone when the command ends, however that is.
///
/// Ends with 0 when guests lack nothing, with 14 when they lack something, and with 3 when
/// nothing was found by somebody who may not look at everything. docs/doctor.md lists every finding.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A bridge of guests; repeatable. Without it: all that look as if guests were behind them
    #[arg(long = "bridge", value_name = "BRIDGE")]
    bridges: Vec<String>,
    /// By where guests go into the world. Without it: vmnat's, or that of the default route
    #[arg(long, value_name = "UPLINK")]
    uplink: Option<String>,
    /// Try it all from a synthetic guest at each bridge
    #[arg(long)]
    probe: bool,
    /// Whom the synthetic guest calls, by ping, and by TCP where a port is given; repeatable. Without it: the router of the default
    /// route. The host's resolvers are asked in any case
    #[arg(long = "probe-target", value_name = "HOST[:PORT]", requires = "probe")]
    targets: Vec<Target>,
    /// Show what is as it should be, too; so does --verbose
    #[arg(long)]
    fine: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Write the rules of the firewall as the kernel told them, for a report of a bug
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// When the kernel refuses to tell, and when guests lack something.
pub async fn run(instance: &Instance, args: &Args, verbose: bool) -> Result<()> {
    let Args { bridges, uplink, probe, targets, fine, json, record } = args;
    let wanted = Wanted { bridges: bridges.clone(), uplink: uplink.clone() };
    let (facts, mut report) = doctor::examine(instance, &wanted).await?;
    if let Some(file) = record {
        fs::write(file, facts.raw.bytes()).with_context(|| format!("write {}", file.display()))?;
    }
    if *probe {
        let found = facts.subjects.iter().flat_map(|subject| probe::run(instance, &facts, subject, targets));
        report.add(&facts, found);
    }
    if *json {
        print::line(&report.json()?)?;
    } else {
        print::text(&report.text(print::width(), *fine || verbose))?;
    }
    if report.offline {
        return Err(Error::Offline.into());
    }
    // To see nothing is not to see that nothing is wrong.
    if facts.troubles.iter().any(|trouble| trouble.is_denied) {
        return Err(Error::NotPermitted { what: "looking at the rules of the firewall".into() }.into());
    }
    Ok(())
}
