//! What doctor says: the verdict in a sentence or two, then the findings; and the same for programs.

use std::fmt::Write as _;

use anyhow::Result;
use serde::Serialize;

use super::{
    facts::Facts,
    finding::{Finding, Passes, Severity, Takes},
};
use crate::report;

/// The whole of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// One or two sentences.
    pub verdict: String,
    /// Guests lack something.
    pub offline: bool,
    /// What guests lack, by the id of the finding that explains the most; none when nothing.
    pub cause: Option<&'static str>,
    /// The bridges that were looked at.
    pub bridges: Vec<String>,
    /// The uplink.
    pub uplink: Option<String>,
    /// What was found, the true cause first.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Sums findings up that are in order.
    #[must_use]
    pub fn new(facts: &Facts, findings: Vec<Finding>) -> Self {
        let bridges: Vec<String> = facts.subjects.iter().map(|subject| subject.bridge.name.clone()).collect();
        let uplink = facts.subjects.iter().find_map(|subject| Some(subject.uplink.as_ref()?.name.clone()));
        let mut report =
            Self { verdict: String::new(), offline: false, cause: None, bridges, uplink, findings };
        report.sum_up(facts);
        report
    }

    /// Adds what a probe has found, and sums up again.
    pub fn add(&mut self, facts: &Facts, findings: impl IntoIterator<Item = Finding>) {
        self.findings.extend(findings);
        self.findings.sort_by_key(|finding| (finding.severity, finding.rank, finding.takes));
        self.sum_up(facts);
    }

    fn sum_up(&mut self, facts: &Facts) {
        let problems = || self.findings.iter().filter(|finding| finding.severity == Severity::Problem);
        self.offline = problems().next().is_some();
        self.cause = problems().next().map(|finding| finding.id);
        let mut sentences = Vec::new();
        let mut told: Vec<&Finding> = Vec::new();
        // Problems of no bridge are everybody's; bridges with the same story are told together.
        let mut stories: Vec<(Vec<&str>, Vec<&Finding>)> = Vec::new();
        for bridge in &self.bridges {
            let of_it: Vec<&Finding> =
                problems().filter(|finding| finding.bridge.as_deref() == Some(bridge)).collect();
            let same = stories.iter_mut().find(|(_, story)| {
                story.len() == of_it.len()
                    && story
                        .iter()
                        .zip(&of_it)
                        .all(|(one, other)| one.id == other.id && one.cause == other.cause)
            });
            match same {
                Some((bridges, _)) => bridges.push(bridge),
                None => stories.push((vec![bridge], of_it)),
            }
        }
        let hosts: Vec<&Finding> = problems().filter(|finding| finding.bridge.is_none()).collect();
        for finding in &hosts {
            sentences.push(finding.sentence.clone());
        }
        for (bridges, story) in &stories {
            if !story.is_empty() {
                sentences.push(sentence(bridges, story));
                sentences.push(past(facts, bridges, story));
                told.extend(story);
            }
        }
        if sentences.is_empty() {
            sentences.push(calm(facts, &self.bridges, &self.findings));
        }
        sentences.join(" ").trim().clone_into(&mut self.verdict);
    }

    /// For programs: one row in the envelope of all listings.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn json(&self) -> Result<String> {
        report::json("doctor", std::slice::from_ref(self))
    }

    /// For people, `width` columns wide; with `fine`, also what is as it should be.
    #[must_use]
    pub fn text(&self, width: usize, fine: bool) -> String {
        let mut text = String::new();
        fill(&mut text, &self.verdict, "", "", width);
        let shown = self.findings.iter().filter(|finding| fine || finding.severity != Severity::Fine);
        for finding in shown {
            text.push('\n');
            let about = finding.bridge.as_ref().map_or(String::new(), |bridge| format!(" [{bridge}]"));
            let _ = writeln!(text, "{:<8} {}{about}", finding.severity.name(), finding.id);
            fill(&mut text, &finding.sentence, "  ", "  ", width);
            for line in &finding.evidence {
                fill(&mut text, line, "    | ", "    |   ", width);
            }
            if finding.vmnat != Passes::Nothing || !finding.vmnat_why.is_empty() {
                let passes = match finding.vmnat {
                    Passes::Yes => "vmnat gets past this",
                    Passes::No => "vmnat does not get past this",
                    Passes::Partly => "vmnat gets past a part of this",
                    Passes::Nothing => "vmnat",
                };
                fill(&mut text, &format!("{passes}: {}", finding.vmnat_why), "  ", "    ", width);
            }
            for (number, command) in finding.mend.iter().enumerate() {
                // A command is never broken: it is there to be copied.
                let _ = writeln!(text, "  {} {command}", if number == 0 { "mend:" } else { "     " });
            }
        }
        text
    }
}

/// Who lacks what, and why.
fn sentence(bridges: &[&str], story: &[&Finding]) -> String {
    let who = format!("Guests on {}", list(bridges));
    let takes = story.iter().map(|finding| finding.takes).min().unwrap_or(Takes::Nothing);
    let lack = match takes {
        Takes::World => "are offline",
        Takes::Addresses => "get no address by DHCP",
        Takes::Names => "reach the world, and resolve no names at their gateway",
        Takes::Siblings => "reach the world, and not each other",
        Takes::Callers => "cannot be called from the world",
        Takes::Nothing => {
            return story.iter().map(|finding| finding.sentence.as_str()).collect::<Vec<_>>().join(" ");
        }
    };
    let mut causes: Vec<&str> = Vec::new();
    for finding in story.iter().filter(|finding| finding.takes == takes && !finding.cause.is_empty()) {
        if !causes.contains(&finding.cause.as_str()) {
            causes.push(&finding.cause);
        }
    }
    let causes = match causes.as_slice() {
        // Only what was tried and failed, without a cause that shows.
        [] => return story.iter().map(|finding| finding.sentence.as_str()).collect::<Vec<_>>().join(" "),
        [one] => (*one).to_owned(),
        [head @ .., last] => format!("{}, and because {last}", head.join(", because ")),
    };
    format!("{who} {lack} because {causes}.")
}

/// Whether vmnat helps, and how.
fn past(facts: &Facts, bridges: &[&str], story: &[&Finding]) -> String {
    let served = bridges.iter().all(|bridge| facts.vmnat.serves(bridge));
    let is_world = |finding: &&&Finding| finding.takes == Takes::World;
    let blocked = story.iter().find(|finding| finding.vmnat == Passes::No);
    let world_blocked = story.iter().filter(is_world).find(|finding| finding.vmnat != Passes::Yes);
    let options: String = bridges.iter().fold(String::new(), |mut text, bridge| {
        let _ = write!(text, " --bridge {bridge}");
        text
    });
    let up = format!("`vmnat{} up{options}`", facts.vmnat.option);
    let also = blocked.map_or(String::new(), |finding| {
        finding.mend.first().map_or(String::new(), |command| {
            format!(" What it does not get past ({}) is mended by `{command}`.", finding.id)
        })
    });
    if served {
        return blocked.or(world_blocked).map_or(String::new(), |finding| {
            finding.mend.first().map_or(String::new(), |command| {
                format!("vmnat runs and does not get past this: run `{command}`.")
            })
        });
    }
    let partly = story.iter().find(|finding| finding.vmnat == Passes::Partly);
    match (story.iter().any(|finding| is_world(&finding)), world_blocked, blocked, partly) {
        (true, None, ..) => format!("vmnat gets past this: run {up}.{also}"),
        (true, Some(finding), ..) if finding.vmnat == Passes::Partly => {
            format!("vmnat gets past a part of this: run {up}.")
        }
        (_, _, Some(blocked), _) => blocked
            .mend
            .first()
            .map_or(String::new(), |command| format!("vmnat does not get past this: run `{command}`.")),
        (_, _, None, Some(partly)) => format!("vmnat helps: {}.", partly.vmnat_why),
        _ => format!("vmnat gets past this: run {up}."),
    }
}

/// Nothing is wrong, or vmnat gets past all of it.
fn calm(facts: &Facts, bridges: &[String], findings: &[Finding]) -> String {
    if bridges.is_empty() {
        let found = findings.iter().find(|finding| finding.id == "no-guests");
        return found.map_or_else(
            || "There are no guests to look after.".to_owned(),
            |finding| finding.sentence.clone(),
        );
    }
    let names: Vec<&str> = bridges.iter().map(String::as_str).collect();
    let passed: Vec<&Finding> = findings
        .iter()
        .filter(|finding| {
            finding.severity == Severity::Note
                && finding.takes != Takes::Nothing
                && finding.vmnat == Passes::Yes
        })
        .collect();
    if let Some(first) = passed.first() {
        let because = if first.cause.is_empty() { first.id } else { first.cause.as_str() };
        return format!(
            "Guests on {} are online through vmnat, which gets past what would cut them off: {because}.",
            list(&names)
        );
    }
    let unknown = findings.iter().any(|finding| finding.id == "forward-unknown" || finding.id == "not-seen");
    let doubt = if unknown { " Not all of it could be judged; `vmnat doctor --probe` tries it." } else { "" };
    let by = if bridges.iter().all(|bridge| facts.vmnat.serves(bridge)) { " vmnat serves them." } else { "" };
    format!("Nothing was found that keeps guests on {} offline.{by}{doubt}", list(&names))
}

fn list(words: &[&str]) -> String {
    match words {
        [] => "this host".to_owned(),
        [one] => (*one).to_owned(),
        [head @ .., last] => format!("{} and {last}", head.join(", ")),
    }
}

/// Breaks a text into lines of a width, at blanks.
fn fill(text: &mut String, words: &str, first: &str, others: &str, width: usize) {
    let mut line = first.to_owned();
    let mut is_empty = true;
    for word in words.split_whitespace() {
        let length = line.chars().count().saturating_add(word.chars().count()).saturating_add(1);
        if !is_empty && length > width {
            let _ = writeln!(text, "{line}");
            others.clone_into(&mut line);
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    let _ = writeln!(text, "{line}");
}
