//! The rules: each looks at the facts and says what it found. None does anything else, so each is tested on recorded
//! facts.
//!
//! **What comes first.** A cause explains what it takes away, so causes are ranked by where they cut the packet's road, as
//! the evaluation of rules shows it, and never by the order in which they were looked for:
//! wires (nothing passes at all), then a firewall that denies, then forwarding and translation that nobody set up, then
//! DHCP, then names, then siblings and callers.

mod firewall;
mod host;
mod kernel;
mod nat;
mod offers;
mod own;
mod owner;
mod services;
mod uplink;
mod wires;

use super::{
    facts::{Facts, Subject},
    finding::{Finding, Passes, Severity},
    report::Report,
};

/// Ranks: the lowest explains the most.
mod rank {
    pub(super) const NO_BRIDGE: u8 = 5;
    pub(super) const TAP: u8 = 8;
    pub(super) const UPLINK: u8 = 10;
    pub(super) const FIREWALL: u8 = 20;
    pub(super) const REPLY: u8 = 25;
    pub(super) const FORWARDING: u8 = 30;
    pub(super) const OVERLAP: u8 = 32;
    pub(super) const PATH_FILTER: u8 = 34;
    pub(super) const MASQUERADE: u8 = 36;
    pub(super) const DHCP: u8 = 40;
    pub(super) const NAMES: u8 = 50;
    pub(super) const SIBLINGS: u8 = 60;
    pub(super) const OWN: u8 = 70;
    pub(super) const MTU: u8 = 80;
}

/// Judges the facts.
#[must_use]
pub fn report(facts: &Facts) -> Report {
    let mut findings = Vec::new();
    for subject in &facts.subjects {
        let mut of_bridge = Vec::new();
        wires::judge(facts, subject, &mut of_bridge);
        uplink::judge(facts, subject, &mut of_bridge);
        firewall::judge(facts, subject, &mut of_bridge);
        host::judge(facts, subject, &mut of_bridge);
        kernel::judge(facts, subject, &mut of_bridge);
        nat::judge(facts, subject, &mut of_bridge);
        services::judge(facts, subject, &mut of_bridge);
        own::judge(facts, subject, &mut of_bridge);
        findings.extend(of_bridge.into_iter().map(|finding| finding.about(&subject.bridge.name)));
    }
    wires::judge_host(facts, &mut findings);
    kernel::judge_host(facts, &mut findings);
    services::judge_host(facts, &mut findings);
    own::judge_host(facts, &mut findings);
    settle(facts, &mut findings);
    Report::new(facts, findings)
}

/// What vmnat gets past takes nothing from guests that it serves; a problem that it would get past still is one.
fn settle(facts: &Facts, findings: &mut [Finding]) {
    for finding in findings.iter_mut() {
        let is_served = finding.bridge.as_deref().is_some_and(|bridge| facts.vmnat.serves(bridge));
        if is_served && finding.severity == Severity::Problem && finding.vmnat == Passes::Yes {
            finding.severity = Severity::Note;
        }
    }
    findings.sort_by_key(|finding| (finding.severity, finding.rank, finding.takes));
}

/// True where guests have addresses, as the neighbour table shows.
fn has_guests(facts: &Facts, subject: &Subject) -> bool {
    facts.net.neighbours.iter().any(|neighbour| neighbour.index == subject.bridge.index && neighbour.usable)
}

/// Names of a list, for sentences: `a`, `a and b`, `a, b and c`.
fn listed(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [head @ .., last] => format!("{} and {last}", head.join(", ")),
    }
}
