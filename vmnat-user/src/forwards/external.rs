//! External addresses: under which of the host's addresses a port forward stands.

use std::net::Ipv4Addr;

use super::Wish;
use crate::facts::{Facts, LinkFact};

/// The addresses of the host, as port forwards mean them.
#[derive(Debug)]
pub struct External<'a> {
    facts: &'a Facts,
    /// Names of the uplinks that exist.
    uplinks: Vec<&'a str>,
    every: Vec<Ipv4Addr>,
}

impl<'a> External<'a> {
    /// Looks at the uplinks that exist.
    #[must_use]
    pub fn new(facts: &'a Facts, uplinks: &[&'a LinkFact]) -> Self {
        // The host's own sockets call the forward there; no packet on a wire does.
        let mut every = vec![Ipv4Addr::LOCALHOST];
        every.extend(uplinks.iter().flat_map(|link| of(facts, link.index)));
        every.sort_unstable();
        every.dedup();
        Self { facts, uplinks: uplinks.iter().map(|link| link.name.as_str()).collect(), every }
    }

    /// The addresses of a port forward: the one that it names, those of the interface that it is bound to, or those of
    /// every uplink and 127.0.0.1.
    #[must_use]
    pub fn addresses(&self, wish: &Wish) -> Vec<Ipv4Addr> {
        match (wish.spec.host, &wish.uplink) {
            (Some(host), _) => vec![host],
            (None, Some(name)) => {
                let link = self.facts.link(name);
                let mut own: Vec<_> = link.into_iter().flat_map(|link| of(self.facts, link.index)).collect();
                own.sort_unstable();
                own.dedup();
                own
            }
            (None, None) => self.every.clone(),
        }
    }

    /// Names of the uplinks that exist.
    #[must_use]
    pub fn uplinks(&self) -> &[&'a str] {
        &self.uplinks
    }

    /// True for an address of any interface of the host.
    #[must_use]
    pub fn is_own(&self, address: Ipv4Addr) -> bool {
        address.is_loopback()
            || self.facts.addresses.iter().any(|fact| Ipv4Addr::from(fact.address) == address)
    }
}

fn of(facts: &Facts, index: u32) -> impl Iterator<Item = Ipv4Addr> {
    facts.addresses_of(index).map(|fact| fact.address.into())
}

#[cfg(test)]
mod tests {
    use vmnat_common::Address;

    use super::*;
    use crate::facts::AddressFact;

    #[test]
    fn a_forward_stands_where_it_was_asked_to() {
        let link = |index, name: &str| LinkFact { index, name: name.into(), ..LinkFact::default() };
        let address = |index, octets| AddressFact {
            index,
            address: Address::new(octets),
            prefix: 24,
            secondary: false,
        };
        let facts = Facts {
            links: vec![link(1, "enp3s0"), link(2, "enp4s0"), link(3, "virbr0")],
            addresses: vec![
                address(1, [198, 51, 100, 2]),
                address(1, [198, 51, 100, 3]),
                address(2, [203, 0, 113, 2]),
                address(3, [192, 168, 122, 1]),
            ],
            ..Facts::default()
        };
        let external = External::new(&facts, &[&facts.links[0], &facts.links[1]]);
        let of = |spec: &str, uplink: Option<&str>| {
            let mut wish = Wish::plain(spec.parse().unwrap());
            wish.uplink = uplink.map(str::to_owned);
            external.addresses(&wish).into_iter().map(|address| address.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(of("80:web:80", None), ["127.0.0.1", "198.51.100.2", "198.51.100.3", "203.0.113.2"]);
        assert_eq!(of("80:web:80", Some("enp3s0")), ["198.51.100.2", "198.51.100.3"]);
        assert_eq!(of("80:web:80", Some("gone")), Vec::<String>::new());
        assert_eq!(of("192.0.2.9:80:web:80", None), ["192.0.2.9"]);
        assert!(external.is_own([192, 168, 122, 1].into()) && !external.is_own([192, 0, 2, 9].into()));
    }
}
