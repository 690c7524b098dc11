//! `vmnat dnat`: port forwards.

mod add;
mod exists;
pub(crate) mod file;
mod list;
mod remove;

use std::time::Duration;

use anyhow::Result;
use clap::Subcommand;
use ipnet::Ipv4Net;

use super::duration;
use crate::{
    error::Error,
    forwards::{ForwardSpec, PortForward, Wish, now, read_source},
    paths::Instance,
    state::{self, HookMode, State},
};

/// Add, remove or list port forwards
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Clone, Debug, Subcommand)]
enum Action {
    Add(add::Args),
    Rm(remove::Args),
    List(list::Args),
    Exists(exists::Args),
}

/// Runs the command.
///
/// # Errors
/// When the change cannot be made.
pub async fn run(instance: &Instance, args: Args) -> Result<()> {
    match args.action {
        Action::Add(args) => add::run(instance, args).await,
        Action::Rm(args) => remove::run(instance, &args).await,
        Action::List(args) => list::run(instance, &args),
        Action::Exists(args) => exists::run(instance, &args),
    }
}

/// The options of a port forward, on the command line and in a file's line.
#[derive(Clone, Debug, Default, PartialEq, clap::Args)]
struct Options {
    /// Only callers from here may use it; repeatable
    #[arg(long = "from", value_name = "CIDR", value_parser = read_source)]
    from: Vec<Ipv4Net>,
    /// Bind it to this uplink's addresses, and follow them
    #[arg(long, value_name = "UPLINK")]
    uplink: Option<String>,
    /// Say what it is for
    #[arg(long, value_name = "TEXT")]
    comment: Option<String>,
    /// Let it end after so long, for example 30s, 2h or 7d
    #[arg(long, value_name = "SPAN", value_parser = lifetime)]
    expires: Option<Duration>,
    /// Let it end with `down`
    #[arg(long)]
    runtime_only: bool,
    /// Take the port even where a server of the host listens on it, or Docker publishes it
    #[arg(long)]
    steal: bool,
}

impl Options {
    /// These options where they are given, and `other`'s elsewhere.
    fn or(self, other: &Self) -> Self {
        let Self { from, uplink, comment, expires, runtime_only, steal } = self;
        Self {
            from: if from.is_empty() { other.from.clone() } else { from },
            uplink: uplink.or_else(|| other.uplink.clone()),
            comment: comment.or_else(|| other.comment.clone()),
            expires: expires.or(other.expires),
            runtime_only: runtime_only || other.runtime_only,
            steal: steal || other.steal,
        }
    }

    /// What is asked for; the second is whether its port may be taken from the host.
    fn wish(self, spec: ForwardSpec) -> (Wish, bool) {
        let Self { mut from, uplink, comment, expires, runtime_only, steal } = self;
        from.sort_unstable();
        from.dedup();
        let expires = expires.map(|span| now().saturating_add(span.as_secs()));
        (Wish { from, uplink, comment, expires, runtime_only, ..Wish::plain(spec) }, steal)
    }
}

fn lifetime(text: &str) -> Result<Duration, String> {
    let span = duration(text)?;
    if span.as_secs() == 0 {
        Err(format!("\"{text}\" is over at once: write a second or more"))
    } else {
        Ok(span)
    }
}

/// The state, and whether the instance is running; a stopped one has the port forwards that outlive it.
///
/// # Errors
/// [`Error::NotRunning`] where nothing is kept either.
fn load(instance: &Instance) -> Result<(State, bool)> {
    if let Some(state) = state::find(instance)? {
        return Ok((state, true));
    }
    if instance.forwards().exists() {
        return Ok((State::stored(instance, HookMode::Tcx)?, false));
    }
    Err(Error::NotRunning { instance: instance.to_string(), option: instance.option() }.into())
}

/// The port forwards that a number or specification means; several where they differ in their uplinks.
fn meant<'a>(forwards: &'a [PortForward], which: &str) -> Result<Vec<&'a PortForward>, Error> {
    let is_number = which.bytes().all(|byte| byte.is_ascii_digit());
    if let (true, Ok(id)) = (is_number, which.parse::<u32>()) {
        return Ok(forwards.iter().filter(|forward| forward.id == id).collect());
    }
    let spec: ForwardSpec = which.parse()?;
    Ok(forwards.iter().filter(|forward| forward.wish.spec == spec).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_last_a_second_at_least() {
        assert_eq!(lifetime("2h"), Ok(Duration::from_hours(2)));
        assert!(lifetime("0").is_err() && lifetime("10ms").is_err());
    }

    #[test]
    fn a_forward_is_meant_by_number_or_specification() {
        let forward = |id, spec: &str| PortForward { id, wish: Wish::plain(spec.parse().unwrap()) };
        let forwards = [forward(1, "80:web:80"), forward(2, "81:web:80"), forward(3, "80:web:80")];
        let ids = |which: &str| {
            meant(&forwards, which).map(|found| found.iter().map(|forward| forward.id).collect::<Vec<_>>())
        };
        assert_eq!(ids("2").unwrap(), [2]);
        assert_eq!(ids("9").unwrap(), Vec::<u32>::new());
        assert_eq!(ids("80:WEB:80/tcp").unwrap(), [1, 3]);
        assert!(ids("nonsense").is_err());
    }

    #[test]
    fn options_of_a_line_go_before_those_of_the_command() {
        let line = Options { comment: Some("line".into()), ..Options::default() };
        let command = Options { comment: Some("command".into()), steal: true, ..Options::default() };
        let both = line.or(&command);
        assert_eq!((both.comment.as_deref(), both.steal), (Some("line"), true));
    }
}
