//! `vmnat dnat rm`: new conversations stop at once, live ones go on unless they are ended too.

use std::collections::BTreeSet;

use anyhow::Result;
use serde::Serialize;
use vmnat_common::forward::Forward;

use super::meant;
use crate::{
    change::Change,
    cli::{fail_in_part, print},
    error::Error,
    forwards::{PortForward, end_flows},
    led_sockets,
    paths::Instance,
    report,
    tables::Tables,
};

const EXAMPLES: &str = "\
Examples:
  vmnat dnat rm 3                    by its number in `vmnat dnat list`
  vmnat dnat rm 8080:web:80          as it was added
  vmnat dnat rm 3 4 5 --kill         several, with their live connections
  vmnat dnat rm 3 --dry-run          only say what would be removed
";

/// Remove port forwards; connections through them go on unless --kill is given
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Their numbers in the list, or the forwards as they were added
    #[arg(value_name = "ID|FORWARD", required = true)]
    which: Vec<String>,
    /// Also end the live connections through them
    #[arg(long)]
    kill: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    id: u32,
    forward: String,
    change: &'static str,
}

/// Runs the command.
///
/// # Errors
/// When one of them is not there; then none is removed.
pub(super) async fn run(instance: &Instance, args: &Args) -> Result<()> {
    let Args { which, kill, dry_run, json } = args;
    let mut change = Change::begin(instance).await?;
    let before = change.state.forwards.clone();
    let ids = find(&before, which)?;
    let (gone, kept): (Vec<PortForward>, Vec<PortForward>) =
        before.iter().cloned().partition(|forward| ids.contains(&forward.id));
    if let Some((forward, file)) = gone.iter().find_map(|forward| Some((forward, forward.wish.file.clone()?)))
    {
        let what = format!("port forward {} ({})", forward.id, forward.wish.spec);
        return Err(Error::Foreign { what, origin: file, option: instance.option() }.into());
    }
    if *dry_run {
        return tell(&gone, "would remove", *json);
    }
    let tables = change.tables()?;
    let mut entries = tables.forwards()?;
    entries.retain(|entry| ids.contains(&entry.id));
    change.state.forwards = kept;
    let done = change.apply_forwards(before).await?;
    let ended = if *kill { Some(end_all(&tables, &entries)?) } else { None };
    if !json {
        for line in &done.changes {
            print::line(line)?;
        }
    }
    tell(&gone, "removed", *json)?;
    if let (Some(ended), false) = (ended, json) {
        print::line(&format!("ended {} of their flows", report::number(u64::try_from(ended)?)))?;
    }
    fail_in_part(&done)
}

/// Ends what is live through these forwards: flows, and conversations of the host's own sockets.
fn end_all(tables: &Tables, entries: &[Forward]) -> Result<usize> {
    Ok(end_flows(tables, entries)?.saturating_add(led_sockets::end(tables, entries)?))
}

/// The numbers of all that are meant.
fn find(forwards: &[PortForward], which: &[String]) -> Result<BTreeSet<u32>, Error> {
    let mut ids = BTreeSet::new();
    for which in which {
        match meant(forwards, which)?[..] {
            [] => return Err(Error::NoForward { which: which.clone() }),
            [only] => ids.extend([only.id]),
            ref several => {
                let numbers: Vec<String> = several.iter().map(|forward| forward.id.to_string()).collect();
                return Err(Error::Usage(format!(
                    "\"{which}\" means several port forwards: name one by its number, {}",
                    numbers.join(" or ")
                )));
            }
        }
    }
    Ok(ids)
}

fn tell(gone: &[PortForward], change: &'static str, json: bool) -> Result<()> {
    let row = |forward: &PortForward| Row { id: forward.id, forward: forward.wish.spec.to_string(), change };
    let rows: Vec<Row> = gone.iter().map(row).collect();
    if json {
        return print::line(&report::json("dnat_rm", &rows)?);
    }
    let line = |Row { id, forward, change }: &Row| format!("{change} port forward {id} ({forward})\n");
    print::text(&rows.iter().map(line).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forwards::Wish;

    #[test]
    fn what_is_not_there_or_ambiguous_is_refused() {
        let forward = |id, spec: &str| PortForward { id, wish: Wish::plain(spec.parse().unwrap()) };
        let forwards = [forward(1, "80:web:80"), forward(2, "81:web:80"), forward(3, "80:web:80")];
        let find = |which: &[&str]| {
            find(&forwards, &which.iter().map(|which| (*which).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(find(&["2", "1", "81:web:80"]).unwrap(), BTreeSet::from([1, 2]));
        assert!(find(&["7"]).unwrap_err().to_string().contains("no port forward \"7\""));
        assert!(find(&["80:web:80"]).unwrap_err().to_string().contains("1 or 3"));
    }
}
