//! vmnat itself: does it serve the bridge, is it whole, who runs before it, which ports it serves the slower way.

use super::{
    super::{
        facts::{Facts, Subject},
        finding::{Finding, Passes, Severity, Takes},
    },
    rank,
};

/// Judges what vmnat does for a bridge.
pub(super) fn judge(facts: &Facts, subject: &Subject, findings: &mut Vec<Finding>) {
    let (vmnat, bridge) = (&facts.vmnat, &subject.bridge.name);
    let up = format!("vmnat{} up --bridge {bridge}", vmnat.option);
    let is_asked = vmnat.bridges().any(|name| name == bridge);
    if vmnat.serves(bridge) {
        findings.push(Finding::fine("vmnat-serves", format!("vmnat serves {bridge}.")));
    } else if is_asked && vmnat.is_pinned {
        findings.push(
            Finding::problem(
                "hooks-missing",
                rank::OWN,
                Takes::Nothing,
                format!("vmnat was asked to serve {bridge}, and one of its programs is not attached."),
            )
            .shown_by([format!("attached at: {}", vmnat.attached.join(", "))])
            .past(Passes::No, "it needs its programs at the bridge and at an uplink")
            .mended_by([up]),
        );
    } else if is_asked {
        findings.push(
            Finding::note("hidden-pins", "vmnat has a state, and its maps below /sys/fs/bpf cannot be seen from here: `ip netns exec` hides them.")
                .mended_by(["nsenter --net=/run/netns/NAME vmnat doctor".to_owned(), up]),
        );
    } else {
        findings.push(
            Finding::fine("vmnat-not-running", format!("vmnat does not serve {bridge}.")).mended_by([up]),
        );
    }
    if let Some(ahead) = vmnat.ahead.get(bridge) {
        findings.push(before(bridge, ahead));
    }
    ports(facts, subject, findings);
}

fn before(interface: &str, ahead: &str) -> Finding {
    Finding::note(
        "ahead-on-hook",
        format!("At {interface}, {ahead} runs before vmnat and may keep packets from it."),
    )
    .past(Passes::Partly, "what that program passes on reaches vmnat")
    .mended_by([format!("bpftool net show dev {interface}")])
}

/// Ports with something that their hook would step past.
fn ports(facts: &Facts, subject: &Subject, findings: &mut Vec<Finding>) {
    for port in facts.net.ports_of(subject.bridge.index) {
        let slow = "what the port has stays in force";
        if let Some(what) = facts.vmnat.obstructed.get(&port.name) {
            let sentence = format!("The port {} is served behind its bridge: {what}.", port.name);
            findings.push(Finding::note("port-obstructed", sentence).past(Passes::Yes, slow));
        }
        if port.isolated {
            findings.push(
                Finding::note(
                    "isolated-port",
                    format!("The port {} is isolated: other isolated ports do not hear it.", port.name),
                )
                .past(Passes::Yes, slow)
                .mended_by([format!("bridge link set dev {} isolated off", port.name)]),
            );
        }
    }
    if subject.bridge.vlan_filtering {
        findings.push(
            Finding::note("vlan-filtering", format!("{} filters VLANs.", subject.bridge.name))
                .past(Passes::Yes, "all of its ports are served behind the bridge"),
        );
    }
}

/// Judges the instance.
pub(super) fn judge_host(facts: &Facts, findings: &mut Vec<Finding>) {
    let vmnat = &facts.vmnat;
    if let Some(why) = &vmnat.unreadable {
        findings.push(Finding::note("not-seen", format!("vmnat's state cannot be read: {why}.")));
    }
    if vmnat.state.is_some() && vmnat.agent.is_none() {
        let mut finding = Finding::note(
            "agent-dead",
            "vmnat's agent does not run: flows do not expire, and new guests wait for their hook.",
        )
        .past(Passes::No, "flows go on, but nothing is renewed")
        .mended_by([format!("vmnat{} up", vmnat.option)]);
        finding.severity = Severity::Problem;
        finding.rank = rank::OWN;
        findings.push(finding);
    }
    for place in &vmnat.stale {
        findings.push(
            Finding::note("stale-pins", format!("{place} holds pins of vmnat, and no instance of that name runs: its programs may still be attached."))
                .shown_by([place.clone()])
                .mended_by([format!("vmnat{} down", vmnat.option)]),
        );
    }
    for (interface, ahead) in &vmnat.ahead {
        if !facts.subjects.iter().any(|subject| subject.bridge.name == *interface) {
            findings.push(before(interface, ahead));
        }
    }
}
