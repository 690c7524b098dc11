//! What vmnat offers to guests against each kind of trouble: the one place that knows what it can do.

use super::super::{
    facts::{Facts, Subject},
    finding::Passes,
};
use crate::{facts::LinkFact, services, state::Bridge};

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

/// Against a DHCP server that guests do not reach.
pub(super) fn addresses(_facts: &Facts, _subject: &Subject) -> Offer {
    (Passes::No, "it gives out no addresses, and DHCP stays with the host's INPUT rules".to_owned())
}

/// True for an interface that it can have as an uplink.
pub(super) fn takes_uplink(link: &LinkFact) -> bool {
    link.can_be_uplink()
}

/// What the instance was asked for at a bridge.
fn wish<'a>(facts: &'a Facts, subject: &Subject) -> Option<&'a Bridge> {
    facts.vmnat.state.as_ref()?.bridges.iter().find(|bridge| bridge.name == subject.bridge.name)
}
