//! The server's messages, and where they go.

use std::net::Ipv4Addr;

use dhcproto::{
    Encodable as _,
    v4::{DhcpOption, Flags, Message, MessageType, Opcode, OptionCode},
};
use ipnet::Ipv4Net;
use vmnat_common::Mac;

use super::{frame, network::Network, question::Question};

/// The smallest message that every client takes (RFC 951 section 3).
const SMALLEST: usize = 300;

/// A frame that gives or confirms an address; `lease` is none for a client that has its address from elsewhere.
#[must_use]
pub fn grant(
    network: &Network,
    question: &Question,
    kind: MessageType,
    address: Ipv4Addr,
    lease: Option<u32>,
    name: Option<&str>,
) -> Vec<u8> {
    let mut message = begin(network, question, kind);
    let options = message.opts_mut();
    if let Some(lease) = lease {
        options.insert(DhcpOption::AddressLeaseTime(lease));
        // RFC 2131 section 4.4.5: after a half, and after seven eighths.
        options.insert(DhcpOption::Renewal(lease / 2));
        options.insert(DhcpOption::Rebinding(lease.saturating_sub(lease / 8)));
    }
    options.insert(DhcpOption::SubnetMask(network.subnet.netmask()));
    options.insert(DhcpOption::BroadcastAddr(network.subnet.broadcast()));
    options.insert(DhcpOption::Router(vec![network.gateway]));
    options.insert(DhcpOption::DomainNameServer(network.dns.clone()));
    if let Some(domain) = &network.domain {
        options.insert(DhcpOption::DomainName(domain.clone()));
    }
    let wants = |code| question.wanted.as_ref().is_none_or(|wanted| wanted.contains(&code));
    if let Some(name) = name.filter(|_| wants(OptionCode::Hostname)) {
        options.insert(DhcpOption::Hostname(name.to_owned()));
    }
    if let Some(mtu) = network.mtu.filter(|_| wants(OptionCode::InterfaceMtu)) {
        options.insert(DhcpOption::InterfaceMtu(mtu));
    }
    if !network.routes.is_empty() && wants(OptionCode::ClasslessStaticRoute) {
        // Who takes this option ignores the router's (RFC 3442).
        let default = (Ipv4Net::default(), network.gateway);
        let routes = network.routes.iter().copied().chain([default]).collect();
        options.insert(DhcpOption::ClasslessStaticRoute(routes));
    }
    if lease.is_some() {
        message.set_yiaddr(address);
    }
    let to = if !question.has.is_unspecified() {
        (question.client.mac, question.has)
    } else if question.broadcast {
        everybody()
    } else {
        (question.client.mac, address)
    };
    wrap(network, &message, to)
}

/// A frame that tells a client to begin anew.
#[must_use]
pub fn refuse(network: &Network, question: &Question) -> Vec<u8> {
    wrap(network, &begin(network, question, MessageType::Nak), everybody())
}

fn begin(network: &Network, question: &Question, kind: MessageType) -> Message {
    let none = Ipv4Addr::UNSPECIFIED;
    let has = if kind == MessageType::Ack { question.has } else { none };
    let mut message = Message::new_with_id(question.xid, has, none, none, none, &question.client.mac.bytes());
    message.set_opcode(Opcode::BootReply);
    if question.broadcast {
        message.set_flags(Flags::default().set_broadcast());
    }
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    message.opts_mut().insert(DhcpOption::ServerIdentifier(network.gateway));
    message
}

fn everybody() -> (Mac, Ipv4Addr) {
    (Mac::new([0xff; 6]), Ipv4Addr::BROADCAST)
}

fn wrap(network: &Network, message: &Message, (mac, address): (Mac, Ipv4Addr)) -> Vec<u8> {
    // All options are of our own making, and short.
    let mut payload = message.to_vec().unwrap_or_default();
    payload.resize(payload.len().max(SMALLEST), 0);
    frame::answer(network.mac, mac, network.gateway, address, &payload)
}

#[cfg(test)]
mod tests {
    use dhcproto::{Decodable as _, Decoder};

    use super::*;
    use crate::dhcp::{book::Client, frame::Carried};

    fn network() -> Network {
        Network {
            index: 2,
            bridge: "virbr0".into(),
            mac: Mac::new([2; 6]),
            subnet: "10.0.0.0/24".parse().unwrap(),
            gateway: [10, 0, 0, 1].into(),
            ranges: Vec::new(),
            hosts: Vec::new(),
            dns: vec![[10, 0, 0, 1].into()],
            domain: Some("lab.test".into()),
            mtu: Some(1400),
            routes: vec![("10.8.0.0/16".parse().unwrap(), [10, 0, 0, 9].into())],
            files: Vec::new(),
        }
    }

    fn question() -> Question {
        Question {
            kind: MessageType::Request,
            xid: 7,
            client: Client { mac: Mac::new([4; 6]), id: None },
            broadcast: false,
            has: Ipv4Addr::UNSPECIFIED,
            requested: None,
            server: None,
            wanted: Some(vec![OptionCode::InterfaceMtu]),
            name: None,
        }
    }

    const GIVEN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 7);

    fn sent(question: &Question) -> (Vec<u8>, Ipv4Addr, Message) {
        let frame = grant(&network(), question, MessageType::Ack, GIVEN, Some(800), Some("web"));
        let Some(Carried::Dhcp(datagram)) = frame::read(&frame) else { panic!("{frame:?}") };
        let message = Message::decode(&mut Decoder::new(datagram.payload)).unwrap();
        assert!(datagram.payload.len() >= SMALLEST);
        (frame[..6].to_vec(), datagram.destination, message)
    }

    #[test]
    fn an_answer_says_what_a_client_needs_and_what_it_asked_for() {
        let (.., message) = sent(&question());
        assert_eq!((message.yiaddr(), message.xid(), message.opcode()), (GIVEN, 7, Opcode::BootReply));
        let has = |option: DhcpOption| message.opts().iter().any(|(_, found)| *found == option);
        assert!(has(DhcpOption::Renewal(400)) && has(DhcpOption::Rebinding(700)));
        assert!(has(DhcpOption::Router(vec![[10, 0, 0, 1].into()])));
        assert!(has(DhcpOption::ServerIdentifier([10, 0, 0, 1].into())));
        assert!(has(DhcpOption::InterfaceMtu(1400)));
        assert!(!message.opts().contains(OptionCode::Hostname), "nobody asked");
        let all = Question { wanted: None, ..question() };
        let (.., message) = sent(&all);
        let Some(DhcpOption::ClasslessStaticRoute(routes)) =
            message.opts().get(OptionCode::ClasslessStaticRoute)
        else {
            panic!("no routes");
        };
        assert_eq!(routes.len(), 2, "with the default one: {routes:?}");
    }

    #[test]
    fn an_answer_goes_where_its_client_hears_it() {
        let to = |question: &Question| {
            let (mac, address, _) = sent(question);
            (mac[0], address)
        };
        assert_eq!(to(&question()), (4, GIVEN));
        assert_eq!(to(&Question { broadcast: true, ..question() }), (0xff, Ipv4Addr::BROADCAST));
        let renews = Question { has: GIVEN, broadcast: true, ..question() };
        assert_eq!(to(&renews), (4, GIVEN), "it has its address");
        let refused = refuse(&network(), &renews);
        let Some(Carried::Dhcp(datagram)) = frame::read(&refused) else { panic!("{refused:?}") };
        assert_eq!(datagram.destination, Ipv4Addr::BROADCAST);
    }
}
