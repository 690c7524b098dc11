//! Whose a rule is, by the names of its chain and table and by the files of those who write such; and what its owner wants
//! to be told to let guests through.

use super::super::{
    facts::{Facts, Subject},
    ruleset::{Decision, Rule, Source, Step, Verdict},
};

/// An owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Docker,
    Ufw,
    /// Both set the policy of one chain.
    UfwAndDocker,
    Firewalld,
    Libvirt,
    /// Another program, by its name.
    Other(&'static str),
    /// Nobody that is known: a person's, or a script's.
    Hand,
}

/// Who decided.
pub(super) fn of(facts: &Facts, decision: &Decision) -> Owner {
    const CHAINS: [(&str, Owner); 11] = [
        ("DOCKER", Owner::Docker),
        ("ufw", Owner::Ufw),
        ("LIBVIRT_", Owner::Libvirt),
        ("KUBE-", Owner::Other("Kubernetes")),
        ("CNI-", Owner::Other("a container network (CNI)")),
        ("cali-", Owner::Other("Calico")),
        ("FLANNEL", Owner::Other("Flannel")),
        ("NETAVARK", Owner::Other("Podman")),
        ("f2b-", Owner::Other("fail2ban")),
        ("ts-", Owner::Other("Tailscale")),
        ("nm-sh-", Owner::Other("NetworkManager")),
    ];
    const TABLES: [(&str, Owner); 5] = [
        ("firewalld", Owner::Firewalld),
        ("libvirt_network", Owner::Libvirt),
        ("docker-bridges", Owner::Docker),
        ("netavark", Owner::Other("Podman")),
        ("nm-shared", Owner::Other("NetworkManager")),
    ];
    let place = &decision.chain;
    let table = TABLES.iter().find(|(prefix, _)| place.table.starts_with(prefix));
    let chain = CHAINS.iter().find(|(prefix, _)| place.name.starts_with(prefix));
    if let Some((_, owner)) = table.or(chain) {
        return *owner;
    }
    if decision.rule.is_none() && place.is_of_iptables() {
        let has = |prefix: &str| {
            facts
                .rules
                .chains_of(prefix)
                .any(|chain| chain.place.table == place.table && chain.place.source == place.source)
        };
        let is_ufws = has("ufw") && place.table == "filter";
        return match (is_ufws, has("DOCKER")) {
            (true, true) if place.name == "FORWARD" => Owner::UfwAndDocker,
            (true, _) => Owner::Ufw,
            (false, true) => Owner::Docker,
            (false, false) => Owner::Hand,
        };
    }
    Owner::Hand
}

impl Owner {
    /// What did it, as the beginning of a clause: "Docker set the FORWARD policy to DROP (...)".
    /// `object` is what a rule does it to: "them".
    pub(super) fn deed(self, decision: &Decision, object: &str) -> String {
        let place = &decision.chain;
        let kind = if place.source == Source::Legacy {
            "iptables-legacy"
        } else if place.is_of_iptables() {
            "iptables-nft"
        } else {
            "nftables"
        };
        let at = match (place.source, place.is_of_iptables()) {
            (_, true) => format!("{kind}, table {}, chain {}", place.table, place.name),
            _ => format!("{kind}, table {} {}, chain {}", place.family, place.table, place.name),
        };
        let acts = if decision.rejects { "rejects" } else { "drops" };
        let hand = if place.is_of_iptables() { "an iptables rule" } else { "a hand-written nftables rule" };
        match (self, decision.rule.is_none()) {
            (Self::Docker, true) => format!("Docker set the {} policy to DROP ({at})", place.name),
            (Self::Ufw, true) => format!("ufw set the {} policy to DROP ({at})", place.name),
            (Self::UfwAndDocker, true) => {
                format!("ufw and Docker set the {} policy to DROP ({at})", place.name)
            }
            (Self::Hand, true) if place.is_of_iptables() => {
                format!("the {} policy is DROP, set by nobody that is known ({at})", place.name)
            }
            (Self::Hand, true) => format!("a hand-written nftables chain has the policy drop ({at})"),
            (Self::Hand, false) => format!("{hand} {acts} {object} ({at})"),
            (owner, _) => format!("{} {acts} {object} ({at})", owner.name()),
        }
    }

    /// Its name.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Docker => "Docker",
            Self::Ufw => "ufw",
            Self::UfwAndDocker => "ufw and Docker",
            Self::Firewalld => "firewalld",
            Self::Libvirt => "libvirt",
            Self::Other(name) => name,
            Self::Hand => "a hand-written rule",
        }
    }

    /// More evidence: the lines of files.
    pub(super) fn files(self, facts: &Facts, subject: &Subject, input: bool) -> Vec<String> {
        let written = |found: &Option<super::super::facts::Configured>| {
            found.iter().map(|found| format!("{}: {}", found.file, found.line)).collect::<Vec<_>>()
        };
        match self {
            Self::Ufw | Self::UfwAndDocker if input => written(&facts.files.ufw_input),
            Self::Ufw | Self::UfwAndDocker => written(&facts.files.ufw_forward),
            Self::Hand => written(&facts.files.nftables),
            Self::Docker => written(&facts.files.docker),
            Self::Firewalld => vec![match zone(facts, &subject.bridge.name) {
                Some(zone) => format!("firewalld has {} in zone {zone}", subject.bridge.name),
                None => format!(
                    "firewalld has {} in no zone of its own: the default zone decides",
                    subject.bridge.name
                ),
            }],
            Self::Libvirt | Self::Other(_) => Vec::new(),
        }
    }

    /// What lets a guest's packets through the FORWARD hook.
    pub(super) fn mend_forward(self, facts: &Facts, subject: &Subject, decision: &Decision) -> Vec<String> {
        let (bridge, place) = (&subject.bridge.name, &decision.base);
        let uplink = subject.uplink.as_ref().map_or("UPLINK", |uplink| uplink.name.as_str());
        match self {
            Self::Ufw | Self::UfwAndDocker => vec![format!("ufw route allow in on {bridge} out on {uplink}")],
            Self::Firewalld => {
                let zone = zone(facts, bridge);
                let mut commands = Vec::new();
                if zone.is_none() {
                    commands
                        .push(format!("firewall-cmd --permanent --zone=libvirt --change-interface={bridge}"));
                }
                let zone = zone.unwrap_or_else(|| "libvirt".to_owned());
                commands.push("firewall-cmd --permanent --new-policy=guests".to_owned());
                commands.push(format!(
                    "firewall-cmd --permanent --policy=guests --add-ingress-zone={zone} --add-egress-zone=ANY --set-target=ACCEPT"
                ));
                commands.push("firewall-cmd --reload".to_owned());
                commands
            }
            _ if place.is_of_iptables() => {
                let user = decision.chain.beside("DOCKER-USER");
                let chain = if facts.rules.chain(&user).is_some() { "DOCKER-USER" } else { "FORWARD" };
                let program = program(decision);
                vec![
                    format!("{program} -I {chain} -i {bridge} -j ACCEPT"),
                    format!(
                        "{program} -I {chain} -o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
                    ),
                ]
            }
            _ => {
                let chain = format!("{} {} {}", place.family, place.table, place.name);
                vec![
                    format!("nft insert rule {chain} iifname {bridge} accept"),
                    format!("nft insert rule {chain} oifname {bridge} ct state established,related accept"),
                ]
            }
        }
    }

    /// What lets packets to a port of the host in.
    pub(super) fn mend_input(
        self,
        facts: &Facts,
        subject: &Subject,
        decision: &Decision,
        port: u16,
    ) -> Vec<String> {
        let (bridge, place) = (&subject.bridge.name, &decision.base);
        let protocols: &[&str] = if port == 53 { &["udp", "tcp"] } else { &["udp"] };
        match self {
            Self::Ufw | Self::UfwAndDocker if port == 53 => {
                vec![format!("ufw allow in on {bridge} to any port 53")]
            }
            Self::Ufw | Self::UfwAndDocker => {
                vec![format!("ufw allow in on {bridge} to any port {port} proto udp")]
            }
            Self::Firewalld => {
                let service = if port == 53 { "dns" } else { "dhcp" };
                let zone = zone(facts, bridge).map_or(String::new(), |zone| format!(" --zone={zone}"));
                vec![
                    format!("firewall-cmd{zone} --permanent --add-service={service}"),
                    "firewall-cmd --reload".into(),
                ]
            }
            _ if place.is_of_iptables() => {
                let program = program(decision);
                let command = |protocol: &&str| {
                    format!("{program} -I INPUT -i {bridge} -p {protocol} --dport {port} -j ACCEPT")
                };
                protocols.iter().map(command).collect()
            }
            _ => {
                let chain = format!("{} {} {}", place.family, place.table, place.name);
                let command = |protocol: &&str| {
                    format!("nft insert rule {chain} iifname {bridge} {protocol} dport {port} accept")
                };
                protocols.iter().map(command).collect()
            }
        }
    }
}

/// The iptables that holds the rule.
pub(super) fn program(decision: &Decision) -> &'static str {
    if decision.is_legacy() { "iptables-legacy" } else { "iptables-nft" }
}

/// The zone that firewalld has an interface in: the chain of a zone to which a rule that names the interface leads.
pub(super) fn zone(facts: &Facts, interface: &str) -> Option<String> {
    let names_it = |rule: &Rule| {
        let is_name = |bytes: &[u8]| {
            let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
            bytes.get(..end) == Some(interface.as_bytes())
        };
        rule.steps.iter().any(|step| matches!(step, Step::Compare(_, 0, bytes) if is_name(bytes)))
    };
    let target = |rule: &Rule| {
        rule.steps.iter().find_map(|step| match step {
            Step::End(Verdict::Goto(chain) | Verdict::Jump(chain)) => Some(chain.clone()),
            _ => None,
        })
    };
    let chains = facts.rules.chains.iter().filter(|chain| chain.place.table == "firewalld");
    let mut targets = chains.flat_map(|chain| &chain.rules).filter(|rule| names_it(rule)).filter_map(target);
    targets.find_map(|chain| {
        let rest = ["filter_IN_", "filter_FWDI_", "filter_FWD_"]
            .iter()
            .find_map(|prefix| chain.strip_prefix(prefix))?;
        (!rest.contains("policy")).then(|| rest.to_owned())
    })
}
