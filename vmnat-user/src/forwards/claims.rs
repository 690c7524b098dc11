//! Who owns which external port: one port forward each.

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
};

use vmnat_common::Protocol;

use super::{External, Wish};

/// Where a port is owned.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Place {
    /// At every uplink, also at those to come.
    Every,
    /// At the addresses of an interface, also at those to come.
    Uplink(String),
    Address(Ipv4Addr),
}

/// A port that is owned already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claimed<O> {
    /// By whom.
    pub owner: O,
    /// The protocol.
    pub protocol: Protocol,
    /// The first port that both want.
    pub port: u16,
}

/// External ports and their owners.
#[derive(Debug)]
pub struct Claims<O> {
    /// The last port and the owner, by the first port.
    owned: HashMap<(Protocol, Place), BTreeMap<u16, (u16, O)>>,
}

impl<O> Default for Claims<O> {
    fn default() -> Self {
        Self { owned: HashMap::new() }
    }
}

impl<O: Copy> Claims<O> {
    /// Gives a forward's ports to an owner.
    pub fn claim(&mut self, wish: &Wish, external: &External<'_>, owner: O) {
        let ports = wish.spec.ports;
        for place in places(wish, external) {
            for protocol in wish.spec.protocols.each() {
                let of_place = self.owned.entry((*protocol, place.clone())).or_default();
                of_place.insert(ports.first(), (ports.last(), owner));
            }
        }
    }

    /// The first of a forward's ports that somebody owns.
    #[must_use]
    pub fn find(&self, wish: &Wish, external: &External<'_>) -> Option<Claimed<O>> {
        let ports = wish.spec.ports;
        for place in places(wish, external) {
            for protocol in wish.spec.protocols.each() {
                let Some(owned) = self.owned.get(&(*protocol, place.clone())) else { continue };
                let before = owned.range(..=ports.last()).next_back();
                if let Some((first, (_, owner))) = before.filter(|(_, (last, _))| *last >= ports.first()) {
                    return Some(Claimed {
                        owner: *owner,
                        protocol: *protocol,
                        port: ports.first().max(*first),
                    });
                }
            }
        }
        None
    }
}

fn places(wish: &Wish, external: &External<'_>) -> Vec<Place> {
    let mut places: Vec<Place> = external.addresses(wish).into_iter().map(Place::Address).collect();
    match (wish.spec.host, &wish.uplink) {
        (Some(_), _) => {}
        (None, Some(name)) => places.push(Place::Uplink(name.clone())),
        (None, None) => {
            places.push(Place::Every);
            places.extend(external.uplinks().iter().map(|name| Place::Uplink((*name).to_owned())));
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use vmnat_common::Address;

    use super::*;
    use crate::facts::{AddressFact, Facts, LinkFact};

    fn wish(text: &str) -> Wish {
        let (spec, uplink) = text.split_once('@').map_or((text, None), |(spec, uplink)| (spec, Some(uplink)));
        Wish { uplink: uplink.map(str::to_owned), ..Wish::plain(spec.parse().unwrap()) }
    }

    #[test]
    fn forwards_meet_where_an_external_endpoint_is_shared() {
        let link = |index, name: &str| LinkFact { index, name: name.into(), ..LinkFact::default() };
        let address = |index, octets| AddressFact {
            index,
            address: Address::new(octets),
            prefix: 24,
            secondary: false,
        };
        let facts = Facts {
            links: vec![link(1, "e1"), link(2, "e2")],
            addresses: vec![address(1, [192, 0, 2, 1])],
            ..Facts::default()
        };
        let external = External::new(&facts, &[&facts.links[0], &facts.links[1]]);
        for (one, other, port) in [
            ("80:a:80", "80:b:80", Some(80)),
            ("80:a:80", "81:a:80", None),
            ("80:a:80", "80:b:80/udp", None),
            ("80:a:80/udp", "80:b:80/tcp+udp", Some(80)),
            ("80:a:80", "192.0.2.1:80:b:80", Some(80)),
            ("80:a:80", "192.0.2.2:80:b:80", None),
            ("80:a:80", "127.0.0.1:80:b:80", Some(80)),
            ("80:a:80@e1", "127.0.0.1:80:b:80", None),
            ("80:a:80@e1", "192.0.2.1:80:b:80", Some(80)),
            // An uplink without an address yet.
            ("80:a:80", "80:b:80@e2", Some(80)),
            ("80:a:80@e1", "80:b:80@e2", None),
            ("80:a:80@e2", "80:b:80@e2", Some(80)),
            ("80-89:a:80-89", "85:b:80", Some(85)),
            ("80-89:a:80-89", "89-99:b:80-90", Some(89)),
            ("80-89:a:80-89", "90-99:b:80-89", None),
            ("85:a:80", "80-89:b:80-89", Some(85)),
        ] {
            let mut claims = Claims::default();
            claims.claim(&wish(one), &external, 7);
            let found = claims.find(&wish(other), &external);
            assert_eq!(found.map(|found| found.port), port, "{one} and {other}");
            assert!(found.is_none_or(|found| found.owner == 7));
        }
    }
}
