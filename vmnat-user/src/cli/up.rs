//! `vmnat up`: puts guests online.

mod external;
mod interfaces;
mod limits;
mod merge;
mod services;

use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use clap::ValueEnum;
use ipnet::Ipv4Net;
use rtnetlink::Handle;

pub(super) use self::{
    interfaces::{check_bridge, check_uplink},
    limits::{FilteringWish, StrictWish},
};
use super::{apply, duration, print};
use crate::{
    agent::{self, Herald},
    change::{self, Change},
    config::{self, Config, Source},
    dataplane,
    error::{Error, with_remedy},
    facts::Facts,
    launch,
    leases::Directory,
    link,
    paths::Instance,
    reconcile::{self, Reconciled, settings::TIMEOUTS},
    state::{self, HookMode, Lock, State, kept},
    systemd,
    takeover::TakenOver,
    teardown,
};

const EXAMPLES: &str = "\
Examples:
  vmnat up --bridge virbr0                                 by the interface of the default route
  vmnat up --bridge virbr0 --bridge br1 --uplink enp3s0    two bridges, one uplink
  vmnat up --bridge br0 --network 10.0.0.0/16              guests beyond the bridge's own subnet
  vmnat up --bridge virbr0 --filtering endpoint-independent   guests that are called, as by games and WebRTC
  vmnat up --service dns,8000/tcp                          let guests call two servers of the host
  vmnat up --guest-flows 4096                              change a quota of what runs
  vmnat up --bridge virbr0 --wait 30s --foreground         in a service or a container
";

/// Put the guests behind a bridge online
///
/// Run it again with a further bridge or uplink to add just that; run twice, it changes nothing. Translations that the
/// kernel holds for the guests are taken over, so that their connections live on. What the files in /etc/vmnat say is
/// part of every start; without options, `up` does just what they say, also while vmnat runs (see `vmnat apply`).
#[derive(Clone, Debug, Default, PartialEq, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A bridge whose guests are served; repeatable
    #[arg(long = "bridge", value_name = "BRIDGE")]
    bridges: Vec<String>,
    /// An interface to the world; repeatable [default: the one of the default route, followed as it changes]
    #[arg(long = "uplink", value_name = "UPLINK")]
    uplinks: Vec<String>,
    /// As which address of an uplink guests are seen, instead of its primary one; "primary" for that again; repeatable
    #[arg(long = "external", value_name = "[UPLINK=]ADDRESS", value_parser = external::parse)]
    externals: Vec<external::External>,
    /// A network of guests, instead of the bridge's own subnets; repeatable
    #[arg(long = "network", value_name = "[BRIDGE=]CIDR", value_parser = named_network)]
    networks: Vec<(Option<String>, Ipv4Net)>,
    /// A destination that guests reach without translation, or "none" for none any more; repeatable
    ///
    /// For networks behind the uplink that know the way back. The host must forward, and its firewall decides.
    #[arg(long = "no-nat", value_name = "CIDR", value_parser = untranslated)]
    untranslated: Vec<Untranslated>,
    /// How to attach the programs [default: tcx where the kernel has it]
    #[arg(long, value_name = "HOOK")]
    hook: Option<Hook>,
    /// Wait so long for interfaces and addresses that are not there yet, for example 30s; with 0 they are taken up when they come
    #[arg(long, value_name = "SPAN", value_parser = duration)]
    wait: Option<Duration>,
    /// Stay, as the agent, until SIGTERM; for service managers and containers
    #[arg(long)]
    foreground: bool,
    /// Flows that the table holds [default: 262144]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1_024..=16_777_216))]
    flows: Option<u32>,
    #[command(flatten)]
    services: services::Services,
    #[command(flatten)]
    limits: limits::Limits,
    #[command(flatten)]
    access: super::access::Lists,
    #[arg(long = "timeout", value_name = "KIND=SECONDS", value_parser = timeout, help_heading = "Advanced",
          help = timeout_help())]
    timeouts: Vec<(String, u32)>,
    /// A lease file (dnsmasq's, or libvirt's status) to look up names of guests in, before those that are known;
    /// repeatable
    #[arg(long = "lease-file", value_name = "FILE", help_heading = "Advanced")]
    lease_files: Vec<PathBuf>,
    /// Let the programs log to the agent's log; slow, for the hunt of faults
    #[arg(long, help_heading = "Advanced")]
    kernel_log: bool,
    /// How often to look for flows that have expired
    #[arg(long, value_name = "SPAN", value_parser = duration, hide = true)]
    reap_interval: Option<Duration>,
}

/// `--hook`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Hook {
    /// Pinned tcx links, Linux 6.6 and later
    Tcx,
    /// Filters in a clsact queueing discipline
    Clsact,
}

impl From<Hook> for HookMode {
    fn from(hook: Hook) -> Self {
        match hook {
            Hook::Tcx => Self::Tcx,
            Hook::Clsact => Self::Clsact,
        }
    }
}

/// Runs the command.
///
/// # Errors
/// When something that was asked for cannot be; a first `up` then leaves nothing behind.
pub async fn run(instance: &Instance, args: Args) -> Result<()> {
    need_root("`vmnat up`")?;
    let says_nothing = Args { wait: None, foreground: false, ..args.clone() } == Args::default();
    let is_first = !instance.state().exists();
    let config = if is_first || says_nothing { config::find(instance)? } else { None };
    match config {
        Some(config) if !is_first => {
            apply::take_over(instance, &config, &Source::Own, false).await?;
            settle_agent(instance, args.foreground).await
        }
        config => start_up(instance, args, config.map(|config| (config, Source::Own))).await,
    }
}

/// Starts the instance, or changes what runs: what files say, and what the options do.
///
/// # Errors
/// As [`run`].
pub(super) async fn start_up(
    instance: &Instance,
    args: Args,
    config: Option<(Config, Source)>,
) -> Result<()> {
    dataplane::check_kernel()?;
    let mounted = dataplane::ensure_bpffs()?;
    let handle = change::connect()?;
    let files = config.as_ref().map(|(config, _)| config);
    let facts = interfaces::wait(instance, &args, files, &handle).await?;
    let lock = Lock::take(instance)?;
    let is_first = !instance.state().exists();
    let kept_before = kept::load(instance).unwrap_or_default();
    let logged = state::find(instance)?.is_some_and(|state| state.kernel_log);
    if let Err(error) = bring_up(instance, lock, &args, config.as_ref(), &handle, facts, mounted).await {
        if is_first {
            let undone = teardown::teardown(instance, &handle).await;
            tracing::debug!("what was begun is undone: {undone:?}");
            kept::put_back(instance, kept_before.as_ref())?;
        }
        let outcome = if is_first { "what was begun is undone" } else { "what ran goes on" };
        return Err(with_remedy(error, outcome));
    }
    if args.kernel_log && !logged {
        // Another agent reads what the programs log.
        agent::end(instance)?;
    }
    if !args.lease_files.is_empty() || args.services.is_named() {
        agent::nudge(instance);
    }
    settle_agent(instance, args.foreground).await
}

/// Puts what was asked for into the state, and makes it true.
async fn bring_up(
    instance: &Instance,
    lock: Lock,
    args: &Args,
    config: Option<&(Config, Source)>,
    handle: &Handle,
    facts: Facts,
    mounted: bool,
) -> Result<()> {
    let known = state::find(instance)?;
    let mut state = match &known {
        Some(known) => known.clone(),
        None => State::stored(instance, link::kernel_mode())?,
    };
    if let Some((config, source)) = config {
        let of_files = |state: &State| Ok(Directory::of_files(state));
        let prepared =
            config::apply::prepare(instance, &mut state, &facts, config, known.is_some(), of_files)?;
        state.file.source = source.clone();
        apply::tell_prepared(&prepared)?;
    }
    merge::merge(&mut state, known.as_ref(), args, &facts)?;
    config::refuse_foreign(instance, &state)?;
    reconcile::admit(instance, &state, &facts)?;
    if known.is_none() {
        state.log = launch::log_place(instance);
    }
    let change = Change::with(instance, handle.clone(), lock, state, facts).over(known.as_ref());
    start(instance, change, known.as_ref(), mounted).await
}

/// Fails unless the user is root.
pub(super) fn need_root(what: &str) -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(Error::NotPermitted { what: what.to_owned() }.into())
}

/// Loads, reconciles, takes over, and prints what was done.
async fn start(instance: &Instance, mut change: Change, known: Option<&State>, mounted: bool) -> Result<()> {
    if mounted {
        print::line(&format!("mounted the BPF file system at {}", crate::paths::BPF_FS))?;
        change.state.mounted_bpffs = true;
    }
    let loaded = change.load()?;
    change.save()?;
    let (done, taken) = if known.is_none() {
        change.apply_first().await?
    } else {
        (change.apply().await?, TakenOver::default())
    };
    let steps: Vec<String> = done.failures.iter().map(|failure| format!("{failure:#}")).collect();
    if known.is_none() && !steps.is_empty() {
        return Err(Error::Partial { steps }.into());
    }
    if loaded && known.is_some() {
        // The maps may be others.
        agent::nudge(instance);
    }
    tell(instance, &change, &done, loaded && known.is_some())?;
    tell_taken(&taken)?;
    for warning in &change.state.warnings {
        print::line(&format!("warning: {warning}"))?;
    }
    if steps.is_empty() { Ok(()) } else { Err(Error::Partial { steps }.into()) }
}

fn tell(instance: &Instance, change: &Change, done: &Reconciled, replaced: bool) -> Result<()> {
    if replaced {
        print::line("replaced the programs under their hooks; flows go on")?;
    }
    for line in done.changes.iter().chain(&done.forwards) {
        print::line(line)?;
    }
    if done.changes.is_empty() && done.forwards.is_empty() && done.failures.is_empty() && !replaced {
        print::line(&format!(
            "instance \"{instance}\" is up already, for {}: nothing to change",
            names(&change.state)
        ))?;
    }
    Ok(())
}

fn tell_taken(taken: &TakenOver) -> Result<()> {
    if taken.flows > 0 || taken.skipped > 0 {
        let skipped = match taken.skipped {
            0 => String::new(),
            skipped => format!(", left {skipped} to it"),
        };
        print::line(&format!("took over {} connections of guests from the kernel{skipped}", taken.flows))?;
    }
    if let Some(why) = &taken.unavailable {
        tracing::info!("nothing was taken over: {why}");
    }
    Ok(())
}

/// Starts the agent where none runs, or becomes it.
pub(super) async fn settle_agent(instance: &Instance, foreground: bool) -> Result<()> {
    if foreground {
        return agent::run(instance, Herald::ServiceManager).await;
    }
    if let Some(pid) = agent::resume(instance) {
        return print::line(&format!("let the agent (process {pid}) go on, which was stopped"));
    }
    if agent::running(instance).is_some() {
        return Ok(());
    }
    if let Some(unit) = systemd::start(instance) {
        return print::line(&format!("started {unit}, whose agent stays behind"));
    }
    let state = state::load(instance)?;
    let pid = launch::launch(instance, &state.log)?;
    print::line(&format!("started the agent (process {pid}, log {})", state.log))
}

/// Names of the bridges, for messages.
pub(super) fn names(state: &State) -> String {
    let names: Vec<&str> = state.bridges.iter().map(|bridge| bridge.name.as_str()).collect();
    if names.is_empty() { "no bridge".to_owned() } else { names.join(", ") }
}

fn named_network(text: &str) -> Result<(Option<String>, Ipv4Net), String> {
    let (bridge, network) = match text.split_once('=') {
        Some((bridge, network)) => (Some(bridge.to_owned()), network),
        None => (None, text),
    };
    let network: Ipv4Net =
        network.parse().map_err(|_| format!("\"{network}\" is no network such as 192.168.122.0/24"))?;
    Ok((bridge, network.trunc()))
}

/// A destination without translation; none for "none".
type Untranslated = Option<Ipv4Net>;

fn untranslated(text: &str) -> Result<Untranslated, String> {
    if text == "none" {
        return Ok(None);
    }
    let network: Ipv4Net = text
        .parse()
        .map_err(|_| format!("\"{text}\" is neither a network such as 10.8.0.0/16 nor \"none\""))?;
    Ok(Some(network.trunc()))
}

fn timeout_help() -> String {
    format!("How long a silent flow of a kind is kept; repeatable. Kinds: {}", TIMEOUTS.join(", "))
}

fn timeout(text: &str) -> Result<(String, u32), String> {
    let (name, seconds) = text.split_once('=').ok_or("write KIND=SECONDS, for example udp_unreplied=30")?;
    if !TIMEOUTS.contains(&name) {
        return Err(format!("there is no kind \"{name}\"; there are {}", TIMEOUTS.join(", ")));
    }
    match seconds.parse() {
        Ok(seconds) if seconds > 0 => Ok((name.to_owned(), seconds)),
        _ => Err(format!("\"{seconds}\" is no number of seconds")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_name_their_bridge_or_not() {
        let network: Ipv4Net = "10.0.0.0/24".parse().unwrap();
        assert_eq!(named_network("10.0.0.5/24"), Ok((None, network)));
        assert_eq!(named_network("br0=10.0.0.0/24"), Ok((Some("br0".into()), network)));
        assert!(named_network("10.0.0.0").is_err());
    }

    #[test]
    fn timeouts_are_known_kinds_with_seconds() {
        assert_eq!(timeout("icmp=5"), Ok(("icmp".into(), 5)));
        for text in ["icmp", "icmp=0", "icmp=x", "nonsense=5"] {
            assert!(timeout(text).is_err(), "{text}");
        }
    }
}
