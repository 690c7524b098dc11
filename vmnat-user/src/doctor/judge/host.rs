//! What guests ask of the host itself, and what it answers: INPUT and OUTPUT, for DHCP and DNS.

use super::{
    super::{
        facts::{Facts, Subject},
        finding::{Finding, Passes, Takes},
        ruleset::{Decision, Family, Fate, Hook, Packet, Sender, Walk},
    },
    firewall::{SYN, UNICAST},
    offers, owner, rank,
};

/// `RTN_LOCAL` and `RTN_BROADCAST`.
const LOCAL: u32 = 2;
const BROADCAST: u32 = 3;

/// What guests ask of the host itself: DHCP and DNS, and the answers.
pub(super) fn judge(facts: &Facts, subject: &Subject, findings: &mut Vec<Finding>) {
    let Some(gateway) = subject.gateway() else { return };
    let Some(guest) = subject.guest() else { return };
    let base = |protocol: u8, port: u16| {
        let is_dhcp = port == 67;
        Packet {
            input: Some(subject.bridge.name.clone()),
            output: None,
            indices: (subject.bridge.index, 0),
            source: if is_dhcp { [0; 4] } else { guest },
            destination: if is_dhcp { [255; 4] } else { gateway },
            protocol,
            ports: (is_dhcp.then_some(68), Some(port)),
            icmp: None,
            tcp_flags: SYN,
            state: Sender::Opens,
            mark: Some(0),
            source_type: UNICAST,
            destination_type: if is_dhcp { BROADCAST } else { LOCAL },
            is_bridged: false,
            family: Family::IPV4,
        }
    };
    let has_dhcp = facts.servers.dhcp_at(subject.bridge.index).is_some();
    let has_dns = facts.servers.dns_at(gateway.into()).is_some();
    for (id, protocol, port, takes, is_served) in
        [("input-dhcp", 17, 67, Takes::Addresses, has_dhcp), ("input-dns", 17, 53, Takes::Names, has_dns)]
    {
        let mut walk = Walk::new(&facts.rules, base(protocol, port));
        let fates = [walk.meet(Hook::Prerouting), walk.meet(Hook::Input)];
        let Some(decision) = fates.iter().find_map(|fate| match fate {
            Fate::Drops(decision) => Some(decision),
            _ => None,
        }) else {
            continue;
        };
        findings.push(input(facts, subject, id, port, takes, is_served, decision));
    }
    answers(facts, subject, &base(17, 67), findings);
}

fn input(
    facts: &Facts,
    subject: &Subject,
    id: &'static str,
    port: u16,
    takes: Takes,
    is_served: bool,
    decision: &Decision,
) -> Finding {
    let owner = owner::of(facts, decision);
    let (bridge, deed) = (&subject.bridge.name, owner.deed(decision, "them"));
    let what = if port == 67 { "DHCP requests" } else { "DNS queries to the gateway" };
    let sentence = format!("{what} of guests on {bridge} are dropped by the host: {deed}.");
    let (passes, why) =
        if port == 53 { offers::names_at_gateway(facts, subject) } else { offers::addresses(facts, subject) };
    let cause = match decision.rule {
        Some(_) => owner.deed(decision, &format!("their {what}")),
        None => format!("{deed}, so their {what} are lost"),
    };
    let finding = if is_served {
        let rank = if port == 67 { rank::DHCP } else { rank::NAMES };
        Finding::problem(id, rank, takes, sentence)
    } else {
        Finding::note(id, format!("{sentence} Nothing listens there anyway."))
    };
    finding
        .because(cause)
        .shown_by([facts.rules.evidence(decision)])
        .shown_by(owner.files(facts, subject, true))
        .past(passes, why)
        .mended_by(owner.mend_input(facts, subject, decision, port))
}

/// What the host answers.
fn answers(facts: &Facts, subject: &Subject, question: &Packet, findings: &mut Vec<Finding>) {
    let Some(gateway) = subject.gateway() else { return };
    let answer = Packet {
        input: None,
        output: Some(subject.bridge.name.clone()),
        indices: (0, subject.bridge.index),
        source: gateway,
        destination: subject.guest().unwrap_or([255; 4]),
        ports: (Some(67), Some(68)),
        source_type: LOCAL,
        destination_type: UNICAST,
        state: Sender::Opens,
        ..question.clone()
    };
    if let Fate::Drops(decision) = Walk::new(&facts.rules, answer).meet(Hook::Output) {
        let owner = owner::of(facts, &decision);
        let deed = owner.deed(&decision, "them");
        let chain = format!("{} {} {}", decision.base.family, decision.base.table, decision.base.name);
        let mend = if decision.base.is_of_iptables() {
            format!("{} -I OUTPUT -o {} -j ACCEPT", owner::program(&decision), subject.bridge.name)
        } else {
            format!("nft insert rule {chain} oifname {} accept", subject.bridge.name)
        };
        let sentence =
            format!("What the host itself sends to guests on {} is dropped: {deed}.", subject.bridge.name);
        findings.push(
            Finding::problem("output-drop", rank::DHCP, Takes::Addresses, sentence)
                .because(deed)
                .shown_by([facts.rules.evidence(&decision)])
                .past(Passes::No, "what the host itself sends stays with its OUTPUT rules")
                .mended_by([mend]),
        );
    }
}
