//! The keys as sections of a manual page, vmnat.toml(5).

use std::fmt::Write as _;

use super::{
    key::{Key, Scope},
    keys::{BRIDGE_KEYS, DRAFT_KEYS, STATE_KEYS},
    write::{about, below, shown, tables},
};

/// Every key with its default and what it is for, in the language of man(7).
#[must_use]
pub fn manual() -> String {
    let mut page = String::new();
    section(&mut page, "Keys of the instance", "They stand before the first table.");
    explain(&mut page, STATE_KEYS, "");
    for table in tables() {
        section(&mut page, &format!("[{table}]"), about(table));
        explain(&mut page, STATE_KEYS, &format!("{table}."));
    }
    let about =
        "A bridge whose guests are served: a table each. The table alone serves the bridge's own subnets.";
    section(&mut page, "[bridge.NAME]", about);
    explain(&mut page, BRIDGE_KEYS, "");
    let about =
        "A port forward: a table each. Without options also in one list: `forward = [\"8080:web:80\"]`.";
    section(&mut page, "[[forward]]", about);
    explain(&mut page, DRAFT_KEYS, "");
    page
}

fn section(page: &mut String, name: &str, about: &str) {
    // Writing to a string cannot fail.
    let _ = write!(page, ".SS {}\n{}\n", roff(name), roff(about));
}

fn explain<T: Scope>(page: &mut String, keys: &'static [Key<T>], prefix: &str) {
    for (key, word) in below(keys, prefix) {
        let (value, is_default) = shown(key);
        let which = match (is_default, key.name) {
            (true, _) => "",
            (false, "spec") => " For example:",
            (false, _) => " None by default; for example:",
        };
        let shown = roff(&format!("{word} = {value}"));
        let about = roff(&key.about.replace('\n', " "));
        if which.is_empty() {
            let _ = write!(page, ".TP\n\\fB{shown}\\fR\n{about}.\n");
        } else {
            let _ = write!(page, ".TP\n\\fB{}\\fR\n{about}.{which} \\fB{shown}\\fR\n", roff(word));
        }
    }
}

/// A line as man(7) wants it: dashes and backslashes are escaped, none begins a request, and commands are bold.
fn roff(text: &str) -> String {
    let escaped = text.replace('\\', "\\e").replace('-', "\\-").replace('~', "\\(ti").replace('^', "\\(ha");
    let mut line = String::from(if escaped.starts_with(['.', '\'']) { "\\&" } else { "" });
    for (number, part) in escaped.split('`').enumerate() {
        match number {
            0 => {}
            odd if odd % 2 == 1 => line.push_str("\\fB"),
            _ => line.push_str("\\fR"),
        }
        line.push_str(part);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{SourceText, parse};

    #[test]
    fn every_key_has_its_paragraph() {
        let page = manual();
        let words = |line: &str| line.strip_prefix("\\fB").map(|line| line.replace("\\-", "-"));
        let said: Vec<String> = page.lines().filter_map(words).collect();
        let of = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
        let names = STATE_KEYS.iter().map(|key| of(key.name)).filter(|name| name != "bridge");
        let names = names.chain(BRIDGE_KEYS.iter().map(|key| of(key.name)));
        for name in names.chain(DRAFT_KEYS.iter().map(|key| of(key.name))) {
            let is_its = |line: &&String| line.split(['\\', ' ']).next().is_some_and(|word| word == name);
            assert!(said.iter().any(|line| is_its(&line)), "{name}: {said:?}");
        }
    }

    #[test]
    fn the_example_of_the_page_has_no_fault() {
        let page = include_str!("../../../packaging/man/vmnat.toml.5.in");
        let (_, rest) = page.split_once(".SH EXAMPLE\n.nf\n").unwrap();
        let (example, _) = rest.split_once(".fi\n").unwrap();
        let text = SourceText::new("vmnat.toml", example.replace("\\-", "-"));
        let config = parse(vec![text]).unwrap_or_else(|faults| panic!("{faults}"));
        assert_eq!((config.statements.len(), config.rules.len()), (5, 1));
    }

    #[test]
    fn nothing_is_taken_for_a_request() {
        assert_eq!(roff(".TH `vmnat down` \\n"), "\\&.TH \\fBvmnat down\\fR \\en");
        let known = |line: &str| line.starts_with(".SS ") || line == ".TP" || !line.starts_with(['.', '\'']);
        assert!(manual().lines().all(known), "{}", manual());
    }
}
