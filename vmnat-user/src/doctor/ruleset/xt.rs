//! Conditions and targets of iptables ("xtables"), from the structs that both `ip_tables` and iptables-nft hand to the kernel
//! (`linux/netfilter/xt_*.h`). Numbers in them are native byte order.

use super::{
    Step,
    evaluate::{Known, Packet},
};
use crate::{netlink::array, nf_tables::text};

/// A condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// The addresses, interfaces and protocol that every rule of `ip_tables` has.
    Header(Box<Header>),
    /// States of the connection, as bits.
    State {
        /// The bits of which one must be.
        states: u32,
        /// None may be.
        is_not: bool,
    },
    /// Ports; of TCP or UDP where `protocol` says so.
    Ports {
        /// Its number; none: whatever it is.
        protocol: Option<u8>,
        /// First and last source port that match.
        sources: Vec<(u16, u16)>,
        /// First and last destination port that match.
        destinations: Vec<(u16, u16)>,
        /// Sources must not match, destinations must not.
        is_not: (bool, bool),
        /// One of both suffices.
        is_either: bool,
        /// Flags of TCP: looked at, and set.
        flags: Option<(u8, u8, bool)>,
    },
    /// ICMP type and codes.
    Icmp {
        /// 255: every one.
        kind: u8,
        /// First and last.
        codes: (u8, u8),
        /// It must not be.
        is_not: bool,
    },
    /// Types of addresses, a bit for each (`RTN_*`).
    AddressType {
        /// Of the source; 0: any.
        source: u16,
        /// Of the destination; 0: any.
        destination: u16,
        /// The source must not be, the destination must not be.
        is_not: (bool, bool),
    },
    /// The packet's mark.
    Mark {
        /// Its value.
        value: u32,
        /// Bits that count.
        mask: u32,
        /// It must not be.
        is_not: bool,
    },
    /// The packet is bridged (`physdev --physdev-is-bridged`).
    IsBridged {
        /// It must not be.
        is_not: bool,
    },
    /// A comment, or a rate that one packet does not exceed.
    Always(String),
    /// This cannot tell.
    Unknown(String),
}

/// `struct ipt_ip`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Source and its mask.
    pub source: ([u8; 4], [u8; 4]),
    /// Destination and its mask.
    pub destination: ([u8; 4], [u8; 4]),
    /// Where it came in; the mask tells a prefix (`eth+`) from a name.
    pub input: (String, bool),
    /// Where it goes out.
    pub output: (String, bool),
    /// Protocol; 0: every one.
    pub protocol: u16,
    /// What must not be (`IPT_INV_*`).
    pub inverted: u8,
}

/// `IPT_INV_VIA_IN` and on.
pub(super) const NOT_INPUT: u8 = 0x01;
pub(super) const NOT_OUTPUT: u8 = 0x02;
pub(super) const NOT_SOURCE: u8 = 0x08;
pub(super) const NOT_DESTINATION: u8 = 0x10;
pub(super) const NOT_PROTOCOL: u8 = 0x40;

/// Reads a condition's data.
pub(super) fn read(name: &str, revision: u32, data: &[u8]) -> Match {
    let found = match (name, revision) {
        ("comment", _) => Some(Match::Always(format!("/* {} */", text(data)))),
        ("limit", _) => Some(Match::Always("limit".into())),
        ("state", _) => word(data, 0).map(|states| Match::State { states, is_not: false }),
        ("conntrack", 1..=3) => connection(revision, data),
        ("tcp", _) => tcp(data),
        ("udp", _) => udp(data),
        ("multiport", _) => multiport(revision, data),
        ("icmp", _) => icmp(data),
        ("addrtype", _) => address_type(revision, data),
        ("mark", 1) => mark(data),
        ("physdev", _) => physical(data),
        _ => None,
    };
    found.unwrap_or_else(|| Match::Unknown(name.to_owned()))
}

/// The step of a target.
pub(super) fn target(name: &str) -> Step {
    match name {
        "REJECT" => Step::Reject,
        "MASQUERADE" | "SNAT" | "DNAT" | "REDIRECT" | "NETMAP" => Step::Translate(name.to_owned()),
        "MARK" | "CONNMARK" | "TPROXY" => Step::Blur(name.to_owned()),
        "LOG" | "NFLOG" | "ULOG" | "CT" | "NOTRACK" | "TCPMSS" | "CHECKSUM" | "CLASSIFY" | "TOS" | "DSCP"
        | "TTL" | "SET" | "TRACE" | "AUDIT" | "SECMARK" | "CONNSECMARK" | "IDLETIMER" | "TEE" | "HMARK" => {
            Step::Pass(name.to_owned())
        }
        _ => Step::Unknown(name.to_owned()),
    }
}

/// `struct xt_conntrack_mtinfo1` to `3`.
fn connection(revision: u32, data: &[u8]) -> Option<Match> {
    const STATE: u16 = 1;
    let (flags, inverted) = (half(data, 146)?, half(data, 148)?);
    let states = if revision == 1 { u16::from(*data.get(150)?) } else { half(data, 150)? };
    if flags != STATE {
        return Some(Match::Unknown("conntrack".into()));
    }
    Some(Match::State { states: states.into(), is_not: inverted & STATE != 0 })
}

fn tcp(data: &[u8]) -> Option<Match> {
    let inverted = *data.get(11)?;
    let flags = (*data.get(9)?, *data.get(10)?, inverted & 4 != 0);
    Some(Match::Ports {
        protocol: Some(6),
        sources: vec![(half(data, 0)?, half(data, 2)?)],
        destinations: vec![(half(data, 4)?, half(data, 6)?)],
        is_not: (inverted & 1 != 0, inverted & 2 != 0),
        is_either: false,
        flags: (flags.0 != 0).then_some(flags),
    })
}

fn udp(data: &[u8]) -> Option<Match> {
    let inverted = *data.get(8)?;
    Some(Match::Ports {
        protocol: Some(17),
        sources: vec![(half(data, 0)?, half(data, 2)?)],
        destinations: vec![(half(data, 4)?, half(data, 6)?)],
        is_not: (inverted & 1 != 0, inverted & 2 != 0),
        is_either: false,
        flags: None,
    })
}

/// `struct xt_multiport` and `struct xt_multiport_v1`, in which a flag says that a port and the next are a range.
fn multiport(revision: u32, data: &[u8]) -> Option<Match> {
    const EVERY: (u16, u16) = (0, u16::MAX);
    let (kind, count) = (*data.first()?, usize::from(*data.get(1)?).min(15));
    let is_not = revision > 0 && *data.get(47)? != 0;
    let (mut ports, mut place) = (Vec::new(), 0_usize);
    while place < count {
        let port = half(data, place.saturating_mul(2).saturating_add(2))?;
        let is_range = revision > 0 && *data.get(place.saturating_add(32))? != 0;
        place = place.saturating_add(1);
        let mut last = port;
        if is_range {
            last = half(data, place.saturating_mul(2).saturating_add(2))?;
            place = place.saturating_add(1);
        }
        ports.push((port, last));
    }
    let (sources, destinations) = match kind {
        0 => (ports, vec![EVERY]),
        1 => (vec![EVERY], ports),
        _ => (ports.clone(), ports),
    };
    Some(Match::Ports {
        protocol: None,
        sources,
        destinations,
        is_not: (is_not && kind == 0, is_not && kind == 1),
        is_either: kind > 1,
        flags: None,
    })
    .filter(|_| !(is_not && kind > 1))
}

fn icmp(data: &[u8]) -> Option<Match> {
    let codes = (*data.get(1)?, *data.get(2)?);
    Some(Match::Icmp { kind: *data.first()?, codes, is_not: *data.get(3)? & 1 != 0 })
}

fn address_type(revision: u32, data: &[u8]) -> Option<Match> {
    let (source, destination) = (half(data, 0)?, half(data, 2)?);
    let is_not = if revision == 0 {
        (word(data, 4)? != 0, word(data, 8)? != 0)
    } else {
        let flags = word(data, 4)?;
        if flags & !3 != 0 {
            return None;
        }
        (flags & 1 != 0, flags & 2 != 0)
    };
    Some(Match::AddressType { source, destination, is_not })
}

fn mark(data: &[u8]) -> Option<Match> {
    Some(Match::Mark { value: word(data, 0)?, mask: word(data, 4)?, is_not: *data.get(8)? != 0 })
}

/// `struct xt_physdev_info`: four names of 16 bytes, what must not be, what is asked (4: bridged).
fn physical(data: &[u8]) -> Option<Match> {
    const BRIDGED: u8 = 4;
    let (inverted, asked) = (*data.get(64)?, *data.get(65)?);
    (asked == BRIDGED).then_some(Match::IsBridged { is_not: inverted & BRIDGED != 0 })
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    array(data, at).map(u32::from_ne_bytes)
}

fn half(data: &[u8], at: usize) -> Option<u16> {
    array(data, at).map(u16::from_ne_bytes)
}

impl Match {
    /// Whether a packet meets the condition.
    pub(super) fn holds(&self, packet: &Packet) -> Known {
        match self {
            Self::Header(header) => header.holds(packet),
            Self::State { states, is_not } => Known::of(states & packet.state.xtables() != 0).turned(*is_not),
            Self::Ports { protocol, sources, destinations, is_not, is_either, flags } => {
                if protocol.is_some_and(|protocol| protocol != packet.protocol) {
                    return Known::No;
                }
                let within = |port: Option<u16>, ranges: &[(u16, u16)]| match port {
                    _ if ranges == [(0, u16::MAX)] => Known::Yes,
                    Some(port) => {
                        Known::of(ranges.iter().any(|(first, last)| (*first..=*last).contains(&port)))
                    }
                    None => Known::Maybe,
                };
                let source = within(packet.ports.0, sources).turned(is_not.0);
                let destination = within(packet.ports.1, destinations).turned(is_not.1);
                let flags = flags.map_or(Known::Yes, |(mask, set, is_not)| {
                    Known::of(packet.tcp_flags & mask == set).turned(is_not)
                });
                let both = if *is_either { source.or(destination) } else { source.and(destination) };
                both.and(flags)
            }
            Self::Icmp { kind, codes, is_not } => match packet.icmp {
                None => Known::No,
                Some((found, code)) => {
                    let is_kind = *kind == 255 || (*kind == found && (codes.0..=codes.1).contains(&code));
                    Known::of(is_kind).turned(*is_not)
                }
            },
            Self::AddressType { source, destination, is_not } => {
                let is = |types: u16, found: u32, is_not| {
                    let bit = 1_u32.checked_shl(found).unwrap_or(0);
                    Known::of(types == 0 || u32::from(types) & bit != 0).turned(types != 0 && is_not)
                };
                is(*source, packet.source_type, is_not.0).and(is(
                    *destination,
                    packet.destination_type,
                    is_not.1,
                ))
            }
            Self::Mark { value, mask, is_not } => {
                packet.mark.map_or(Known::Maybe, |mark| Known::of(mark & mask == *value).turned(*is_not))
            }
            Self::IsBridged { is_not } => Known::of(packet.is_bridged).turned(*is_not),
            Self::Always(_) => Known::Yes,
            Self::Unknown(_) => Known::Maybe,
        }
    }
}

impl Header {
    fn holds(&self, packet: &Packet) -> Known {
        let not = |bit| self.inverted & bit != 0;
        let inside = |(net, mask): &([u8; 4], [u8; 4]), address: [u8; 4]| {
            let masked = u32::from_be_bytes(address) & u32::from_be_bytes(*mask);
            Known::of(masked == u32::from_be_bytes(*net))
        };
        let is_name = |(name, is_prefix): &(String, bool), interface: Option<&str>| match interface {
            _ if name.is_empty() => Known::Yes,
            Some(interface) if *is_prefix => Known::of(interface.starts_with(name.as_str())),
            interface => Known::of(interface.unwrap_or_default() == name),
        };
        let protocol = self.protocol == 0 || self.protocol == u16::from(packet.protocol);
        inside(&self.source, packet.source)
            .turned(not(NOT_SOURCE))
            .and(inside(&self.destination, packet.destination).turned(not(NOT_DESTINATION)))
            .and(is_name(&self.input, packet.input.as_deref()).turned(not(NOT_INPUT)))
            .and(is_name(&self.output, packet.output.as_deref()).turned(not(NOT_OUTPUT)))
            .and(Known::of(protocol).turned(not(NOT_PROTOCOL)))
    }
}
