//! Firewalls: would a guest's packet be let through? Packets that do not exist are taken through the rules of every hook on
//! their road.

use super::{
    super::{
        facts::{Facts, Subject},
        finding::{Finding, Passes, Takes},
        ruleset::{Decision, Family, Fate, Hook, Packet, Sender, Station, Walk},
    },
    offers,
    owner::{self, Owner},
    rank,
};

/// Somewhere in the world: an address that no rule is likely to name, and to which nothing is sent.
const WORLD: [u8; 4] = [9, 9, 9, 9];

/// `RTN_UNICAST`.
pub(super) const UNICAST: u32 = 1;

/// TCP's SYN, and its ACK.
pub(super) const SYN: u8 = 2;
const ACK: u8 = 16;

/// What guests try: the name of it, protocol and port.
const TRIES: [(&str, u8, u16); 3] = [("TCP", 6, 443), ("UDP", 17, 53), ("pings", 1, 0)];

/// Which packet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Guest to world.
    Out,
    /// World to guest, as an answer.
    Back,
    /// World to guest, unasked.
    In,
    /// Guest to guest, bridged.
    Across,
}

/// A packet between a guest and the world.
#[must_use]
pub(in crate::doctor) fn world_packet(subject: &Subject, protocol: u8, port: u16) -> Option<Packet> {
    packet(subject, Way::Out, protocol, port)
}

fn packet(subject: &Subject, way: Way, protocol: u8, port: u16) -> Option<Packet> {
    let (guest, bridge) = (subject.guest()?, (subject.bridge.name.clone(), subject.bridge.index));
    let uplink = subject
        .uplink
        .as_ref()
        .map_or_else(|| ("uplink".to_owned(), 0), |link| (link.name.clone(), link.index));
    let (input, output) = match way {
        Way::Out => (bridge, uplink),
        Way::Back | Way::In => (uplink, bridge),
        Way::Across => (bridge.clone(), bridge),
    };
    let sibling = subject
        .networks
        .first()?
        .0
        .hosts()
        .map(|host| host.octets())
        .find(|host| *host != guest && Some(*host) != subject.gateway());
    let (source, destination) = match way {
        Way::Out => (guest, WORLD),
        Way::Back | Way::In => (WORLD, guest),
        Way::Across => (guest, sibling?),
    };
    let ports = if way == Way::Back { (Some(port), None) } else { (None, Some(port)) };
    let answers = way == Way::Back;
    Some(Packet {
        input: Some(input.0),
        output: Some(output.0),
        indices: (input.1, output.1),
        source,
        destination,
        protocol,
        ports: if protocol == 1 { (None, None) } else { ports },
        icmp: (protocol == 1).then_some(if answers { (0, 0) } else { (8, 0) }),
        tcp_flags: if answers { SYN | ACK } else { SYN },
        state: if answers { Sender::Answers } else { Sender::Opens },
        mark: Some(0),
        source_type: UNICAST,
        destination_type: UNICAST,
        is_bridged: way == Way::Across,
        family: Family::IPV4,
    })
}

/// Judges what the rules do to guests.
pub(super) fn judge(facts: &Facts, subject: &Subject, findings: &mut Vec<Finding>) {
    if subject.networks.is_empty() {
        return;
    }
    let before = findings.len();
    forward(facts, subject, Way::Out, findings);
    let is_cut = findings.len() > before;
    if !is_cut {
        forward(facts, subject, Way::Back, findings);
    }
    if findings.len() == before && facts.troubles.is_empty() {
        let fine = Finding::fine(
            "forward-accepted",
            "The rules let guests' packets to the world pass, and the answers.",
        );
        findings.push(fine);
        forward(facts, subject, Way::In, findings);
    }
    if facts.setting("net/bridge/bridge-nf-call-iptables") == Some("1") {
        forward(facts, subject, Way::Across, findings);
    }
    ports(facts, subject, findings);
}

/// What one base chain does to which packets.
struct Verdict {
    station: Station,
    decision: Decision,
    is_certain: bool,
    hook: Hook,
    what: Vec<&'static str>,
}

/// Takes what guests try through the hooks of forwarding.
fn forward(facts: &Facts, subject: &Subject, way: Way, findings: &mut Vec<Finding>) {
    let mut verdicts: Vec<Verdict> = Vec::new();
    let mut accepting: Vec<Decision> = Vec::new();
    for (name, protocol, port) in TRIES {
        let Some(packet) = packet(subject, way, protocol, port) else { continue };
        let mut walk = Walk::new(&facts.rules, packet);
        for hook in [Hook::Prerouting, Hook::Forward, Hook::Postrouting] {
            for station in walk.meet_each(hook) {
                let (decision, is_certain) = match &station.fate {
                    Fate::Accepts(_) => {
                        accepting.extend(station.accepted_by);
                        continue;
                    }
                    Fate::Drops(decision) => (decision.clone(), true),
                    Fate::CannotTell(Some(decision)) => (decision.clone(), false),
                    Fate::CannotTell(None) => continue,
                };
                match verdicts
                    .iter_mut()
                    .find(|known| known.decision == decision && known.is_certain == is_certain)
                {
                    Some(known) => known.what.push(name),
                    None => verdicts.push(Verdict { station, decision, is_certain, hook, what: vec![name] }),
                }
            }
        }
    }
    // One witness a base chain.
    let mut seen = Vec::new();
    accepting.retain(|decision| {
        let is_new = !seen.contains(&decision.base);
        seen.push(decision.base.clone());
        is_new
    });
    for verdict in verdicts {
        findings.push(of_forward(facts, subject, way, &verdict, &accepting));
    }
}

fn of_forward(
    facts: &Facts,
    subject: &Subject,
    way: Way,
    verdict: &Verdict,
    accepting: &[Decision],
) -> Finding {
    let Verdict { station, decision, is_certain, hook, what } = verdict;
    let owner = owner::of(facts, decision);
    let bridge = &subject.bridge.name;
    let deed = owner.deed(decision, "them");
    let what_text =
        if what.len() == TRIES.len() { String::new() } else { format!(" ({} only)", super::listed(what)) };
    let whose = match way {
        Way::Out => format!("hat guests on {bridge} send to the world{what_text}"),
        Way::Back => format!("hat the world answers to guests on {bridge}{what_text}"),
        Way::In => format!("hat the world sends to guests on {bridge} unasked{what_text}"),
        Way::Across => format!("hat guests on {bridge} send each other{what_text}"),
    };
    let object = match way {
        Way::Out => "what they send to the world",
        Way::Back => "what the world answers",
        Way::In => "what the world sends them",
        Way::Across => "what they send each other",
    };
    let acts = if decision.rejects { "rejected" } else { "dropped" };
    let sentence = if *is_certain {
        format!("W{whose} is {acts}: {deed}.")
    } else {
        format!(
            "Whether w{whose} gets through cannot be told: {deed}, unless a condition that cannot be judged here lets it pass."
        )
    };
    let is_policy = decision.rule.is_none();
    let mut finding = match (way, is_certain) {
        (Way::Out, true) => Finding::problem(
            if is_policy { "forward-policy" } else { "forward-rule" },
            rank::FIREWALL,
            Takes::World,
            sentence,
        ),
        (Way::Back, true) => Finding::problem("reply-drop", rank::REPLY, Takes::World, sentence),
        (Way::In, true) => Finding::note("inbound-drop", sentence),
        (Way::Across, true) => Finding::problem("siblings-drop", rank::SIBLINGS, Takes::Siblings, sentence),
        (_, false) => Finding::note("forward-unknown", sentence),
    };
    finding.evidence.push(facts.rules.evidence(decision));
    finding.evidence.extend(owner.files(facts, subject, false));
    if *hook == Hook::Forward && *is_certain {
        let others = accepting.iter().filter(|other| other.base != station.base && is_forward(facts, other));
        finding.evidence.extend(others.map(|other| {
            let rule = facts.rules.evidence(other);
            format!(
                "accepted elsewhere, which does not help, since a packet must pass every base chain: {rule}"
            )
        }));
    }
    let (passes, why) = past(facts, subject, way, *hook);
    let mend = match owner {
        _ if way == Way::In && decision.base.is_of_iptables() => vec![format!(
            "{} -I FORWARD -o {bridge} -p tcp -d GUEST --dport PORT -j ACCEPT",
            owner::program(decision)
        )],
        Owner::Firewalld if way == Way::In => {
            vec![
                "firewall-cmd --permanent --add-forward-port=port=PORT:proto=tcp:toport=PORT:toaddr=GUEST"
                    .to_owned(),
            ]
        }
        _ if way == Way::In => vec![format!(
            "nft insert rule {} {} {} oifname {bridge} ip daddr GUEST tcp dport PORT accept",
            decision.chain.family, decision.chain.table, decision.chain.name
        )],
        _ if way == Way::Across => vec!["sysctl -w net.bridge.bridge-nf-call-iptables=0".to_owned()],
        owner => owner.mend_forward(facts, subject, decision),
    };
    finding.because(owner.deed(decision, object)).past(passes, why).mended_by(mend)
}

fn is_forward(facts: &Facts, decision: &Decision) -> bool {
    let chain = facts.rules.chain(&decision.base);
    chain
        .and_then(|chain| chain.base.as_ref())
        .is_some_and(|base| base.hook == Hook::Forward as u32 && !base.is_nat)
}

fn past(facts: &Facts, subject: &Subject, way: Way, hook: Hook) -> (Passes, String) {
    let (passes, why) = offers::forwarding(facts, subject);
    let ports: Vec<&str> = facts
        .net
        .ports_of(subject.bridge.index)
        .filter(|port| facts.vmnat.obstructed.contains_key(&port.name))
        .map(|port| port.name.as_str())
        .collect();
    let is_netfilter_first =
        facts.setting("net/bridge/bridge-nf-call-iptables") == Some("1") && hook == Hook::Prerouting;
    match (passes, way) {
        (Passes::Yes, Way::Across) if !ports.is_empty() => (Passes::Partly, slow(&ports)),
        (Passes::Yes, Way::Out) if is_netfilter_first && !ports.is_empty() => (Passes::Partly, slow(&ports)),
        (Passes::Yes, Way::In) => {
            (Passes::Yes, "`vmnat dnat add` makes port forwards that no rule forbids".to_owned())
        }
        other => (other.0, why),
    }
}

fn slow(ports: &[&str]) -> String {
    format!(
        "not for {}: with rules or filters of its own, a port is served behind the bridge, after these rules",
        super::listed(ports)
    )
}

/// Rules of the bridge family and at the ports' own ingress.
fn ports(facts: &Facts, subject: &Subject, findings: &mut Vec<Finding>) {
    let mut cut: Vec<(Decision, Vec<String>)> = Vec::new();
    for port in facts.net.ports_of(subject.bridge.index) {
        let Some(packet) = packet(subject, Way::Out, 6, 443) else { return };
        let to_bridge = Packet {
            input: Some(port.name.clone()),
            output: None,
            indices: (port.index, 0),
            family: Family::BRIDGE,
            ..packet
        };
        let mut walk = Walk::new(&facts.rules, to_bridge);
        let fates = [walk.enter(&port.name), walk.meet(Hook::Prerouting), walk.meet(Hook::Input)];
        for fate in fates {
            let Fate::Drops(decision) = fate else { continue };
            match cut.iter_mut().find(|(known, _)| *known == decision) {
                Some((_, ports)) => ports.push(port.name.clone()),
                None => cut.push((decision, vec![port.name.clone()])),
            }
        }
    }
    for (decision, ports) in cut {
        let names: Vec<&str> = ports.iter().map(String::as_str).collect();
        let cause = format!("a rule of the bridge drops what {} sends", super::listed(&names));
        let handle = facts
            .rules
            .chain(&decision.chain)
            .and_then(|chain| chain.rules.get(decision.rule?))
            .map(|rule| rule.handle);
        let place = format!("{} {} {}", decision.chain.family, decision.chain.table, decision.chain.name);
        let mend = match handle {
            Some(handle) => format!("nft delete rule {place} handle {handle}"),
            None => format!("nft chain {place} '{{ policy accept; }}'"),
        };
        findings.push(
            Finding::problem(
                "bridge-rules",
                rank::FIREWALL,
                Takes::World,
                format!("{}{}.", "A", cause.trim_start_matches('a')),
            )
            .because(cause)
            .shown_by([facts.rules.evidence(&decision)])
            .past(Passes::No, "rules for one port are somebody's wish about that guest, and vmnat obeys them")
            .mended_by([mend]),
        );
    }
}
