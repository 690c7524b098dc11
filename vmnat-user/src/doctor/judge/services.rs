//! What guests are given by their gateway: addresses by DHCP, names by DNS; and what libvirt and others were asked for.

use super::{
    super::{
        facts::{Answer, Facts, Subject},
        finding::{Finding, Passes, Takes},
    },
    has_guests, listed, offers, rank,
};

/// Judges the services at a bridge.
pub(super) fn judge(facts: &Facts, subject: &Subject, findings: &mut Vec<Finding>) {
    dhcp(facts, subject, findings);
    names(facts, subject, findings);
    if let Some(network) = facts.files.network_of(&subject.bridge.name)
        && network.has_bandwidth
    {
        findings.push(
            Finding::note("bandwidth", format!("libvirt limits the rate of its network {}.", network.name))
                .shown_by([format!("{}: <bandwidth>", network.file)])
                .past(Passes::Yes, "ports with a policer are served behind the bridge; the limit of the bridge itself holds for downloads alone"),
        );
    }
    let ports: Vec<&str> = facts.net.ports_of(subject.bridge.index).map(|port| port.name.as_str()).collect();
    for (port, filter) in facts.files.nwfilters.iter().filter(|(port, _)| ports.contains(&port.as_str())) {
        findings.push(
            Finding::note("nwfilter", format!("libvirt's network filter {filter} is bound to {port}."))
                .past(Passes::Yes, "the port is served behind its bridge, after the filter"),
        );
    }
}

fn dhcp(facts: &Facts, subject: &Subject, findings: &mut Vec<Finding>) {
    let bridge = &subject.bridge.name;
    if facts.servers.is_hidden {
        return;
    }
    if let Some(server) = facts.servers.dhcp_at(subject.bridge.index) {
        findings.push(Finding::fine("no-dhcp-server", format!("{} serves DHCP at {bridge}.", server.text())));
        return;
    }
    let network = facts.files.network_of(bridge).filter(|network| network.has_dhcp && network.is_active);
    let networkd = facts.files.dhcp_server_of(bridge);
    let (evidence, mend) = match (network, networkd) {
        (Some(network), _) => (
            vec![format!("{}: <dhcp>", network.file)],
            vec![format!("virsh net-destroy {}", network.name), format!("virsh net-start {}", network.name)],
        ),
        (None, Some(file)) => (
            vec![format!("{}: {}", file.file, file.line)],
            vec!["systemctl restart systemd-networkd".to_owned()],
        ),
        (None, None) => (
            vec!["no socket waits at UDP port 67".to_owned()],
            vec![format!("dnsmasq --interface={bridge} --bind-dynamic --dhcp-range=FIRST,LAST")],
        ),
    };
    let (passes, why) = offers::addresses(facts, subject);
    let is_configured = network.is_some() || networkd.is_some();
    let finding = if is_configured {
        let cause = "its DHCP server is configured and does not run";
        Finding::problem(
            "dhcp-server-idle",
            rank::DHCP,
            Takes::Addresses,
            format!("A DHCP server is configured for {bridge}, and none runs: guests get no address."),
        )
        .because(cause)
    } else if has_guests(facts, subject) {
        Finding::note(
            "no-dhcp-server",
            format!(
                "Nothing on this host serves DHCP at {bridge}; guests that are there have addresses of their own."
            ),
        )
    } else {
        let sentence = format!(
            "Nothing on this host serves DHCP at {bridge}: a guest without an address of its own gets none."
        );
        Finding::problem("no-dhcp-server", rank::DHCP, Takes::Addresses, sentence)
            .because(format!("nothing serves DHCP at {bridge}"))
    };
    findings.push(finding.shown_by(evidence).past(passes, why).mended_by(mend));
}

fn names(facts: &Facts, subject: &Subject, findings: &mut Vec<Finding>) {
    let Some(gateway) = subject.gateway() else { return };
    let (bridge, address) = (&subject.bridge.name, std::net::Ipv4Addr::from(gateway));
    let Some(server) = facts.servers.dns_at(address).filter(|_| !facts.servers.is_hidden) else {
        findings.push(
            Finding::note("no-gateway-dns", format!("Nothing on this host answers DNS at the gateway of {bridge} ({address}); guests need a resolver in the world."))
                .shown_by([format!("no socket waits at {address}, UDP port 53")])
                .past(Passes::Nothing, "its agent answers there, and guests reach resolvers in the world through it")
                .mended_by([format!("dnsmasq --interface={bridge} --bind-dynamic")]),
        );
        return;
    };
    match facts.gateways.get(bridge) {
        Some(answer) if !answer.is_good() => {
            let dead: Vec<&str> = facts
                .resolvers
                .iter()
                .filter(|(_, answer)| !answer.is_good())
                .map(|(name, _)| name.as_str())
                .collect();
            let (cause, evidence) = if dead.is_empty() {
                (format!("{} at the gateway {address} {}", server.text(), answer.text()), Vec::new())
            } else {
                let resolvers = if dead.len() == 1 { "resolver" } else { "resolvers" };
                let do_not = if dead.len() == 1 { "does not answer" } else { "do not answer" };
                (
                    format!(
                        "the host's {resolvers} {} {do_not}, to whom {} at the gateway hands their questions",
                        listed(&dead),
                        server.text()
                    ),
                    evidence_of(facts),
                )
            };
            let (passes, why) = offers::dead_resolver(facts, subject);
            let resolver_mend = match facts.files.network_of(bridge) {
                Some(network) => vec![
                    format!(
                        "virsh net-edit {}    # add <dns><forwarder addr='RESOLVER'/></dns>",
                        network.name
                    ),
                    format!("virsh net-destroy {}", network.name),
                    format!("virsh net-start {}", network.name),
                ],
                None => vec!["editor /etc/resolv.conf    # a nameserver that answers".to_owned()],
            };
            findings.push(
                Finding::problem(
                    "gateway-dns-dead",
                    rank::NAMES,
                    Takes::Names,
                    format!("Guests on {bridge} get no answer to DNS at their gateway: {cause}."),
                )
                .because(cause)
                .shown_by([format!("{address}: {}", answer.text())])
                .shown_by(evidence)
                .past(passes, why)
                .mended_by(resolver_mend),
            );
        }
        Some(_) => findings.push(Finding::fine(
            "gateway-dns-dead",
            format!("{} answers DNS at the gateway {address}.", server.text()),
        )),
        None => {}
    }
}

fn evidence_of(facts: &Facts) -> Vec<String> {
    facts
        .resolvers
        .iter()
        .map(|(name, answer)| format!("/etc/resolv.conf: nameserver {name}: {}", answer.text()))
        .collect()
}

/// Judges the host's resolvers and libvirt's networks.
pub(super) fn judge_host(facts: &Facts, findings: &mut Vec<Finding>) {
    if facts.resolvers.is_empty() {
        findings.push(
            Finding::note(
                "no-resolver",
                "The host has no resolver in /etc/resolv.conf: a resolver at a gateway has nobody to ask.",
            )
            .shown_by(["/etc/resolv.conf: no nameserver"])
            .mended_by(["editor /etc/resolv.conf    # nameserver ADDRESS"]),
        );
    }
    let dead: Vec<&(String, Answer)> =
        facts.resolvers.iter().filter(|(_, answer)| !answer.is_good()).collect();
    for (name, answer) in &dead {
        let sentence = format!("The host's resolver {name} {}.", answer.text());
        // It takes something from guests only where their gateway depends on it, which is a finding of its own.
        findings.push(
            Finding::note("resolver-dead", sentence)
                .shown_by([format!("/etc/resolv.conf: nameserver {name}")])
                .past(Passes::Nothing, "guests that ask another resolver in the world reach it")
                .mended_by(["editor /etc/resolv.conf    # a nameserver that answers"]),
        );
    }
    if dead.is_empty() && !facts.resolvers.is_empty() {
        findings.push(Finding::fine("resolver-dead", "The host's resolvers answer."));
    }
    for network in facts.files.libvirt.iter().filter(|network| !network.is_active) {
        let bridge = network.bridge.as_deref().unwrap_or("of no name");
        let is_there = facts.net.link(bridge).is_some();
        let so = if is_there {
            "though a bridge of that name is there, made by somebody else"
        } else {
            "so its bridge is not there"
        };
        let sentence = format!(
            "libvirt's network {} (bridge {bridge}) is defined and does not run, {so}.",
            network.name
        );
        findings.push(
            Finding::note("libvirt-network-inactive", sentence)
                .shown_by([network.file.clone()])
                .past(Passes::No, "it serves bridges that exist")
                .mended_by([format!("virsh net-start {}", network.name)]),
        );
    }
    if let Some(found) = &facts.files.docker {
        findings.push(
            Finding::note("docker-iptables", "Docker's settings say something about its rules.")
                .shown_by([format!("{}: {}", found.file, found.line)]),
        );
    }
}
