//! Which interfaces are uplinks: those that were named, or that of the default route, followed as it changes.

use crate::{
    facts::{Facts, LinkFact},
    state::State,
};

/// The uplinks that exist and can be served.
pub(super) fn uplinks<'a>(state: &State, facts: &'a Facts, warnings: &mut Vec<String>) -> Vec<&'a LinkFact> {
    if state.uplinks.is_empty() {
        let (followed, warning) = followed(state, facts);
        warnings.extend(warning);
        return followed.into_iter().collect();
    }
    let find = |name: &String| match facts.link(name) {
        None => {
            warnings.push(format!("uplink {name} does not exist"));
            None
        }
        Some(link) if link.no_ethernet => {
            warnings.push(format!("uplink {name} has no Ethernet, which is for a later release"));
            None
        }
        Some(link) => Some(link),
    };
    let uplinks: Vec<_> = state.uplinks.iter().filter_map(find).collect();
    if let Some(other) = facts.default_uplink().filter(|other| !state.uplinks.contains(&other.name)) {
        warnings.push(format!(
            "the host's default route leaves by {}, which is no uplink: there the kernel and its firewall decide",
            other.name
        ));
    }
    uplinks
}

/// The interface of the default route, and a warning where it is not that. A route that comes and goes (DHCP,
/// roaming) or moves to where vmnat cannot follow takes no flows with it: the interface that was followed last stays.
#[must_use]
pub fn followed<'a>(state: &State, facts: &'a Facts) -> (Option<&'a LinkFact>, Option<String>) {
    let is_bridge = |name: &str| state.bridges.iter().any(|bridge| bridge.name == name);
    let last = || facts.link(&state.followed).filter(|link| !link.no_ethernet);
    match facts.default_uplink().filter(|link| !is_bridge(&link.name)) {
        None => (last(), Some("there is no default route: guests cannot reach the world".to_owned())),
        Some(link) if link.no_ethernet => {
            let stays =
                last().map_or_else(String::new, |last| format!(", and {} stays the uplink", last.name));
            let warning = format!(
                "the default route leaves by {}, which has no Ethernet: serving that is for a later release; there the kernel and its firewall decide{stays}",
                link.name
            );
            (last(), Some(warning))
        }
        found => (found, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        facts::{MAIN_TABLE, RouteFact},
        state::HookMode,
    };

    fn host() -> (State, Facts) {
        let mut state = State::new(HookMode::Tcx);
        state.followed = "enp3s0".into();
        let ethernet = LinkFact { index: 1, name: "enp3s0".into(), ..LinkFact::default() };
        let tunnel = LinkFact { index: 2, name: "wg0".into(), no_ethernet: true, ..LinkFact::default() };
        (state, Facts { links: vec![ethernet, tunnel], ..Facts::default() })
    }

    fn default_route(oif: u32) -> RouteFact {
        let destination = "0.0.0.0/0".parse().unwrap();
        RouteFact { destination, oif: Some(oif), gateway: None, metric: 0, table: MAIN_TABLE }
    }

    #[test]
    fn the_followed_uplink_stays_while_there_is_no_default_route() {
        let (state, facts) = host();
        let mut warnings = Vec::new();
        let uplinks = uplinks(&state, &facts, &mut warnings);
        assert_eq!(uplinks.iter().map(|link| link.index).collect::<Vec<_>>(), [1]);
        assert_eq!(warnings.len(), 1);
    }

    #[test]
    fn the_followed_uplink_stays_when_the_route_moves_to_a_tunnel() {
        let (mut state, mut facts) = host();
        facts.routes = vec![default_route(2)];
        let (link, warning) = followed(&state, &facts);
        assert_eq!(link.map(|link| link.index), Some(1));
        assert!(warning.unwrap().contains("leaves by wg0, which has no Ethernet"));
        state.followed = "wg0".into();
        assert_eq!(followed(&state, &facts).0, None);
        facts.routes = vec![default_route(1)];
        assert_eq!(followed(&state, &facts), (Some(&facts.links[0]), None));
    }

    #[test]
    fn a_named_uplink_that_became_a_tunnel_is_a_warning() {
        let (mut state, facts) = host();
        state.uplinks = vec!["wg0".into(), "enp3s0".into(), "gone".into()];
        let mut warnings = Vec::new();
        assert_eq!(uplinks(&state, &facts, &mut warnings), [&facts.links[0]]);
        assert_eq!(warnings.len(), 2, "{warnings:?}");
    }
}
