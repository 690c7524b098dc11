//! `vmnat dnat add`: all of what is asked for, or nothing.

use std::{fmt::Write as _, path::PathBuf};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{Options, file};
use crate::{
    agent,
    change::Change,
    cli::{fail_in_part, print},
    forwards::{self, Admission, FORM, ForwardSpec, PortForward, Request, Verdict, now},
    leases::Directory,
    paths::Instance,
    report,
};

const EXAMPLES: &str = "\
Examples:
  vmnat dnat add 8080:192.168.122.10:80                     every uplink's port, and 127.0.0.1's
  vmnat dnat add 2222:web:22 --comment 'ssh to web'         to a lease by its name
  vmnat dnat add '53:[52:54:00:12:34:56]:53/tcp+udp'        by its MAC, TCP and UDP
  vmnat dnat add 60000-61000:web:60000-61000/udp            a range of ports
  vmnat dnat add 192.0.2.1:443:web:443                      at one address of the host alone
  vmnat dnat add 127.0.0.1:5432:db:5432                     for the host's own programs alone
  vmnat dnat add 443:web:443 --uplink enp3s0                at one uplink's addresses
  vmnat dnat add 3389:win:3389 --from 198.51.100.0/24       for some callers alone
  vmnat dnat add 8000:web:8000 --expires 2h --runtime-only  for two hours, and not after `down`
  vmnat dnat add --file forwards.txt                        one a line with its options, all or none

A port that a server of the host listens on, or that Docker publishes, is refused. With --steal the
forward has it for as long as it stands. A port of another forward is never taken.
";

/// Lead ports of the host to a guest
///
/// TARGET is a guest's address, the name of its lease, or its MAC in brackets; the forward follows the lease. Without
/// HOSTIP it stands at the addresses of every uplink, and at 127.0.0.1 for the host's own programs. Forwards are kept
/// over `down`, `up` and a reboot.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[arg(value_name = "FORWARD", required_unless_present = "file", help = format!("{FORM}; tcp when not said"))]
    forwards: Vec<ForwardSpec>,
    /// Read forwards from this file, or from standard input for "-": one a line with its options, "#" for comments
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    options: Options,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What became of a request.
#[derive(Debug, Serialize)]
struct Row {
    /// None where it was not added yet.
    id: Option<u32>,
    forward: String,
    change: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// When one of them cannot be; then none is.
pub(super) async fn run(instance: &Instance, args: Args) -> Result<()> {
    let Args { forwards, file, options, dry_run, json } = args;
    let mut requests: Vec<Request> = Vec::new();
    for spec in forwards {
        let (wish, steal) = options.clone().wish(spec);
        requests.push(Request { wish, steal, origin: None });
    }
    if let Some(path) = &file {
        requests.extend(file::read(path, &options)?);
    }
    let mut change = Change::begin(instance).await?;
    forwards::drop_expired(&mut change.state, now(), forwards::boot_now()?);
    let before = change.state.forwards.clone();
    let rows = grant(&mut change, requests, dry_run)?;
    let has_changed = change.state.forwards != before;
    if dry_run || !has_changed {
        return tell(&rows, json);
    }
    let done = change.apply_forwards(before).await?;
    let waits = change
        .state
        .forwards
        .iter()
        .any(|forward| forward.wish.expires.is_some() || forward.wish.spec.target.address().is_none());
    drop(change);
    if waits {
        agent::nudge(instance);
    }
    if !json {
        for line in &done.changes {
            print::line(line)?;
        }
    }
    tell(&rows, json)?;
    fail_in_part(&done)
}

/// Puts every request into the state, or fails at the first that cannot be.
fn grant(change: &mut Change, requests: Vec<Request>, dry_run: bool) -> Result<Vec<Row>> {
    let directory = Directory::gather(&change.state, &change.facts, &change.tables()?)?;
    let mut admission = Admission::open(&change.state, &change.facts, directory)?;
    let mut rows = Vec::with_capacity(requests.len());
    for request in requests {
        let admitted = admission.admit(&request);
        let admitted = match &request.origin {
            Some(origin) => admitted.with_context(|| origin.clone())?,
            None => admitted?,
        };
        let Request { wish, .. } = request;
        let forward = wish.spec.to_string();
        let (id, verb) = match admitted.verdict {
            Verdict::Unchanged(id) => (Some(id), "unchanged"),
            Verdict::Renewed(id) => {
                let known = change.state.forwards.iter_mut().find(|known| known.id == id);
                if let Some(known) = known {
                    known.wish.expires = wish.expires;
                }
                (Some(id), if dry_run { "would renew" } else { "renewed" })
            }
            Verdict::New => {
                let id = change.state.next_forward;
                change.state.next_forward = id.saturating_add(1);
                change.state.forwards.push(PortForward { id, wish });
                if dry_run { (None, "would add") } else { (Some(id), "added") }
            }
        };
        rows.push(Row { id, forward, change: verb, warnings: admitted.warnings });
    }
    Ok(rows)
}

fn tell(rows: &[Row], json: bool) -> Result<()> {
    if json {
        return print::line(&report::json("dnat_add", rows)?);
    }
    let mut text = String::new();
    for Row { id, forward, change, warnings } in rows {
        for warning in warnings {
            let _ = writeln!(text, "warning: {warning}");
        }
        // Writing to a string cannot fail.
        let _ = match id {
            Some(id) => writeln!(text, "{change}: port forward {id} is {forward}"),
            None => writeln!(text, "{change} port forward {forward}"),
        };
    }
    print::text(&text)
}
