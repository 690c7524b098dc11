//! What `up` says about services of the host that guests may use.

use crate::{
    dhcp::DhcpWish,
    services::{Forwarder, ServiceList},
    state::{Bridge, State},
};

#[derive(Clone, Debug, Default, PartialEq, clap::Args)]
pub(super) struct Services {
    /// Services of the host that guests of the bridges that are named, or of all, may use at their gateway whatever the
    /// host's INPUT rules say [default: dns]
    ///
    /// Ports with or without their protocol, several with commas; "dns" is port 53, and "none" closes all. It replaces the
    /// list that was: `vmnat status` shows what is open.
    #[arg(long = "service", value_name = "LIST")]
    allowed: Option<ServiceList>,
    /// A resolver to ask for those guests instead of the host's own server, or "none" for none any more; repeatable
    ///
    /// For a host whose own resolver is dead. Where nothing answers at the gateway, the host's resolvers are asked without it.
    #[arg(long = "dns", value_name = "ADDRESS[:PORT]")]
    forwarders: Vec<Forwarder>,
    /// Addresses to give to guests where no other DHCP server is heard; "auto": as libvirt's network says, where one has the
    /// bridge; "none": never [default: auto]
    #[arg(long = "dhcp", value_name = "[BRIDGE=]FIRST-LAST[,lease=SPAN]", value_parser = named_dhcp)]
    dhcp: Vec<(Option<String>, DhcpWish)>,
}

impl Services {
    /// True when any was named.
    pub(super) const fn is_named(&self) -> bool {
        self.allowed.is_some() || !self.forwarders.is_empty() || !self.dhcp.is_empty()
    }
}

fn named_dhcp(text: &str) -> Result<(Option<String>, DhcpWish), String> {
    match text.split_once('=') {
        // `lease=` follows a comma, and no interface's name has one.
        Some((bridge, wish)) if !bridge.contains(',') => Ok((Some(bridge.to_owned()), wish.parse()?)),
        _ => Ok((None, text.parse()?)),
    }
}

/// Adds what was asked for to the state; `bridges` are those that were named.
pub(super) fn merge(state: &mut State, args: &Services, bridges: &[String]) {
    let Services { allowed, forwarders, dhcp } = args;
    let is_meant = |name: &String| bridges.is_empty() || bridges.contains(name);
    for (name, wish) in dhcp {
        let is_named =
            |bridge: &&mut Bridge| name.as_ref().map_or(is_meant(&bridge.name), |name| *name == bridge.name);
        state.bridges.iter_mut().filter(is_named).for_each(|bridge| bridge.dhcp.clone_from(wish));
    }
    for bridge in state.bridges.iter_mut().filter(|bridge| is_meant(&bridge.name)) {
        if let Some(ServiceList(list)) = allowed {
            bridge.services.clone_from(list);
        }
        for Forwarder(forwarder) in forwarders {
            match forwarder {
                None => bridge.dns.clear(),
                Some(forwarder) if bridge.dns.contains(forwarder) => {}
                Some(forwarder) => bridge.dns.push(*forwarder),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{services::dns, state::HookMode};

    #[test]
    fn what_is_named_concerns_the_bridges_that_are_named_and_replaces() {
        let mut state = State::new(HookMode::Tcx);
        state.bridges = vec![Bridge::new("virbr0"), Bridge::new("virbr1")];
        let wish = |list: &str, forwarders: &[&str]| Services {
            allowed: Some(list.parse().unwrap()),
            forwarders: forwarders.iter().map(|text| text.parse().unwrap()).collect(),
            dhcp: Vec::new(),
        };
        merge(&mut state, &wish("8000/tcp", &["9.9.9.9", "1.1.1.1", "9.9.9.9"]), &["virbr1".to_owned()]);
        assert_eq!((&state.bridges[0].services, state.bridges[0].dns.len()), (&dns(), 0));
        assert_eq!((state.bridges[1].services.len(), state.bridges[1].dns.len()), (1, 2));
        merge(&mut state, &wish("none", &["none"]), &[]);
        assert!(state.bridges.iter().all(|bridge| bridge.services.is_empty() && bridge.dns.is_empty()));
        merge(&mut state, &Services::default(), &[]);
        assert!(state.bridges[0].services.is_empty(), "what is not named stays");
    }
}
