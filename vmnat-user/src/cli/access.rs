//! `vmnat access`: what guests may reach, and who may call them.

use std::fmt::Write as _;

use anyhow::Result;
use clap::Subcommand;

use super::{print, report};
use crate::{
    access::{Direction, Rule, RuleSpec, Verb},
    change::Change,
    error::Error,
    paths::Instance,
    report::{self as listing, Column},
    state::{self, State},
};

const RULES: &str = "\
A rule is [BRIDGE=]NETWORK[:PORT[-PORT]][/PROTOCOL], for example 10.0.0.0/8, 10.1.2.3:443/tcp, any:25/tcp,
virbr0=192.0.2.0/24/icmp. Without a bridge it is for the guests of all; ports are those of who is called.

The longest prefix that has a matching rule wins, and of one prefix denial. What no rule matches is allowed, but for networks
of other guests: those are closed until --allow names one, or a part of it. The lists are asked when a conversation begins;
a change ends the live ones that it forbids, at once. What the host itself offers is for its INPUT rules, and guests of
one bridge are not parted.
";

/// Allow and deny what guests may reach, and who may call them
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = RULES)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Clone, Debug, Subcommand)]
enum Action {
    /// Add rules; live conversations that they forbid end
    #[command(after_help = RULES)]
    Add(Lists),
    /// Remove rules
    Rm(Lists),
    /// List the rules
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Rules, by what they say.
#[derive(Clone, Debug, Default, PartialEq, clap::Args)]
pub(super) struct Lists {
    /// What guests may reach, or "none" for no such rule any more; repeatable
    #[arg(long, value_name = "RULE", value_parser = wish, help_heading = HEADING)]
    allow: Vec<Wish>,
    /// What guests may not reach, or "none"; repeatable
    #[arg(long, value_name = "RULE", value_parser = wish, help_heading = HEADING)]
    deny: Vec<Wish>,
    /// Who may call guests, through a port forward or an open mapping, or "none"; repeatable
    #[arg(long, value_name = "RULE", value_parser = wish, help_heading = HEADING)]
    allow_from: Vec<Wish>,
    /// Who may not call guests, or "none"; repeatable
    #[arg(long, value_name = "RULE", value_parser = wish, help_heading = HEADING)]
    deny_from: Vec<Wish>,
}

const HEADING: &str = "Access lists ([BRIDGE=]NETWORK[:PORT[-PORT]][/PROTOCOL]; see `vmnat access --help`)";

/// A rule; none for "none".
type Wish = Option<RuleSpec>;

fn wish(text: &str) -> Result<Wish, String> {
    if text == "none" { Ok(None) } else { text.parse().map(Some) }
}

impl Lists {
    /// Each wish with what it says.
    fn wishes(&self) -> impl Iterator<Item = (Verb, Direction, &Wish)> {
        let Self { allow, deny, allow_from, deny_from } = self;
        let all = [
            (Verb::Allow, Direction::To, allow),
            (Verb::Deny, Direction::To, deny),
            (Verb::Allow, Direction::From, allow_from),
            (Verb::Deny, Direction::From, deny_from),
        ];
        all.into_iter()
            .flat_map(|(verb, direction, wishes)| wishes.iter().map(move |wish| (verb, direction, wish)))
    }

    /// Adds the rules to the state; "none" clears its list first.
    ///
    /// # Errors
    /// When a rule is for a bridge that the instance does not serve.
    pub(super) fn merge(&self, state: &mut State) -> Result<()> {
        for (verb, direction, _) in self.wishes().filter(|(_, _, wish)| wish.is_none()) {
            state.access.retain(|rule| rule.verb != verb || rule.direction != direction);
        }
        for rule in self.rules() {
            check_bridge(state, &rule)?;
            if !state.access.contains(&rule) {
                state.access.push(rule);
            }
        }
        Ok(())
    }

    fn rules(&self) -> impl Iterator<Item = Rule> {
        self.wishes()
            .filter_map(|(verb, direction, wish)| Some(Rule { verb, direction, spec: wish.clone()? }))
    }
}

fn check_bridge(state: &State, rule: &Rule) -> Result<(), Error> {
    match &rule.spec.bridge {
        Some(name) if !state.bridges.iter().any(|bridge| bridge.name == *name) => {
            let hint = format!("this instance serves {}", super::up::names(state));
            Err(Error::NoInterface { name: name.clone(), hint })
        }
        _ => Ok(()),
    }
}

/// Runs the command.
///
/// # Errors
/// When the instance does not run, or the change cannot be made.
pub async fn run(instance: &Instance, args: Args) -> Result<()> {
    match args.action {
        Action::Add(lists) => {
            refuse_empty(&lists)?;
            let mut change = Change::begin(instance).await?;
            lists.merge(&mut change.state)?;
            report(&change.apply().await?, "nothing to change")
        }
        Action::Rm(lists) => remove(instance, &lists).await,
        Action::List { json } => list(instance, json),
    }
}

fn refuse_empty(lists: &Lists) -> Result<()> {
    if lists.wishes().next().is_some() {
        return Ok(());
    }
    Err(Error::Usage("name a rule: --allow, --deny, --allow-from or --deny-from".to_owned()).into())
}

async fn remove(instance: &Instance, lists: &Lists) -> Result<()> {
    refuse_empty(lists)?;
    let mut change = Change::begin(instance).await?;
    for rule in lists.rules() {
        if !change.state.access.contains(&rule) {
            let (what, why) = (format!("cannot remove \"{rule}\""), "there is no such rule".to_owned());
            let hint = "`vmnat access list` shows them as they are written".to_owned();
            return Err(Error::Unfit { what, why, hint }.into());
        }
        change.state.access.retain(|known| *known != rule);
    }
    Lists { ..lists.only_none() }.merge(&mut change.state)?;
    report(&change.apply().await?, "nothing to change")
}

impl Lists {
    /// The wishes that clear a list.
    fn only_none(&self) -> Self {
        let none = |wishes: &[Wish]| wishes.iter().filter(|wish| wish.is_none()).cloned().collect();
        let Self { allow, deny, allow_from, deny_from } = self;
        Self {
            allow: none(allow),
            deny: none(deny),
            allow_from: none(allow_from),
            deny_from: none(deny_from),
        }
    }
}

fn list(instance: &Instance, json: bool) -> Result<()> {
    let state = state::load(instance)?;
    if json {
        print::line(&listing::json("rules", &state.access)?)
    } else {
        print::text(&text(&state.access))
    }
}

/// The rules as a table, and what applies beside them.
pub(super) fn text(rules: &[Rule]) -> String {
    const COLUMNS: [Column; 4] =
        [Column::Text("GUESTS OF"), Column::Text("MAY"), Column::Text("CALLS"), Column::Text("RULE")];
    if rules.is_empty() {
        return "no access lists: guests may reach all but the networks of other guests\n".to_owned();
    }
    let cells = |rule: &Rule| {
        let Rule { verb, direction, spec } = rule;
        let bridge = spec.bridge.clone().unwrap_or_else(|| "all".to_owned());
        let plain = RuleSpec { bridge: None, ..spec.clone() };
        [bridge, verb.name().to_owned(), direction.name().to_owned(), plain.to_string()]
    };
    let mut text = listing::table(&COLUMNS, rules.iter().map(cells));
    // Writing to a string cannot fail.
    let _ =
        writeln!(text, "the longest prefix wins, and of one prefix denial; what no rule matches is allowed");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Bridge, HookMode};

    fn lists(allow: &[&str], deny: &[&str]) -> Lists {
        let read = |texts: &[&str]| texts.iter().map(|text| wish(text).unwrap()).collect();
        Lists { allow: read(allow), deny: read(deny), ..Lists::default() }
    }

    #[test]
    fn rules_are_added_once_and_none_clears_its_own_list() {
        let mut state = State::new(HookMode::Tcx);
        state.bridges.push(Bridge::new("virbr0"));
        lists(&["10.1.2.3:443/tcp"], &["10.0.0.0/8"]).merge(&mut state).unwrap();
        lists(&[], &["10.0.0.0/8"]).merge(&mut state).unwrap();
        let written: Vec<String> = state.access.iter().map(Rule::to_string).collect();
        assert_eq!(written, ["allow to 10.1.2.3:443/tcp", "deny to 10.0.0.0/8"]);
        lists(&[], &["virbr0=192.0.2.0/24", "none"]).merge(&mut state).unwrap();
        let written: Vec<String> = state.access.iter().map(Rule::to_string).collect();
        assert_eq!(written, ["allow to 10.1.2.3:443/tcp", "deny to virbr0=192.0.2.0/24"]);
        let error = lists(&["virbr9=10.0.0.0/8"], &[]).merge(&mut state).unwrap_err();
        assert!(error.to_string().contains("virbr9"), "{error}");
        let json = serde_json::to_string(&state.access[0]).unwrap();
        assert_eq!(
            json,
            r#"{"verb":"allow","direction":"to","bridge":null,"network":"10.1.2.3/32","ports":[443,443],"protocol":"tcp"}"#
        );
    }
}
