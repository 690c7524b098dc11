//! What vmnat offers to guests against each kind of trouble: the one place that knows what it can do.

use super::super::{
    facts::{Facts, Subject},
    finding::Passes,
};
use crate::{dhcp::DhcpWish, facts::LinkFact, services, state::Bridge};

/// Whether it gets past something, and why.
pub(super) type Offer = (Passes, String);

/// Against FORWARD rules, missing forwarding, missing translation.
pub(super) fn forwarding(facts: &Facts, subject: &Subject) -> Offer {
    if !facts.vmnat.can_run() {
        return (Passes::No, "this kernel cannot run it".to_owned());
    }
    if subject.uplink.as_ref().is_some_and(|uplink| !uplink.can_be_uplink()) {
        return (Passes::No, "the uplink carries neither Ethernet nor bare IP packets".to_owned());
    }
    (Passes::Yes, "its programs forward guests' packets before netfilter sees them".to_owned())
}

/// Against INPUT rules that keep guests from a resolver at their gateway.
pub(super) fn names_at_gateway(facts: &Facts, subject: &Subject) -> Offer {
    let (passes, why) = forwarding(facts, subject);
    if passes != Passes::Yes && !facts.vmnat.can_run() {
        return (passes, why);
    }
    match wish(facts, subject) {
        Some(bridge) if !bridge.services.iter().any(|service| service.port == services::DNS) => {
            (Passes::No, format!("its services for {} leave names out: `--service dns` opens them", bridge.name))
        }
        _ => (Passes::Yes, "it lets guests' questions in at their gateway, whatever the INPUT rules say (`--service dns`, the default)".to_owned()),
    }
}

/// Against a resolver at the gateway that does not answer.
pub(super) fn dead_resolver(facts: &Facts, subject: &Subject) -> Offer {
    match wish(facts, subject) {
        Some(bridge) if !bridge.dns.is_empty() => {
            (Passes::Yes, "its agent asks the resolvers that `--dns` names instead".to_owned())
        }
        _ => (
            Passes::Partly,
            format!(
                "with `vmnat{} up --bridge {} --dns ADDRESS` its agent asks another resolver instead",
                facts.vmnat.option, subject.bridge.name
            ),
        ),
    }
}

/// Against INPUT rules that keep guests from a DHCP server, and against there being none.
pub(super) fn addresses(facts: &Facts, subject: &Subject) -> Offer {
    let bridge = &subject.bridge.name;
    let has_network = facts.files.network_of(bridge).is_some_and(|network| network.has_dhcp);
    let gives = "its agent gives guests addresses where no other server is heard";
    match wish(facts, subject).map_or(DhcpWish::Auto, |bridge| bridge.dhcp.clone()) {
        DhcpWish::None => (Passes::No, "`--dhcp none` keeps its agent from giving addresses".to_owned()),
        DhcpWish::Range(_) => (Passes::Yes, gives.to_owned()),
        DhcpWish::Auto if has_network => (Passes::Yes, format!("{gives}, as libvirt's network says")),
        DhcpWish::Auto => (
            Passes::Partly,
            format!("with `vmnat{} up --bridge {bridge} --dhcp FIRST-LAST` {gives}", facts.vmnat.option),
        ),
    }
}

/// True for an interface that it can have as an uplink.
pub(super) fn takes_uplink(link: &LinkFact) -> bool {
    link.can_be_uplink()
}

/// What the instance was asked for at a bridge.
fn wish<'a>(facts: &'a Facts, subject: &Subject) -> Option<&'a Bridge> {
    facts.vmnat.state.as_ref()?.bridges.iter().find(|bridge| bridge.name == subject.bridge.name)
}
