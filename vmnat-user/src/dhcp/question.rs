//! What a client asks: the parts of its message that count, from bytes that may be hostile.

use std::net::Ipv4Addr;

use dhcproto::{
    Decodable as _, Decoder,
    v4::{DhcpOption, Message, MessageType, Opcode, OptionCode},
};
use vmnat_common::Mac;

use super::book::Client;

/// Bytes of a message before its options, with the cookie that makes it DHCP.
const HEAD: usize = 240;

/// The longest client identifier that is kept.
const LONGEST_ID: usize = 64;

/// A client's message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// What it is.
    pub kind: MessageType,
    /// The client's number of the conversation.
    pub xid: u32,
    /// Who asks.
    pub client: Client,
    /// It cannot hear what is sent to its address alone yet.
    pub broadcast: bool,
    /// The address that it has, or unspecified.
    pub has: Ipv4Addr,
    /// The address that it would like.
    pub requested: Option<Ipv4Addr>,
    /// The server that it has chosen.
    pub server: Option<Ipv4Addr>,
    /// The options that it wants to be told; none where it does not say.
    pub wanted: Option<Vec<OptionCode>>,
    /// The name that it gives itself, where it is one that a host may have.
    pub name: Option<String>,
}

/// What a message on the wire is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A client's.
    Question(Box<Question>),
    /// A server's to a client.
    Answer {
        /// The server.
        server: Option<Ipv4Addr>,
    },
}

/// Reads a message; none for one that is no Ethernet client's, came by a relay, or is broken.
#[must_use]
pub fn read(payload: &[u8]) -> Option<Heard> {
    // Hardware type and length of its address: the decoder believes them.
    if payload.len() < HEAD || payload.get(1..3)? != [1, 6] || payload.get(236..HEAD)? != [99, 130, 83, 99] {
        return None;
    }
    let message = Message::decode(&mut Decoder::new(payload)).ok()?;
    let options = message.opts();
    let kind = options.msg_type()?;
    let server = match options.get(OptionCode::ServerIdentifier) {
        Some(DhcpOption::ServerIdentifier(server)) => Some(*server),
        _ => None,
    };
    if message.opcode() == Opcode::BootReply {
        return Some(Heard::Answer { server });
    }
    let mac = Mac::new(*message.chaddr().first_chunk()?);
    if message.opcode() != Opcode::BootRequest || !message.giaddr().is_unspecified() || mac.is_group() {
        return None;
    }
    let requested = match options.get(OptionCode::RequestedIpAddress) {
        Some(DhcpOption::RequestedIpAddress(address)) => Some(*address),
        _ => None,
    };
    let wanted = match options.get(OptionCode::ParameterRequestList) {
        Some(DhcpOption::ParameterRequestList(list)) => Some(list.clone()),
        _ => None,
    };
    let name = match options.get(OptionCode::Hostname) {
        Some(DhcpOption::Hostname(name)) => host_name(name),
        _ => None,
    };
    let id = match options.get(OptionCode::ClientIdentifier) {
        Some(DhcpOption::ClientIdentifier(id)) if !id.is_empty() => Some(id.clone()),
        _ => None,
    };
    let id = id.filter(|id| id.len() <= LONGEST_ID);
    Some(Heard::Question(Box::new(Question {
        kind,
        xid: message.xid(),
        client: Client { mac, id },
        broadcast: message.flags().broadcast(),
        has: message.ciaddr(),
        requested: requested.filter(|address| !address.is_unspecified()),
        server,
        wanted,
        name,
    })))
}

/// The name, where it is a host's (RFC 1123 section 2.1), without its domain.
fn host_name(name: &str) -> Option<String> {
    let name = name.trim_end_matches('\0').split('.').next().unwrap_or_default();
    let is_sound = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let is_name =
        !name.is_empty() && name.len() <= 63 && name.bytes().all(is_sound) && !name.starts_with('-');
    is_name.then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_a_host_may_have() {
        assert_eq!(host_name("web"), Some("web".into()));
        assert_eq!(host_name("web.example.org"), Some("web".into()));
        assert_eq!(host_name("web\0"), Some("web".into()));
        for name in ["", ".", "-web", "a b", "a\nb", "*", &"x".repeat(64)] {
            assert_eq!(host_name(name), None, "{name:?}");
        }
    }

    #[test]
    fn a_message_with_a_long_hardware_address_or_no_cookie_is_nothing() {
        let mut payload = vec![0; 300];
        payload[..3].copy_from_slice(&[1, 1, 6]);
        payload[236..240].copy_from_slice(&[99, 130, 83, 99]);
        payload[240..244].copy_from_slice(&[53, 1, 1, 255]);
        assert!(matches!(read(&payload), Some(Heard::Question(_))));
        for (at, byte) in [(2, 255), (2, 16), (1, 6), (236, 0), (24, 1)] {
            let mut broken = payload.clone();
            broken[at] = byte;
            assert_eq!(read(&broken), None, "{at}");
        }
    }
}
