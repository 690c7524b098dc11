//! Which address a client gets, and whether it may have the one that it names. No I/O.

use std::{
    collections::{HashMap, HashSet},
    net::Ipv4Addr,
};

use vmnat_common::Mac;

use super::{book::Book, book::Client, libvirt::StaticLease, network::Network, question::Question};

/// All that an address may be promised to.
#[derive(Clone, Copy, Debug)]
pub struct Around<'a> {
    /// The network.
    pub network: &'a Network,
    /// Our leases.
    pub book: &'a Book,
    /// Leases of other servers that are in force.
    pub taken: &'a HashMap<Ipv4Addr, Mac>,
    /// What was offered a moment ago.
    pub offered: &'a HashMap<Ipv4Addr, Client>,
    /// Addresses that somebody has without a lease.
    pub barred: &'a HashSet<Ipv4Addr>,
    /// Second since 1970.
    pub now: u64,
}

/// An address for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The address.
    pub address: Ipv4Addr,
    /// Nobody is known to have had it: ask the wire first.
    pub is_fresh: bool,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The client has the address.
    Granted(Ipv4Addr),
    /// It must begin anew.
    Refused,
    /// It has chosen another server.
    Elsewhere(Ipv4Addr),
}

impl Around<'_> {
    /// The address for a client that looks for one: the one of its own, the one that it had, the one that it would like, any.
    #[must_use]
    pub fn choose(&self, question: &Question) -> Option<Choice> {
        let client = &question.client;
        let known = |address| Choice { address, is_fresh: false };
        let fresh = |address| Choice { address, is_fresh: true };
        if let Some(host) = self.host_of(question) {
            return self.may_have(client, host.address).then(|| known(host.address));
        }
        let is_here = |address| self.network.subnet.contains(&address);
        let had = self.book.of(client, is_here);
        let had = had.or_else(|| self.taken.iter().find(|(_, mac)| **mac == client.mac).map(|(at, _)| *at));
        if let Some(address) = had.filter(|address| self.may_have(client, *address)) {
            return Some(known(address));
        }
        let offered = self.offered.iter().find(|(_, to)| *to == client).map(|(address, _)| *address);
        if let Some(address) = offered.filter(|address| self.may_have(client, *address)) {
            return Some(known(address));
        }
        let is_free = |address: &Ipv4Addr| self.is_free(*address) && self.may_have(client, *address);
        question.requested.filter(is_free).or_else(|| self.candidates(client.mac).find(is_free)).map(fresh)
    }

    /// Whether a client that asks for an address gets it (RFC 2131 section 4.3.2).
    #[must_use]
    pub fn judge(&self, question: &Question) -> Verdict {
        let gateway = self.network.gateway;
        if let Some(server) = question.server.filter(|server| *server != gateway) {
            return Verdict::Elsewhere(server);
        }
        let has = Some(question.has).filter(|address| !address.is_unspecified());
        match question.requested.or(has) {
            Some(address) if self.may_have(&question.client, address) => Verdict::Granted(address),
            _ => Verdict::Refused,
        }
    }

    /// The name of the guest with an address: the network's, else its own unless another has it.
    #[must_use]
    pub fn name(&self, question: &Question, address: Ipv4Addr) -> Option<String> {
        let given = self.host_of(question).filter(|host| host.address == address);
        let given = given.and_then(|host| host.name.clone());
        let own = || question.name.clone().filter(|name| self.may_be_called(name, address));
        given.or_else(own)
    }

    fn may_be_called(&self, name: &str, address: Ipv4Addr) -> bool {
        let is_given =
            |host: &StaticLease| host.name.as_deref().is_some_and(|own| own.eq_ignore_ascii_case(name));
        !self.network.hosts.iter().any(is_given) && !self.book.names_another(name, address, self.now)
    }

    /// The static lease of a client: by its MAC, or by its name where the lease has no MAC.
    fn host_of(&self, question: &Question) -> Option<&StaticLease> {
        let hosts = || self.network.hosts.iter();
        let by_name =
            |host: &&StaticLease| host.mac.is_none() && host.name.is_some() && host.name == question.name;
        hosts().find(|host| host.mac == Some(question.client.mac)).or_else(|| hosts().find(by_name))
    }

    /// True where nothing speaks against the client's having the address.
    fn may_have(&self, client: &Client, address: Ipv4Addr) -> bool {
        let network = self.network;
        let host = network.hosts.iter().find(|host| host.address == address);
        let is_anothers_own = host.is_some_and(|host| host.mac.is_some_and(|mac| mac != client.mac));
        // The operator's own words come first, and libvirt's do not contradict them.
        let own = network.hosts.iter().find(|host| host.mac == Some(client.mac));
        let has_other_own = own.is_some_and(|own| own.address != address);
        let entry = self.book.at(address).filter(|entry| entry.expires > self.now);
        let is_leased = entry.is_some_and(|entry| entry.client.mac != client.mac);
        let is_taken = self.taken.get(&address).is_some_and(|mac| *mac != client.mac);
        let is_offered = self.offered.get(&address).is_some_and(|other| other != client);
        let is_barred = entry.is_none() && self.barred.contains(&address);
        let is_given =
            host.is_some() || network.range_of(address).is_some() || self.taken.contains_key(&address);
        network.may_be_given(address)
            && is_given
            && !(is_anothers_own || has_other_own || is_leased || is_taken || is_offered || is_barred)
    }

    /// True for an address that nobody has, had, or is to have.
    fn is_free(&self, address: Ipv4Addr) -> bool {
        let is_leased = self.book.at(address).is_some_and(|entry| entry.expires > self.now);
        let is_reserved = self.network.hosts.iter().any(|host| host.address == address);
        !is_leased
            && !is_reserved
            && !self.taken.contains_key(&address)
            && !self.barred.contains(&address)
            && self.network.range_of(address).is_some()
    }

    /// Every address of the ranges, beginning where dnsmasq begins for that MAC: a client that either of the two serves first
    /// gets the same from the other, as far as it is free.
    fn candidates(&self, mac: Mac) -> impl Iterator<Item = Ipv4Addr> {
        let start = sdbm(mac);
        self.network.ranges.iter().flat_map(move |range| {
            let (first, size) = (u32::from(range.first), range.size().max(1));
            let offset = start.checked_rem(size).unwrap_or(0);
            let at = move |step: u32| offset.wrapping_add(step).checked_rem(size).unwrap_or(0);
            (0..size).map(move |step| Ipv4Addr::from(first.wrapping_add(at(step))))
        })
    }
}

/// The hash by which dnsmasq chooses (`address_allocate()` of its `dhcp.c`).
fn sdbm(mac: Mac) -> u32 {
    mac.bytes().iter().fold(0, |hash: u32, byte| {
        u32::from(*byte)
            .wrapping_add(hash.wrapping_shl(6))
            .wrapping_add(hash.wrapping_shl(16))
            .wrapping_sub(hash)
    })
}

#[cfg(test)]
mod tests {
    use dhcproto::v4::MessageType;

    use super::*;
    use crate::dhcp::{book::Entry, spec::DhcpRange};

    fn mac(last: u8) -> Mac {
        Mac::new([0x52, 0x54, 0, 0, 0, last])
    }

    fn address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, last)
    }

    fn question(kind: MessageType, last: u8) -> Question {
        Question {
            kind,
            xid: 7,
            client: Client { mac: mac(last), id: None },
            broadcast: false,
            has: Ipv4Addr::UNSPECIFIED,
            requested: None,
            server: None,
            wanted: None,
            name: None,
        }
    }

    /// What speaks for and against addresses, of a test's own.
    struct Case {
        network: Network,
        book: Book,
        taken: HashMap<Ipv4Addr, Mac>,
        offered: HashMap<Ipv4Addr, Client>,
        barred: HashSet<Ipv4Addr>,
    }

    impl Case {
        /// 10.0.0.0/24 with four addresses to give, and one that guest 9 always gets.
        fn new() -> Self {
            let network = Network {
                index: 2,
                bridge: "virbr0".into(),
                mac: mac(1),
                subnet: "10.0.0.0/24".parse().unwrap(),
                gateway: address(1),
                ranges: vec![DhcpRange { first: address(10), last: address(13), lease: 3600 }],
                hosts: vec![StaticLease {
                    mac: Some(mac(9)),
                    name: Some("web".into()),
                    address: address(11),
                }],
                dns: vec![address(1)],
                domain: None,
                mtu: None,
                routes: Vec::new(),
                files: Vec::new(),
            };
            let (taken, offered, barred) = (HashMap::new(), HashMap::new(), HashSet::new());
            Self { network, book: Book::default(), taken, offered, barred }
        }

        fn around(&self) -> Around<'_> {
            let Self { network, book, taken, offered, barred } = self;
            Around { network, book, taken, offered, barred, now: 1000 }
        }

        fn lease(&mut self, at: u8, to: u8, expires: u64) {
            let client = Client { mac: mac(to), id: None };
            self.book.note(address(at), Entry { client, name: Some(format!("g{to}")), expires, port: 0 });
        }

        fn chosen(&self, question: &Question) -> Option<(u8, bool)> {
            let choice = self.around().choose(question)?;
            Some((choice.address.octets()[3], choice.is_fresh))
        }
    }

    #[test]
    fn an_address_of_ones_own_goes_before_any_other() {
        let mut case = Case::new();
        let discover = |last| question(MessageType::Discover, last);
        assert_eq!(case.chosen(&discover(9)), Some((11, false)), "a static lease");
        let bound = StaticLease { mac: Some(mac(9)), name: None, address: address(77) };
        case.network.hosts.insert(0, bound);
        assert_eq!(case.chosen(&discover(9)), Some((77, false)), "what the operator says goes before it");
        case.lease(13, 2, 500);
        assert_eq!(case.chosen(&discover(2)), Some((13, false)), "the one that it had");
        case.taken.insert(address(12), mac(3));
        assert_eq!(
            case.chosen(&discover(3)),
            Some((12, false)),
            "the host's server has it down for this guest"
        );
        case.offered.insert(address(10), Client { mac: mac(4), id: None });
        assert_eq!(case.chosen(&discover(4)), Some((10, false)), "it was offered a moment ago");
        let wish = Question { requested: Some(address(13)), ..discover(5) };
        assert_eq!(case.chosen(&wish), Some((13, true)), "the lease of 2 has ended");
    }

    #[test]
    fn nobody_gets_what_is_anothers_and_at_the_end_nobody_gets_anything() {
        let mut case = Case::new();
        case.lease(10, 2, 2000);
        case.taken.insert(address(12), mac(3));
        let wish = |at| Question { requested: Some(address(at)), ..question(MessageType::Discover, 5) };
        for at in [1, 10, 11, 12, 200] {
            assert_eq!(case.chosen(&wish(at)), Some((13, true)), "{at}");
        }
        case.barred.insert(address(13));
        assert_eq!(case.chosen(&wish(13)), None);
    }

    #[test]
    fn clients_begin_at_different_places_of_the_range() {
        let case = Case::new();
        let starts: HashSet<_> =
            (20..60).filter_map(|last| case.chosen(&question(MessageType::Discover, last))).collect();
        assert_eq!(starts.len(), 3, "{starts:?}");
    }

    #[test]
    fn a_request_is_granted_for_what_is_free_or_ones_own() {
        let mut case = Case::new();
        case.lease(10, 2, 2000);
        let ask =
            |last, at| Question { requested: Some(address(at)), ..question(MessageType::Request, last) };
        let judge = |question: &Question| case.around().judge(question);
        assert_eq!(judge(&ask(2, 10)), Verdict::Granted(address(10)));
        assert_eq!(judge(&ask(3, 10)), Verdict::Refused);
        assert_eq!(judge(&ask(3, 12)), Verdict::Granted(address(12)), "it knows it from before a loss");
        assert_eq!(judge(&ask(3, 11)), Verdict::Refused, "a static lease of another");
        assert_eq!(judge(&ask(9, 12)), Verdict::Refused, "it has an address of its own");
        assert_eq!(judge(&ask(3, 99)), Verdict::Refused, "of no range");
        let elsewhere = Ipv4Addr::new(192, 168, 5, 5);
        let moved = Question { has: elsewhere, ..question(MessageType::Request, 3) };
        assert_eq!(judge(&moved), Verdict::Refused, "of another network");
        let renews = Question { has: address(10), ..question(MessageType::Request, 2) };
        assert_eq!(judge(&renews), Verdict::Granted(address(10)));
        let chosen = Question { server: Some(address(77)), ..ask(2, 10) };
        assert_eq!(judge(&chosen), Verdict::Elsewhere(address(77)));
    }

    #[test]
    fn a_name_is_the_networks_or_the_clients_but_never_anothers() {
        let mut case = Case::new();
        case.lease(10, 2, 2000);
        let called =
            |last, name: &str| Question { name: Some(name.into()), ..question(MessageType::Request, last) };
        let name = |question: &Question, at| case.around().name(question, address(at));
        assert_eq!(name(&called(9, "other"), 11).as_deref(), Some("web"));
        assert_eq!(name(&called(3, "mail"), 12).as_deref(), Some("mail"));
        assert_eq!(name(&called(3, "g2"), 12), None);
        assert_eq!(name(&called(3, "WEB"), 12), None);
    }
}
