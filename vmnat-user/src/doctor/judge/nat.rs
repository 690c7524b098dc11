//! Translation: whether anybody gives the guests' packets an address that the world answers to, and whether somebody does
//! so twice.

use std::net::Ipv4Addr;

use super::{
    super::{
        facts::{Facts, Subject},
        finding::{Finding, Passes, Takes},
        ruleset::{Fate, Hook, Walk},
    },
    firewall::world_packet,
    offers, owner, rank,
};

/// Judges what becomes of the guests' addresses.
pub(super) fn judge(facts: &Facts, subject: &Subject, findings: &mut Vec<Finding>) {
    let (Some(uplink), Some((network, _))) = (&subject.uplink, subject.networks.first()) else { return };
    let Some(packet) = world_packet(subject, 6, 443) else { return };
    let bridge = &subject.bridge.name;
    let is_private = is_private(network.addr());
    let served = facts.vmnat.serves(bridge);
    let fates = {
        let mut walk = Walk::new(&facts.rules, packet);
        [walk.meet(Hook::Prerouting), walk.meet(Hook::Forward), walk.meet(Hook::Postrouting)]
    };
    match &fates[2] {
        Fate::Accepts(Some(how)) if served => findings.push(
            Finding::note(
                "masquerade-elsewhere",
                format!(
                    "The host's rules would translate the guests of {network} too ({}).",
                    how.to_lowercase()
                ),
            )
            .past(Passes::Yes, "what it translates never meets those rules"),
        ),
        Fate::Accepts(Some(how)) => {
            findings.push(Finding::fine(
                "no-masquerade",
                format!("Guests of {network} are translated on their way out ({}).", how.to_lowercase()),
            ));
        }
        Fate::Accepts(None) if is_private && facts.troubles.is_empty() => {
            let (passes, why) = offers::forwarding(facts, subject);
            let cause = format!(
                "no rule translates {network} to the address of {}, so nobody in the world can answer",
                uplink.name
            );
            findings.push(
                Finding::problem(
                    "no-masquerade",
                    rank::MASQUERADE,
                    Takes::World,
                    format!(
                        "What guests on {bridge} send leaves under their private addresses, because {cause}."
                    ),
                )
                .because(cause)
                .shown_by([
                    "no masquerade or snat at the postrouting hook meets a packet of theirs".to_owned()
                ])
                .past(passes, why)
                .mended_by(mend(facts, &uplink.name, &network.to_string())),
            );
        }
        _ => {}
    }
    if let Some(own) =
        facts.net.primary_address(uplink.index).map(Ipv4Addr::from).filter(|own| self::is_private(*own))
    {
        findings.push(
            Finding::note("double-nat", format!("The uplink {} has a private address itself ({own}): a router beyond it translates once more.", uplink.name))
                .shown_by([format!("{own} is of a range that the world does not route")])
                .past(Passes::Nothing, "guests are online all the same; a port forward from the world needs one at that router too"),
        );
    }
}

/// With firewalld, its own way; its rules would be gone with the next reload.
fn mend(facts: &Facts, uplink: &str, network: &str) -> Vec<String> {
    let has_firewalld = facts.rules.chains.iter().any(|chain| chain.place.table == "firewalld");
    if !has_firewalld {
        return vec![format!(
            "iptables -t nat -A POSTROUTING -s {network} ! -d {network} -o {uplink} -j MASQUERADE"
        )];
    }
    let zone = owner::zone(facts, uplink).map_or(String::new(), |zone| format!(" --zone={zone}"));
    vec![format!("firewall-cmd --permanent{zone} --add-masquerade"), "firewall-cmd --reload".to_owned()]
}

/// Private (RFC 1918), or shared by carriers (RFC 6598).
fn is_private(address: Ipv4Addr) -> bool {
    let [first, second, ..] = address.octets();
    address.is_private() || address.is_link_local() || (first == 100 && (64..128).contains(&second))
}
