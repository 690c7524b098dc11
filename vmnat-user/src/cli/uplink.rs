//! `vmnat uplink`: the interfaces by which guests reach the world.

use anyhow::Result;
use clap::Subcommand;
use serde::Serialize;

use super::{print, report, up};
use crate::{
    change::Change,
    error::Error,
    facts::Facts,
    paths::Instance,
    plan, reconcile,
    report::{self as listing, Column},
    state::{self, State},
};

/// Add, remove or list uplinks
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Clone, Debug, Subcommand)]
enum Action {
    /// Let guests leave by a further interface, where the host's routes lead there
    Add {
        /// The interface
        uplink: String,
    },
    /// Let guests leave by an interface no more; flows over it end
    Rm {
        /// The interface
        uplink: String,
    },
    /// List uplinks
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) uplink: String,
    pub(super) address: Option<String>,
    pub(super) mtu: u32,
    pub(super) up: bool,
    pub(super) present: bool,
    pub(super) follows_default_route: bool,
}

/// Runs the command.
///
/// # Errors
/// When the change cannot be made.
pub async fn run(instance: &Instance, args: Args) -> Result<()> {
    match args.action {
        Action::Add { uplink } => {
            let mut change = Change::begin(instance).await?;
            up::check_uplink(&change.facts, &uplink)?;
            add(&mut change.state, &change.facts, uplink);
            reconcile::admit(instance, &change.state, &change.facts)?;
            report(&change.apply().await?, "nothing to change")
        }
        Action::Rm { uplink } => remove(instance, &uplink).await,
        Action::List { json } => {
            let state = state::load(instance)?;
            let facts = crate::facts::gather(&crate::change::connect()?).await?;
            let rows = rows(&state, &facts);
            if json { print::line(&listing::json("uplinks", &rows)?) } else { print::text(&text(&rows)) }
        }
    }
}

/// Adds an uplink by name. One that was followed as the default route's until now stays, by its name.
pub(super) fn add(state: &mut State, facts: &Facts, name: String) {
    if state.uplinks.is_empty() {
        state.uplinks.extend(followed(state, facts));
    }
    if !state.uplinks.contains(&name) {
        state.uplinks.push(name);
    }
}

async fn remove(instance: &Instance, name: &str) -> Result<()> {
    let mut change = Change::begin(instance).await?;
    if !change.state.uplinks.iter().any(|uplink| uplink == name) {
        let hint = if change.state.uplinks.is_empty() {
            "this instance follows the default route".to_owned()
        } else {
            format!("the uplinks are {}", change.state.uplinks.join(", "))
        };
        return Err(Error::NoInterface { name: name.to_owned(), hint }.into());
    }
    if change.state.uplinks.len() == 1 {
        let what = "the last uplink cannot be removed: add another first, or run `vmnat down`";
        return Err(Error::Usage(what.to_owned()).into());
    }
    change.state.uplinks.retain(|uplink| uplink != name);
    report(&change.apply().await?, "nothing to change")
}

/// The interface that is followed, or was last.
fn followed(state: &State, facts: &Facts) -> Option<String> {
    let last = Some(&state.followed).filter(|name| !name.is_empty());
    let (link, _) = plan::followed(state, facts);
    link.map(|link| &link.name).or(last).cloned()
}

/// A row for each uplink.
pub(super) fn rows(state: &State, facts: &Facts) -> Vec<Row> {
    let follows = state.uplinks.is_empty();
    let names = if follows { followed(state, facts).into_iter().collect() } else { state.uplinks.clone() };
    let row = |name: String| {
        let link = facts.link(&name);
        let address = link.and_then(|link| plan::external_address(state, facts, link));
        Row {
            address: address.map(|address| address.to_string()),
            mtu: link.map_or(0, |link| link.mtu),
            up: link.is_some_and(|link| link.up),
            present: link.is_some(),
            follows_default_route: follows,
            uplink: name,
        }
    };
    names.into_iter().map(row).collect()
}

pub(super) fn text(rows: &[Row]) -> String {
    const COLUMNS: [Column; 4] =
        [Column::Text("UPLINK"), Column::Text("ADDRESS"), Column::Number("MTU"), Column::Text("STATE")];
    if rows.is_empty() {
        return "no uplink: there is no default route\n".to_owned();
    }
    listing::table(&COLUMNS, rows.iter().map(cells))
}

fn cells(row: &Row) -> [String; 4] {
    let Row { uplink, address, mtu, up, present, follows_default_route } = row;
    let state = match (present, up) {
        (false, _) => "not there",
        (true, false) => "down",
        (true, true) => "up",
    };
    let follows = if *follows_default_route { ", follows the default route" } else { "" };
    let address = address.clone().unwrap_or_else(|| "none".to_owned());
    [uplink.clone(), address, mtu.to_string(), format!("{state}{follows}")]
}
