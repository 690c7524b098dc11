//! The server's messages, and where they go.

use std::net::Ipv4Addr;

use dhcproto::{
    Encodable as _,
    v4::{DhcpOption, Flags, Message, MessageType, Opcode, OptionCode},
};
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
