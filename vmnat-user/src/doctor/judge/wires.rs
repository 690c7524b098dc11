//! The wires: bridges, their ports, taps that belong nowhere, MTUs, networks that overlap.

use super::{
    super::{
        facts::{self, Facts, Subject},
        finding::{Finding, Passes, Severity, Takes},
    },
    listed, rank,
};
use crate::facts::{LinkFact, PORT_FORWARDING};

/// Judges the wires of a bridge.
pub(super) fn judge(facts: &Facts, subject: &Subject, findings: &mut Vec<Finding>) {
    let (bridge, name) = (&subject.bridge, &subject.bridge.name);
    let nothing = "it serves bridges that are up and have an address";
    if !bridge.up {
        let cause = format!("the bridge {name} is down");
        findings.push(
            Finding::problem(
                "bridge-down",
                rank::NO_BRIDGE,
                Takes::World,
                format!("Guests reach nobody, because {cause}."),
            )
            .because(cause)
            .past(Passes::No, nothing)
            .mended_by([format!("ip link set {name} up")]),
        );
    }
    if subject.networks.is_empty() {
        let cause = format!("the bridge {name} has no IPv4 address, so they have no gateway");
        findings.push(
            Finding::problem(
                "bridge-without-address",
                rank::NO_BRIDGE,
                Takes::World,
                format!("Guests get nowhere, because {cause}."),
            )
            .because(cause)
            .past(Passes::No, nothing)
            .mended_by([format!("ip address add ADDRESS/24 dev {name}")]),
        );
    }
    let ports: Vec<&LinkFact> = facts.net.ports_of(bridge.index).collect();
    if ports.is_empty() {
        findings.push(
            Finding::note("no-ports", format!("{name} has no port: no guest is connected to it."))
                .shown_by([format!("bridge link show: nothing of {name}")]),
        );
    }
    for port in &ports {
        port_of(facts, subject, port, findings);
    }
    mtu(subject, &ports, findings);
    overlap(facts, subject, findings);
}

fn port_of(facts: &Facts, subject: &Subject, port: &LinkFact, findings: &mut Vec<Finding>) {
    if !port.up {
        findings.push(
            Finding::note(
                "carrier-down",
                format!("The port {} of {} is down.", port.name, subject.bridge.name),
            )
            .mended_by([format!("ip link set {} up", port.name)]),
        );
    } else if facts.more_of(port.index).is_dead {
        findings.push(Finding::note(
            "carrier-down",
            format!(
                "The port {} of {} has no carrier: nobody is at its other end.",
                port.name, subject.bridge.name
            ),
        ));
    } else if port.port_state.is_some_and(|state| state != PORT_FORWARDING) {
        let delay = facts.more_of(subject.bridge.index).stp_delay;
        let id = if delay.is_some_and(|delay| delay > 0) { "stp-delay" } else { "port-not-forwarding" };
        let wait = delay.map_or(String::new(), |delay| {
            let seconds = delay.saturating_mul(2).checked_div(100).unwrap_or(0);
            format!(" The spanning tree keeps a new port silent for {seconds} seconds.")
        });
        let mut finding = Finding::note(id, format!("The port {} does not forward yet.{wait}", port.name))
            .past(Passes::No, "the bridge's state of a port holds for its hook as well")
            .mended_by([format!(
                "ip link set {} type bridge stp_state 0 forward_delay 0",
                subject.bridge.name
            )]);
        finding.evidence.push(format!("{}: state {}", port.name, port.port_state.unwrap_or(0)));
        findings.push(finding);
    }
}

fn mtu(subject: &Subject, ports: &[&LinkFact], findings: &mut Vec<Finding>) {
    let bridge = &subject.bridge;
    let larger: Vec<&str> =
        ports.iter().filter(|port| port.mtu > bridge.mtu).map(|port| port.name.as_str()).collect();
    if !larger.is_empty() {
        let mut finding = Finding::note(
            "mtu",
            format!(
                "The MTU of {} is larger than that of {} ({}): large frames between guests are lost.",
                listed(&larger),
                bridge.name,
                bridge.mtu
            ),
        )
        .past(Passes::No, "a bridge drops what is larger than its port")
        .mended_by([format!(
            "ip link set {} mtu {}",
            bridge.name,
            ports.iter().map(|port| port.mtu).max().unwrap_or(1500)
        )]);
        finding.rank = rank::MTU;
        findings.push(finding);
    }
    if let Some(uplink) = subject.uplink.as_ref().filter(|uplink| uplink.mtu < bridge.mtu) {
        findings.push(
            Finding::note("mtu", format!("The MTU of the uplink {} ({}) is smaller than that of {} ({}): downloads hang where somebody drops ICMP.", uplink.name, uplink.mtu, bridge.name, bridge.mtu))
                .shown_by([format!("{}: mtu {}", uplink.name, uplink.mtu), format!("{}: mtu {}", bridge.name, bridge.mtu)])
                .past(Passes::Yes, "it lets TCP announce what fits, and passes ICMP errors on")
                .mended_by([format!("ip link set {} mtu {}", bridge.name, uplink.mtu)]),
        );
    }
}

/// Networks that overlap with the guests'.
fn overlap(facts: &Facts, subject: &Subject, findings: &mut Vec<Finding>) {
    let own = &subject.bridge;
    let mut seen = std::collections::BTreeSet::new();
    for (network, _) in &subject.networks {
        for other in facts.net.addresses.iter().filter(|other| other.index != own.index && other.prefix < 32)
        {
            let theirs = other.network();
            if theirs.contains(network) || network.contains(&theirs) {
                let name = facts.net.name_of(other.index);
                if seen.insert(name.clone()) {
                    let cause = format!(
                        "{name} has the network {theirs} too, so answers to {network} may leave by it"
                    );
                    findings.push(
                        Finding::problem(
                            "overlap",
                            rank::OVERLAP,
                            Takes::World,
                            format!("Guests on {} may get no answers, because {cause}.", own.name),
                        )
                        .because(cause)
                        .shown_by([format!("{}: {network}", own.name), format!("{name}: {theirs}")])
                        .past(Passes::No, "two networks with the same addresses cannot be told apart by them")
                        .mended_by([
                            "# give one of the two another network".to_owned(),
                            format!("ip address show dev {name}"),
                        ]),
                    );
                }
            }
        }
        let route = facts.net.routes.iter().find(|route| {
            route.destination.prefix_len() > 0
                && route.oif.is_some_and(|oif| oif != own.index)
                && route.gateway.is_some()
                && network.contains(&route.destination)
        });
        if let Some(route) = route {
            let name = facts.net.name_of(route.oif.unwrap_or(0));
            let cause = format!("the route to {} leaves by {name}, not by {}", route.destination, own.name);
            findings.push(
                Finding::problem(
                    "overlap",
                    rank::OVERLAP,
                    Takes::World,
                    format!("Some guests on {} get no answers, because {cause}.", own.name),
                )
                .because(cause)
                .shown_by([format!("route {} dev {name}", route.destination)])
                .past(Passes::No, "it finds guests by the host's routes")
                .mended_by([format!("ip route del {} dev {name}", route.destination)]),
            );
        }
    }
}

/// Judges what belongs to no bridge.
pub(super) fn judge_host(facts: &Facts, findings: &mut Vec<Finding>) {
    if facts.subjects.is_empty() {
        let bridges: Vec<&str> =
            facts.net.links.iter().filter(|link| link.is_bridge).map(|link| link.name.as_str()).collect();
        let what = if bridges.is_empty() {
            "there are no bridges".to_owned()
        } else {
            format!("the bridges are {}", listed(&bridges))
        };
        let mut finding = Finding::problem(
            "no-guests",
            rank::NO_BRIDGE,
            Takes::Nothing,
            format!("No bridge looks as if guests were behind it: {what}. Name one with `--bridge`."),
        );
        finding.severity = Severity::Note;
        findings.push(finding);
    }
    let lost: Vec<&LinkFact> = facts.net.links.iter().filter(|link| is_lost(facts, link)).collect();
    let names: Vec<&str> = lost.iter().map(|link| link.name.as_str()).collect();
    if !lost.is_empty() {
        let inactive =
            facts.files.libvirt.iter().find(|network| !network.is_active && network.bridge.is_some());
        let bridge = match (facts.subjects.first(), inactive) {
            (Some(subject), _) => subject.bridge.name.clone(),
            (None, Some(network)) => network.bridge.clone().unwrap_or_default(),
            (None, None) => "BRIDGE".to_owned(),
        };
        let start = inactive
            .filter(|_| facts.subjects.is_empty())
            .map(|network| format!("virsh net-start {}", network.name));
        let (belongs, are) = if lost.len() == 1 { ("belongs", "it is") } else { ("belong", "they are") };
        let cause = format!("{} {belongs} to no bridge", listed(&names));
        let finding =
            Finding::problem(
                "tap-without-master",
                rank::TAP,
                Takes::World,
                format!("The guests at {} are cut off, because {are} in no bridge any more.", listed(&names)),
            )
            .because(cause)
            .shown_by(lost.iter().map(|link| {
                format!("{}: {} without a master", link.name, link.kind.as_deref().unwrap_or("tap"))
            }))
            .past(Passes::No, "it serves ports of bridges")
            .mended_by(start)
            .mended_by(lost.iter().map(|link| format!("ip link set {} master {bridge} up", link.name)));
        findings.push(finding);
    }
}

/// A tap that is up and nobody's: no master, no address, no route; a veth only where it bears a guest's name.
fn is_lost(facts: &Facts, link: &LinkFact) -> bool {
    let is_named = |prefix: &str| {
        link.name
            .strip_prefix(prefix)
            .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let is_named = is_named("vnet") || is_named("tap");
    let is_tap = link.kind.as_deref() == Some("tun") && facts::is_guests(facts, link);
    let is_veth = link.kind.as_deref() == Some("veth") && facts::is_guests(facts, link);
    let is_used = facts.net.addresses_of(link.index).next().is_some()
        || facts.net.routes.iter().any(|route| route.oif == Some(link.index));
    link.master.is_none() && !is_used && ((is_tap && (link.up || is_named)) || (is_veth && is_named))
}
