//! Translations that the kernel's connection tracking holds for guests, so that vmnat can take them over with their
//! exact ports and no download dies when it replaces netfilter's masquerade.
//!
//! An entry has two tuples: of the original direction, and of the replies that it awaits. Where the replies go to
//! another address than the original came from, the source was translated; where they come from another than the
//! original went to, the destination was. Both at once is a hairpin or a redirect, which cannot be taken over.

use std::{fmt, io, net::Ipv4Addr};

use ipnet::Ipv4Net;
use netlink_sys::protocols::NETLINK_NETFILTER;
use vmnat_common::{Address, Endpoint, Port, Protocol, tcp_state::Seen, wire::icmp};

use crate::netlink::{Attributes, array, dump};

/// `NFNL_SUBSYS_CTNETLINK` and `IPCTNL_MSG_CT_GET`.
const CT_GET: u16 = 0x0101;

/// Bytes of `struct nfgenmsg`: family, version, resource.
const NFGENMSG: usize = 4;

/// Types of attributes: `enum ctattr_type` and those nested in it, `linux/netfilter/nfnetlink_conntrack.h`.
mod attribute {
    pub(super) const TUPLE_ORIGINAL: u16 = 1;
    pub(super) const TUPLE_REPLY: u16 = 2;
    pub(super) const STATUS: u16 = 3;
    pub(super) const PROTOCOL_INFO: u16 = 4;

    pub(super) const TUPLE_IP: u16 = 1;
    pub(super) const TUPLE_PROTOCOL: u16 = 2;

    pub(super) const IPV4_SOURCE: u16 = 1;
    pub(super) const IPV4_DESTINATION: u16 = 2;

    pub(super) const PROTOCOL_NUMBER: u16 = 1;
    pub(super) const SOURCE_PORT: u16 = 2;
    pub(super) const DESTINATION_PORT: u16 = 3;
    pub(super) const ICMP_ID: u16 = 4;
    pub(super) const ICMP_TYPE: u16 = 5;

    pub(super) const TCP: u16 = 1;
    pub(super) const TCP_STATE: u16 = 1;
    pub(super) const TCP_FLAGS_ORIGINAL: u16 = 4;
    pub(super) const TCP_FLAGS_REPLY: u16 = 5;
}

/// `IPS_SEEN_REPLY`.
const SEEN_REPLY: u32 = 2;

/// `IP_CT_TCP_FLAG_CLOSE_INIT`: this side sent the first FIN.
const CLOSE_INIT: u8 = 4;

/// A guest's translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Protocol.
    pub protocol: Protocol,
    /// The guest's endpoint.
    pub internal: Endpoint,
    /// The remote's endpoint; of an ICMP query, with [`icmp::far_port`].
    pub remote: Endpoint,
    /// The external endpoint.
    pub external: Endpoint,
    /// [`Seen`] bits of the guest's direction; zero unless TCP.
    pub seen_outbound: u8,
    /// [`Seen`] bits of the remote's direction; zero unless TCP.
    pub seen_inbound: u8,
    /// A packet has gone in the reply's direction.
    pub replied: bool,
    /// Opened by the remote through a port forward (DNAT).
    pub forwarded: bool,
}

/// Why there is nothing to take over.
#[derive(Debug)]
pub struct Unavailable(io::Error);

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.raw_os_error() {
            Some(libc::EPROTONOSUPPORT | libc::EINVAL | libc::EOPNOTSUPP) => {
                write!(f, "this kernel offers no list of connections (no nf_conntrack_netlink)")
            }
            Some(libc::EPERM) => write!(f, "listing the kernel's connections needs CAP_NET_ADMIN"),
            _ => write!(f, "the kernel's connections cannot be listed: {}", self.0),
        }
    }
}

impl std::error::Error for Unavailable {}

/// The translations of guests in `networks`, in the network namespace of the calling thread.
///
/// # Errors
/// [`Unavailable`], with the reason; nothing needs to be taken over then.
pub fn translations(networks: &[Ipv4Net]) -> Result<Vec<Translation>, Unavailable> {
    let mut found = Vec::new();
    let ipv4 = [u8::try_from(libc::AF_INET).unwrap_or_default(), 0, 0, 0];
    dump(NETLINK_NETFILTER, CT_GET, &ipv4, |message| found.extend(decode(message.body, networks)))
        .map_err(Unavailable)?;
    Ok(found)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Original,
    Reply,
}

/// One direction of an entry. An ICMP query has its identifier as the port of who asks, and its far port as the
/// port of who answers, in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tuple {
    protocol: Protocol,
    source: Endpoint,
    destination: Endpoint,
}

/// The translation in an entry; none where a guest's is not in it, or it has ended.
pub(crate) fn decode(body: &[u8], networks: &[Ipv4Net]) -> Option<Translation> {
    let attributes = Attributes(body.get(NFGENMSG..)?);
    let original = tuple(attributes.find(attribute::TUPLE_ORIGINAL)?, Direction::Original)?;
    let reply = tuple(attributes.find(attribute::TUPLE_REPLY)?, Direction::Reply)?;
    let is_guest =
        |endpoint: Endpoint| networks.iter().any(|net| net.contains(&Ipv4Addr::from(endpoint.address)));
    let translated_source = reply.destination != original.source && is_guest(original.source);
    let translated_destination = reply.source != original.destination && is_guest(reply.source);
    let status = attributes.find(attribute::STATUS).and_then(|value| array(value, 0));
    let replied = status.is_some_and(|bytes| u32::from_be_bytes(bytes) & SEEN_REPLY != 0);
    let (by_originator, by_responder) = tcp_bits(original.protocol, &attributes)?;
    match (translated_source, translated_destination) {
        (true, false) if reply.source == original.destination && !is_guest(reply.source) => {
            Some(Translation {
                protocol: original.protocol,
                internal: original.source,
                remote: original.destination,
                external: reply.destination,
                seen_outbound: by_originator,
                seen_inbound: by_responder,
                replied,
                forwarded: false,
            })
        }
        (false, true) if reply.destination == original.source && !is_guest(original.source) => {
            (original.protocol != Protocol::Icmp).then_some(Translation {
                protocol: original.protocol,
                internal: reply.source,
                remote: original.source,
                external: original.destination,
                seen_outbound: by_responder,
                seen_inbound: by_originator,
                replied,
                forwarded: true,
            })
        }
        _ => None,
    }
}

fn tuple(bytes: &[u8], direction: Direction) -> Option<Tuple> {
    let parts = Attributes(bytes);
    let ip = Attributes(parts.find(attribute::TUPLE_IP)?);
    let layer4 = Attributes(parts.find(attribute::TUPLE_PROTOCOL)?);
    let address = |kind| Some(Address::new(array(ip.find(kind)?, 0)?));
    let port = |kind| Some(Port::new(u16::from_be_bytes(array(layer4.find(kind)?, 0)?)));
    let byte = |kind| layer4.find(kind)?.first().copied();
    let protocol = Protocol::from_number(byte(attribute::PROTOCOL_NUMBER)?)?;
    let (source, destination) = match protocol {
        Protocol::Tcp | Protocol::Udp | Protocol::Dccp | Protocol::Sctp | Protocol::UdpLite => {
            (port(attribute::SOURCE_PORT)?, port(attribute::DESTINATION_PORT)?)
        }
        Protocol::Icmp => {
            let identifier = port(attribute::ICMP_ID)?;
            let far = icmp::far_port(byte(attribute::ICMP_TYPE)?);
            match direction {
                Direction::Original => (identifier, far),
                Direction::Reply => (far, identifier),
            }
        }
    };
    Some(Tuple {
        protocol,
        source: Endpoint::new(address(attribute::IPV4_SOURCE)?, source),
        destination: Endpoint::new(address(attribute::IPV4_DESTINATION)?, destination),
    })
}

/// The [`Seen`] bits of who opened the connection and of who answers; none when it has ended.
///
/// The kernel keeps one state for both (`enum tcp_conntrack`); which side closed first stands in the flags.
fn tcp_bits(protocol: Protocol, entry: &Attributes<'_>) -> Option<(u8, u8)> {
    if protocol != Protocol::Tcp {
        return Some((0, 0));
    }
    let info = Attributes(entry.find(attribute::PROTOCOL_INFO)?);
    let tcp = Attributes(info.find(attribute::TCP)?);
    let byte = |kind| tcp.find(kind).and_then(|value| value.first()).copied();
    let open = Seen::SYN | Seen::ACK;
    let responder_closed = byte(attribute::TCP_FLAGS_REPLY).unwrap_or(0) & CLOSE_INIT != 0
        && byte(attribute::TCP_FLAGS_ORIGINAL).unwrap_or(0) & CLOSE_INIT == 0;
    match byte(attribute::TCP_STATE)? {
        // SYN_SENT
        1 => Some((Seen::SYN, 0)),
        // SYN_RECV and SYN_SENT2
        2 | 9 => Some((Seen::SYN, Seen::SYN)),
        // ESTABLISHED
        3 => Some((open, open)),
        // FIN_WAIT and CLOSE_WAIT
        4 | 5 if responder_closed => Some((open, open | Seen::FIN)),
        4 | 5 => Some((open | Seen::FIN, open)),
        // LAST_ACK and TIME_WAIT
        6 | 7 => Some((open | Seen::FIN, open | Seen::FIN)),
        // NONE and CLOSE
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bodies of a dump of Linux 6.18 on a little-endian machine, behind `nft masquerade` on 203.0.113.2 with a
    /// port forward from 8080 to 192.168.77.11:80; the remote is 203.0.113.1.
    mod dump {
        pub(super) const ESTABLISHED: &str = "02000000340001801400018008000100c0a84d0a08000200cb0071011c000280050001000600000006000200a05200000600030023280000340002801400018008000100cb00710108000200cb0071021c0002800500010006000000060002002328000006000300a0520000080003000000019e080008000000000008000c0030a10a6308000b0000000001080007000006975e300004802c0001800500010003000000050002000a000000050003000a00000006000400230000000600050023000000";
        pub(super) const GUEST_CLOSED: &str = "02000000340001801400018008000100c0a84d0a08000200cb0071011c000280050001000600000006000200a04400000600030023280000340002801400018008000100cb00710108000200cb0071021c0002800500010006000000060002002328000006000300a0440000080003000000019e080008000000000008000c00336914e808000b0000000001080007000000001a300004802c0001800500010005000000050002000a000000050003000a00000006000400270000000600050023000000";
        pub(super) const FORWARDED: &str = "02000000340001801400018008000100cb00710108000200cb0071021c000280050001000600000006000200eb800000060003001f900000340002801400018008000100c0a84d0b08000200cb0071011c0002800500010006000000060002000050000006000300eb80000008000300000001ae080008000000000008000c007641841508000b0000000001080007000006975e300004802c0001800500010003000000050002000a000000050003000a00000006000400230000000600050023000000";
        pub(super) const UDP_OTHER_PORT: &str = "02000000340001801400018008000100c0a84d0a08000200cb0071011c000280050001001100000006000200115c00000600030015b30000340002801400018008000100cb00710108000200cb0071021c00028005000100110000000600020015b30000060003003bbe00000800030000000198080008000000000008000c0058c2f9a408000b0000000001080007000000001c";
        pub(super) const ECHO: &str = "020000003c0001801400018008000100c0a84d0a08000200cb0071012400028005000100010000000600040012340000050005000800000005000600000000003c0002801400018008000100cb00710108000200cb007102240002800500010001000000060004001234000005000500000000000500060000000000080003000000019a080008000000000008000c00afe96b2908000b0000000001080007000000001b";
        pub(super) const IGMP: &str = "02000000240001801400018008000100c0a84d0108000200e00000160c0002800500010002000000240002801400018008000100e000001608000200c0a84d010c00028005000100020000000800030000000188080008000000000008000c006a33a9f308000b000000000108000700000000bd";
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<_> =
            hex.chars().map(|digit| u8::try_from(digit.to_digit(16).unwrap()).unwrap()).collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    fn decoded(hex: &str) -> Option<Translation> {
        decode(&bytes(hex), &["192.168.77.0/24".parse().unwrap()])
    }

    fn endpoint(octets: [u8; 4], port: u16) -> Endpoint {
        Endpoint::new(Address::new(octets), Port::new(port))
    }

    const OPEN: u8 = Seen::SYN | Seen::ACK;

    #[test]
    fn a_connection_of_a_guest_is_taken_over_as_it_stands() {
        let expected = Translation {
            protocol: Protocol::Tcp,
            internal: endpoint([192, 168, 77, 10], 41_042),
            remote: endpoint([203, 0, 113, 1], 9000),
            external: endpoint([203, 0, 113, 2], 41_042),
            seen_outbound: OPEN,
            seen_inbound: OPEN,
            replied: true,
            forwarded: false,
        };
        assert_eq!(decoded(dump::ESTABLISHED), Some(expected));
        let closed = decoded(dump::GUEST_CLOSED).unwrap();
        assert_eq!((closed.seen_outbound, closed.seen_inbound), (OPEN | Seen::FIN, OPEN));
    }

    #[test]
    fn a_port_forward_is_seen_from_the_guest() {
        let expected = Translation {
            protocol: Protocol::Tcp,
            internal: endpoint([192, 168, 77, 11], 80),
            remote: endpoint([203, 0, 113, 1], 60_288),
            external: endpoint([203, 0, 113, 2], 8080),
            seen_outbound: OPEN,
            seen_inbound: OPEN,
            replied: true,
            forwarded: true,
        };
        assert_eq!(decoded(dump::FORWARDED), Some(expected));
    }

    #[test]
    fn a_port_that_was_changed_is_kept_as_it_is() {
        let udp = decoded(dump::UDP_OTHER_PORT).unwrap();
        assert_eq!(udp.internal, endpoint([192, 168, 77, 10], 4444));
        assert_eq!(udp.external, endpoint([203, 0, 113, 2], 15_294));
        assert!(!udp.replied);
    }

    #[test]
    fn an_echo_has_its_identifier_near_and_its_type_far() {
        let echo = decoded(dump::ECHO).unwrap();
        assert_eq!(echo.internal, endpoint([192, 168, 77, 10], 0x1234));
        assert_eq!(echo.external, endpoint([203, 0, 113, 2], 0x1234));
        assert_eq!(echo.remote, endpoint([203, 0, 113, 1], 8));
        assert!(echo.replied);
    }

    #[test]
    fn what_is_no_guests_is_left_alone() {
        assert_eq!(decoded(dump::IGMP), None);
        assert_eq!(decode(&bytes(dump::ESTABLISHED), &["10.0.0.0/8".parse().unwrap()]), None);
    }

    proptest! {
        #[test]
        fn decoding_never_panics(at in 0usize..196, value in any::<u8>(), end in 0usize..=196) {
            let mut body = bytes(dump::ESTABLISHED);
            body[at] = value;
            let _ = decode(&body[..end], &["0.0.0.0/0".parse().unwrap()]);
        }
    }
}
