//! Reads the text of files: every fault of all of them, each with its place.

use std::collections::{HashMap, hash_map::Entry};

use strsim::damerau_levenshtein;
use toml::{
    Spanned,
    de::{DeArray, DeString, DeTable, DeValue},
};

use super::{
    fault::{Fault, Faults, Place, SourceText},
    key::{Key, Scalar, Scope, Statement},
    keys::Draft,
};
use crate::{
    facts::Facts,
    forwards::{Claims, External, ForwardSpec, Wish},
    state::{Bridge, State},
};

/// The table of bridges.
const BRIDGE: &str = "bridge";

/// The list of port forwards.
const FORWARD: &str = "forward";

/// What files say.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// All but port forwards, in the files' order.
    pub statements: Vec<(Statement, Place)>,
    /// Port forwards, in the files' order.
    pub rules: Vec<(Rule, Place)>,
    /// The files.
    pub files: Vec<SourceText>,
}

/// A port forward of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What is asked for.
    pub wish: Wish,
    /// Also where a socket of the host, or Docker, has the port.
    pub steal: bool,
}

/// What is said at most once: an option's name, or an element of a list.
type Slot = (Option<String>, String, Option<Scalar>);

/// Reads files that are merged in this order.
///
/// # Errors
/// Every fault of all files.
pub fn parse(files: Vec<SourceText>) -> Result<Config, Faults> {
    let mut reader = Reader::default();
    for (file, source) in files.iter().enumerate() {
        reader.file(file, &source.text);
    }
    reader.find_overlaps(&files);
    Faults::check(&files, reader.faults)?;
    Ok(Config { statements: reader.statements, rules: reader.rules, files })
}

#[derive(Default)]
struct Reader {
    file: usize,
    statements: Vec<(Statement, Place)>,
    rules: Vec<(Rule, Place)>,
    said: HashMap<Slot, Place>,
    faults: Vec<Fault>,
}

type Pair<'a, 'i> = (&'a Spanned<DeString<'i>>, &'a Spanned<DeValue<'i>>);

/// The entries of a table in the order of the file.
fn entries<'a, 'i>(table: &'a DeTable<'i>) -> Vec<Pair<'a, 'i>> {
    let mut entries: Vec<Pair<'a, 'i>> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

impl Reader {
    fn place<T>(&self, spanned: &Spanned<T>) -> Place {
        Place { file: self.file, span: spanned.span() }
    }

    fn file(&mut self, file: usize, text: &str) {
        self.file = file;
        let (table, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            // What is not TOML can mean anything: what it seems to say is not judged.
            for error in errors {
                let span = error.span().unwrap_or_default();
                self.faults
                    .push(Fault::at(Place { file, span }, format!("this is no TOML: {}", error.message())));
            }
            return;
        }
        for (key, value) in entries(table.get_ref()) {
            match key.get_ref().as_ref() {
                BRIDGE => self.bridges(value),
                FORWARD => self.rules(value),
                _ => self.option::<State>(None, "", key, value),
            }
        }
    }

    /// A key of the instance or of a bridge.
    fn option<T: Scope>(
        &mut self,
        bridge: Option<&str>,
        prefix: &str,
        key: &Spanned<DeString<'_>>,
        value: &Spanned<DeValue<'_>>,
    ) {
        let name = format!("{prefix}{}", key.get_ref());
        let inner = format!("{name}.");
        let is_table = prefix.is_empty() && T::KEYS.iter().any(|known| known.name.starts_with(&inner));
        if let Some(known) = T::find(&name) {
            for (value, place) in self.values(known, value) {
                self.state(
                    Statement { bridge: bridge.map(str::to_owned), key: name.clone(), value },
                    place,
                    known,
                );
            }
        } else if let (true, DeValue::Table(table)) = (is_table, value.get_ref()) {
            for (key, value) in entries(table) {
                self.option::<T>(bridge, &inner, key, value);
            }
        } else if is_table {
            let what = format!("{name} is {}, and a table is needed", kind(value.get_ref()));
            self.faults
                .push(Fault::at(self.place(value), what).hint(format!("write [{name}] and its keys below")));
        } else {
            let others = T::KEYS.iter().filter_map(|known| segment(known.name, prefix));
            let tables =
                if bridge.is_none() && prefix.is_empty() { vec![BRIDGE, FORWARD] } else { Vec::new() };
            let fault = unknown(self.place(key), &name, key.get_ref(), others.chain(tables));
            self.faults.push(fault);
        }
    }

    /// Notes what is said, unless it was said before.
    fn state<T: Scope>(&mut self, statement: Statement, place: Place, key: &Key<T>) {
        let element = key.is_list().then(|| statement.value.clone());
        let slot = (statement.bridge.clone(), statement.key.clone(), element);
        if let Some(before) = self.said.get(&slot) {
            let what = match (&slot.2, &statement.bridge) {
                (Some(element), _) => format!("{}: {element} is said twice", statement.key),
                (None, Some(bridge)) => format!("{} of bridge {bridge} is said twice", statement.key),
                (None, None) => format!("{} is said twice", statement.key),
            };
            let fault = Fault::at(place, what).and(before.clone(), "first said here");
            self.faults.push(fault.hint("one of the two must go"));
            return;
        }
        self.said.insert(slot, place.clone());
        self.statements.push((statement, place));
    }

    /// The values that a key is given, in their form; faults are noted.
    fn values<T: Scope>(&mut self, key: &Key<T>, value: &Spanned<DeValue<'_>>) -> Vec<(Scalar, Place)> {
        let one = |reader: &mut Self, value: &Spanned<DeValue<'_>>| {
            let read = scalar(value.get_ref()).and_then(|scalar| key.read(&scalar));
            let place = reader.place(value);
            read.map_err(|why| reader.faults.push(Fault::at(place.clone(), format!("{}: {why}", key.name))))
                .ok()
                .map(|value| (value, place))
        };
        match value.get_ref() {
            DeValue::Array(elements) if key.is_list() => {
                elements.iter().filter_map(|element| one(self, element)).collect()
            }
            DeValue::Array(_) => {
                let what = format!("{}: a list is given, and one value is needed", key.name);
                self.faults.push(Fault::at(self.place(value), what));
                Vec::new()
            }
            _ => one(self, value).into_iter().collect(),
        }
    }

    fn bridges(&mut self, value: &Spanned<DeValue<'_>>) {
        let hint = "write [bridge.virbr0], and what holds for that bridge below";
        let DeValue::Table(bridges) = value.get_ref() else {
            let what = format!("bridge is {}, and a table for each bridge is needed", kind(value.get_ref()));
            self.faults.push(Fault::at(self.place(value), what).hint(hint));
            return;
        };
        for (name, value) in entries(bridges) {
            let DeValue::Table(table) = value.get_ref() else {
                let what =
                    format!("bridge.{} is {}, and a table is needed", name.get_ref(), kind(value.get_ref()));
                self.faults.push(Fault::at(self.place(value), what).hint(hint));
                continue;
            };
            self.bridge(name, table);
        }
    }

    fn bridge(&mut self, name: &Spanned<DeString<'_>>, table: &DeTable<'_>) {
        let place = self.place(name);
        let known = State::find(BRIDGE).map(|key| key.read(&Scalar::Text(name.get_ref().to_string())));
        match known {
            Some(Ok(value)) => {
                // Two files may each say something about one bridge.
                let statement = Statement { bridge: None, key: BRIDGE.to_owned(), value };
                let slot = (None, BRIDGE.to_owned(), Some(statement.value.clone()));
                if let Entry::Vacant(vacant) = self.said.entry(slot) {
                    vacant.insert(place.clone());
                    self.statements.push((statement, place));
                }
            }
            Some(Err(why)) => self.faults.push(Fault::at(place, format!("{BRIDGE}: {why}"))),
            None => {}
        }
        for (key, value) in entries(table) {
            self.option::<Bridge>(Some(name.get_ref()), "", key, value);
        }
    }

    fn rules(&mut self, value: &Spanned<DeValue<'_>>) {
        let DeValue::Array(rules) = value.get_ref() else {
            let what = format!("forward is {}, and a list is needed", kind(value.get_ref()));
            let hint = "write [[forward]] and spec = \"8080:web:80\" below, or forward = [\"8080:web:80\"]";
            self.faults.push(Fault::at(self.place(value), what).hint(hint));
            return;
        };
        for rule in rules as &DeArray<'_> {
            let before = self.faults.len();
            if let Some((rule, place)) = self.rule(rule)
                && self.faults.len() == before
            {
                self.rules.push((rule, place));
            }
        }
    }

    fn rule(&mut self, value: &Spanned<DeValue<'_>>) -> Option<(Rule, Place)> {
        let place = self.place(value);
        let mut draft = Draft::default();
        let mut at = place.clone();
        match value.get_ref() {
            DeValue::String(text) => {
                let spec = text.parse::<ForwardSpec>();
                draft.spec =
                    spec.map_err(|why| self.faults.push(Fault::at(place.clone(), why.to_string()))).ok();
            }
            DeValue::Table(table) => {
                for (key, value) in entries(table) {
                    if key.get_ref() == "spec" {
                        at = self.place(value);
                    }
                    self.draft(&mut draft, key, value);
                }
                if !table.contains_key("spec") {
                    let fault = Fault::at(place, "this port forward does not say what leads where");
                    self.faults.push(fault.hint("add spec = \"8080:web:80\""));
                }
            }
            other => {
                let what = format!("a port forward is {}, and text or a table is needed", kind(other));
                self.faults.push(Fault::at(place, what));
            }
        }
        let Draft { spec, from, uplink, comment, expires, steal } = draft;
        let spec = spec?;
        if let (Some(host), Some(uplink)) = (spec.host, &uplink) {
            let what = format!("spec names the address {host} and uplink the interface {uplink}");
            self.faults.push(Fault::at(at.clone(), what).hint("leave out one of them"));
        }
        let wish = Wish { from, uplink, comment, expires, ..Wish::plain(spec) };
        Some((Rule { wish, steal }, at))
    }

    fn draft(&mut self, draft: &mut Draft, key: &Spanned<DeString<'_>>, value: &Spanned<DeValue<'_>>) {
        let name = key.get_ref().as_ref();
        let Some(known) = Draft::find(name) else {
            let others = Draft::KEYS.iter().map(|known| known.name);
            self.faults.push(unknown(self.place(key), &format!("{FORWARD}.{name}"), name, others));
            return;
        };
        let mut said = Vec::new();
        for (value, place) in self.values(known, value) {
            if said.contains(&value) {
                self.faults.push(Fault::at(place, format!("{name}: {value} is said twice")));
            } else if let Err(why) = known.put(draft, &value) {
                self.faults.push(Fault::at(place, format!("{name}: {why}")));
            }
            said.push(value);
        }
    }

    /// Finds port forwards that want one port: no picture of the host is needed to see that of two lines.
    fn find_overlaps(&mut self, files: &[SourceText]) {
        let facts = Facts::default();
        let external = External::new(&facts, &[]);
        let mut claims: Claims<usize> = Claims::default();
        for (number, (rule, place)) in self.rules.iter().enumerate() {
            match claims
                .find(&rule.wish, &external)
                .and_then(|claimed| Some((claimed, self.rules.get(claimed.owner)?)))
            {
                Some((claimed, (other, first))) => {
                    let what = format!("port {}/{} has two port forwards", claimed.port, claimed.protocol);
                    let at = line_name(files, first);
                    let fault = Fault::at(place.clone(), what)
                        .and(first.clone(), format!("{} has it", other.wish.spec));
                    self.faults.push(fault.hint(format!("one of the two must go, this one or {at}")));
                }
                None => claims.claim(&rule.wish, &external, number),
            }
        }
    }
}

impl Config {
    /// The file and line of a place.
    #[must_use]
    pub fn line(&self, place: &Place) -> String {
        line_name(&self.files, place)
    }
}

fn line_name(files: &[SourceText], place: &Place) -> String {
    let Some(file) = files.get(place.file) else { return String::new() };
    format!("{}:{}", file.name, file.line(place.span.start))
}

/// The first word of a name below a prefix.
fn segment<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    name.strip_prefix(prefix).and_then(|rest| rest.split('.').next())
}

fn unknown<'a>(place: Place, name: &str, written: &str, known: impl Iterator<Item = &'a str>) -> Fault {
    let mut known: Vec<&str> = known.collect();
    known.dedup();
    let fault = Fault::at(place, format!("there is no key {name:?} here"));
    let near = known.iter().map(|known| (damerau_levenshtein(written, known), known));
    // A slip or two, as many as the name is long.
    let near = near.filter(|(slips, known)| slips.saturating_mul(3) <= known.len()).min();
    if let Some((_, near)) = near {
        return fault.hint(format!("did you mean {near:?}?"));
    }
    let tables = [
        (Bridge::find(written).is_some(), "it holds for a bridge: write it below [bridge.NAME]"),
        (State::find(written).is_some(), "it holds for the instance: write it before the first table"),
        (State::find(&format!("timeout.{written}")).is_some(), "it is a timeout: write it below [timeout]"),
        (Draft::find(written).is_some(), "it belongs to a port forward: write it below [[forward]]"),
    ];
    match tables.into_iter().find(|(is_there, _)| *is_there) {
        Some((_, hint)) => fault.hint(hint),
        None => fault.hint(format!("the keys are {}", known.join(", "))),
    }
}

/// A value of TOML as a value of an option.
fn scalar(value: &DeValue<'_>) -> Result<Scalar, String> {
    match value {
        DeValue::String(text) => Ok(Scalar::Text(text.to_string())),
        DeValue::Boolean(flag) => Ok(Scalar::Flag(*flag)),
        DeValue::Datetime(moment) => Ok(Scalar::Text(moment.to_string())),
        DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix())
            .map(Scalar::Number)
            .map_err(|_| format!("{number} is no number from 0 to {}", u64::MAX)),
        DeValue::Float(_) | DeValue::Array(_) | DeValue::Table(_) => {
            Err(format!("{} is out of place", kind(value)))
        }
    }
}

const fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a broken number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

#[cfg(test)]
mod tests;
