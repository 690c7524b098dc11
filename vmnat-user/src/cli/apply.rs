//! `vmnat apply`: makes true what files say, all of it or nothing.

use std::path::PathBuf;

use anyhow::Result;

use super::{fail_in_part, print, up};
use crate::{
    agent,
    change::{self, Change},
    config::{self, Config, Source, apply::Prepared},
    dataplane,
    leases::Directory,
    link,
    paths::Instance,
    plan::{self, Circumstances},
    report,
    state::{self, State},
    tables::Tables,
};

const EXAMPLES: &str = "\
Examples:
  vmnat apply                       take over /etc/vmnat/vmnat.toml and /etc/vmnat/conf.d/*.toml
  vmnat apply --dry-run             say what would change, and change nothing
  vmnat apply -f guests.toml        take over another file instead of those
  generate | vmnat apply -f -       take over standard input

Lines begin with + for what comes, - for what goes, and ~ for what changes. What the command line has
said stays beside it; where the two contradict each other, nothing is changed.
";

/// Make true what the files say: all of it, or nothing
///
/// Reads /etc/vmnat/vmnat.toml and then /etc/vmnat/conf.d/*.toml by name (below /etc/vmnat/NAME for another instance). All
/// of it is judged before anything is changed. An instance that does not run is started. What the files have said before
/// and say no more goes; what `up`, `network`, `uplink` and `dnat` were asked for stays. SIGHUP makes the agent do the same.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Read this file instead, or standard input for "-"
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Say what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// When something cannot be; then nothing is changed.
pub async fn run(instance: &Instance, args: &Args) -> Result<()> {
    let Args { file, dry_run, json } = args;
    up::need_root("`vmnat apply`")?;
    let source = Source::named(file.as_deref())?;
    let config = config::read(instance, &source)?;
    if *dry_run {
        let prepared = preview(instance, &config).await?;
        return tell(&prepared, "apply", *json, "nothing would change");
    }
    if instance.state().exists() {
        take_over(instance, &config, &source, *json).await?;
        return up::settle_agent(instance, false).await;
    }
    if *json {
        print::line(&report::json("apply", &preview(instance, &config).await?.differences)?)?;
    }
    up::start_up(instance, up::Args::default(), Some((config, source))).await
}

/// Takes files over where the instance runs.
///
/// # Errors
/// As [`config::apply::carry_out`].
pub(super) async fn take_over(
    instance: &Instance,
    config: &Config,
    source: &Source,
    json: bool,
) -> Result<()> {
    dataplane::ensure_bpffs()?;
    let mut change = Change::begin(instance).await?;
    let logged = change.state.kernel_log;
    let (prepared, done) = config::apply::carry_out(instance, &mut change, config, source).await?;
    let (logs, warnings) = (change.state.kernel_log, change.state.warnings.clone());
    drop(change);
    if logs == logged {
        agent::nudge(instance);
    } else {
        // Another agent reads what the programs log.
        agent::end(instance)?;
    }
    if json {
        print::line(&report::json("apply", &prepared.differences)?)?;
        return fail_in_part(&done);
    }
    let is_same = prepared.differences.is_empty() && done.changes.is_empty() && done.forwards.is_empty();
    let nothing =
        format!("instance \"{instance}\" is what {} says: nothing to change", source.name(instance));
    tell(&prepared, "apply", false, if is_same { &nothing } else { "" })?;
    let repaired = if prepared.differences.is_empty() { &done.forwards[..] } else { &[] };
    for line in done.changes.iter().chain(repaired) {
        print::line(line)?;
    }
    for warning in warnings.iter().filter(|warning| !prepared.warnings.contains(warning)) {
        print::line(&format!("warning: {warning}"))?;
    }
    fail_in_part(&done)
}

/// What taking files over would do; nothing is changed.
///
/// # Errors
/// As [`config::apply::prepare`].
pub(super) async fn preview(instance: &Instance, config: &Config) -> Result<Prepared> {
    let known = state::find(instance)?;
    let is_running = known.is_some();
    let mut state = match known {
        Some(state) => state,
        None => State::stored(instance, link::kernel_mode())?,
    };
    let facts = crate::facts::gather(&change::connect()?).await?;
    let directory = |state: &State| {
        if is_running {
            Directory::gather(state, &facts, &Tables::open(instance)?)
        } else {
            Ok(Directory::of_files(state))
        }
    };
    let mut prepared = config::apply::prepare(instance, &mut state, &facts, config, is_running, directory)?;
    let known = std::mem::take(&mut state.warnings);
    let plan = plan::plan(&state, &facts, &Circumstances::default())?;
    prepared.warnings.extend(plan.warnings.into_iter().filter(|warning| !known.contains(warning)));
    Ok(prepared)
}

/// Prints what differs, or that nothing does.
///
/// # Errors
/// When nothing can be printed.
pub(super) fn tell(prepared: &Prepared, kind: &str, json: bool, nothing: &str) -> Result<()> {
    if json {
        return print::line(&report::json(kind, &prepared.differences)?);
    }
    tell_prepared(prepared)?;
    if prepared.differences.is_empty() && !nothing.is_empty() { print::line(nothing) } else { Ok(()) }
}

/// Prints what differs, and what should be known.
///
/// # Errors
/// When nothing can be printed.
pub(super) fn tell_prepared(prepared: &Prepared) -> Result<()> {
    let mut text = String::new();
    for difference in &prepared.differences {
        text.push_str(&difference.to_string());
        text.push('\n');
    }
    for warning in &prepared.warnings {
        text.push_str("warning: ");
        text.push_str(warning);
        text.push('\n');
    }
    print::text(&text)
}
