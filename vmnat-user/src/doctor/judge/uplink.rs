//! The way into the world: an uplink that is up, has a carrier, an address and a route.

use super::{
    super::{
        facts::{Facts, Subject},
        finding::{Finding, Passes, Takes},
    },
    offers, rank,
};

/// Judges the uplink of a bridge.
pub(super) fn judge(facts: &Facts, subject: &Subject, findings: &mut Vec<Finding>) {
    let bridge = &subject.bridge.name;
    let world = |id, cause: String| {
        let sentence =
            format!("Guests on {bridge} cannot reach the world, and neither can the host, because {cause}.");
        Finding::problem(id, rank::UPLINK, Takes::World, sentence)
            .because(cause)
            .past(Passes::No, "it needs a way into the world, too")
    };
    let Some(uplink) = &subject.uplink else {
        findings.push(
            world("no-default-route", "there is no IPv4 default route".into())
                .shown_by(["ip route show default: nothing"])
                .mended_by(["dhclient UPLINK", "ip route add default via ROUTER"]),
        );
        return;
    };
    let name = &uplink.name;
    if !uplink.up {
        findings.push(
            world("uplink-down", format!("the uplink {name} is down"))
                .mended_by([format!("ip link set {name} up")]),
        );
        return;
    }
    if facts.more_of(uplink.index).is_dead {
        findings.push(
            world(
                "carrier-down",
                format!("the uplink {name} has no carrier (cable, access point, or switch)"),
            )
            .shown_by([format!("{name}: no carrier")]),
        );
        return;
    }
    if facts.net.primary_address(uplink.index).is_none() {
        findings.push(
            world("uplink-without-address", format!("the uplink {name} has no IPv4 address"))
                .mended_by([format!("dhclient {name}")]),
        );
        return;
    }
    let has_route =
        facts.net.routes.iter().any(|route| route.is_default() && route.oif == Some(uplink.index));
    if !has_route {
        findings.push(
            world("no-default-route", format!("no default route leaves by the uplink {name}"))
                .shown_by([format!("ip route show default dev {name}: nothing")])
                .mended_by([format!("ip route add default via ROUTER dev {name}")]),
        );
        return;
    }
    if !offers::takes_uplink(uplink) {
        findings.push(
            Finding::note(
                "uplink-without-ethernet",
                format!(
                    "The default route leaves by {name}, which carries neither Ethernet nor bare IP packets."
                ),
            )
            .past(Passes::No, "name another with `--uplink`, if guests may leave by it"),
        );
        return;
    }
    let tunnel = facts.net.links.iter().find(|link| {
        link.no_ethernet
            && !link.loopback
            && link.up
            && link.index != uplink.index
            && facts
                .net
                .routes
                .iter()
                .any(|route| route.oif == Some(link.index) && route.destination.prefix_len() <= 1)
    });
    if let Some(tunnel) = tunnel {
        findings.push(
            Finding::note("vpn-owns-default-route", format!("The tunnel {} takes the traffic of the whole host (a full-tunnel VPN), beside the uplink {name}.", tunnel.name))
                .shown_by(facts.net.routes.iter().filter(|route| route.oif == Some(tunnel.index) && route.destination.prefix_len() <= 1).map(|route| format!("route {} dev {}", route.destination, tunnel.name)))
                .past(Passes::Yes, "it follows the host's routes, so guests leave by the tunnel and by nothing else"),
        );
        return;
    }
    findings.push(Finding::fine(
        "uplink-down",
        format!("The uplink {name} is up, with an address and a default route."),
    ));
}
