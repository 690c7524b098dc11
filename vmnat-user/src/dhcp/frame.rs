//! Frames that carry DHCP, and the ARP that asks whether an address is taken: bytes in, parts out, and back.

use std::net::Ipv4Addr;

use vmnat_common::Mac;

/// The server's port.
pub const SERVER: u16 = 67;

/// The client's port.
pub const CLIENT: u16 = 68;

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const UDP: usize = 8;

/// What a frame carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Carried<'a> {
    /// A datagram from or to a server's port.
    Dhcp(Datagram<'a>),
    /// Somebody says that this address is theirs.
    Claim {
        /// Who.
        mac: Mac,
        /// The address.
        address: Ipv4Addr,
    },
}

/// A UDP datagram between the ports of DHCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// Sender on the wire.
    pub from: Mac,
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// Destination port.
    pub port: u16,
    /// What it carries.
    pub payload: &'a [u8],
}

/// Reads a frame; none for one that is neither.
#[must_use]
pub fn read(frame: &[u8]) -> Option<Carried<'_>> {
    let from = Mac::new(*frame.get(6..)?.first_chunk()?);
    let rest = frame.get(ETHERNET..)?;
    match half(frame, 12)? {
        0x0800 => datagram(from, rest).map(Carried::Dhcp),
        0x0806 => claim(rest),
        _ => None,
    }
}

fn datagram(from: Mac, packet: &[u8]) -> Option<Datagram<'_>> {
    let first = *packet.first()?;
    let header = usize::from(first & 0xf).checked_mul(4)?;
    // The first fragment alone would say only a part.
    let whole = half(packet, 6)?.trailing_zeros() >= 14;
    if first >> 4 != 4 || header < IPV4 || *packet.get(9)? != 17 || !whole {
        return None;
    }
    let total = usize::from(half(packet, 2)?);
    let body = packet.get(header..total)?;
    let length = usize::from(half(body, 4)?);
    let ports = (half(body, 0)?, half(body, 2)?);
    if !matches!(ports, (SERVER | CLIENT, SERVER | CLIENT)) {
        return None;
    }
    Some(Datagram {
        from,
        source: address(packet, 12)?,
        destination: address(packet, 16)?,
        port: ports.1,
        payload: body.get(UDP..length)?,
    })
}

/// An ARP frame's sender, who has the address that it names (requests that probe name none).
fn claim(arp: &[u8]) -> Option<Carried<'static>> {
    let is_ethernet = arp.get(..6)? == [0, 1, 8, 0, 6, 4];
    let (mac, address) = (Mac::new(*arp.get(8..)?.first_chunk()?), address(arp, 14)?);
    (is_ethernet && !address.is_unspecified()).then_some(Carried::Claim { mac, address })
}

/// A frame from a server to a client.
#[must_use]
pub fn answer(from: Mac, to: Mac, source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len().saturating_add(UDP)).unwrap_or(u16::MAX);
    let mut datagram = [SERVER.to_be_bytes(), CLIENT.to_be_bytes(), length.to_be_bytes(), [0; 2]].concat();
    datagram.extend_from_slice(payload);
    let pseudo =
        [&source.octets()[..], &destination.octets(), &[0, 17], &length.to_be_bytes(), &datagram].concat();
    let sum = match checksum(&pseudo) {
        0 => u16::MAX,
        sum => sum,
    };
    put(&mut datagram, 6, sum);
    let total = length.saturating_add(20).to_be_bytes();
    let mut packet = [&[0x45, 0x10], &total[..], &[0, 0, 0, 0, 64, 17, 0, 0]].concat();
    packet.extend(source.octets());
    packet.extend(destination.octets());
    let sum = checksum(&packet);
    put(&mut packet, 10, sum);
    [&to.bytes()[..], &from.bytes(), &[8, 0], &packet, &datagram].concat()
}

/// Asks who has an address without saying that the sender has one (RFC 5227 section 2.1.1).
#[must_use]
pub fn probe(from: Mac, address: Ipv4Addr) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, 1];
    let sender = from.bytes();
    [&[0xff; 6][..], &sender, &[8, 6], &head, &sender, &[0; 10], &address.octets()].concat()
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|half| u16::from_be_bytes(*half))
}

fn address(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    bytes.get(at..)?.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets))
}

fn put(bytes: &mut [u8], at: usize, half: u16) {
    if let Some(place) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
        *place = half.to_be_bytes();
    }
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| match pair {
        [high, low] => u64::from(u16::from_be_bytes([*high, *low])),
        [high] => u64::from(*high) << 8,
        _ => 0,
    });
    let mut sum: u64 = words.fold(0, u64::wrapping_add);
    while sum > 0xffff {
        sum = (sum & 0xffff).wrapping_add(sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVERS: Mac = Mac::new([2, 0, 0, 0, 0, 1]);
    const CLIENTS: Mac = Mac::new([2, 0, 0, 0, 0, 2]);

    #[test]
    fn an_answer_reads_back_with_right_checksums() {
        let (source, destination) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::BROADCAST);
        for payload in [&b"abc"[..], &[0xff; 300]] {
            let frame = answer(SERVERS, CLIENTS, source, destination, payload);
            let Some(Carried::Dhcp(read)) = read(&frame) else { panic!("{frame:?}") };
            assert_eq!((read.from, read.source, read.destination), (SERVERS, source, destination));
            assert_eq!((read.port, read.payload), (CLIENT, payload));
            assert_eq!(checksum(&frame[14..34]), 0);
            let length = u16::try_from(payload.len() + 8).unwrap().to_be_bytes();
            let pseudo = [&frame[26..34], &[0, 17], &length, &frame[34..]].concat();
            assert_eq!(checksum(&pseudo), 0);
        }
    }

    #[test]
    fn who_answers_a_probe_claims_the_address_and_a_probe_claims_none() {
        let address = Ipv4Addr::new(10, 0, 0, 7);
        let mut frame = probe(CLIENTS, address);
        assert_eq!(read(&frame), None);
        frame[28..32].copy_from_slice(&address.octets());
        assert_eq!(read(&frame), Some(Carried::Claim { mac: CLIENTS, address }));
    }

    #[test]
    fn what_is_cut_short_or_a_fragment_is_nothing() {
        let frame = answer(SERVERS, CLIENTS, [10, 0, 0, 1].into(), [10, 0, 0, 2].into(), &[7; 20]);
        for length in 0..frame.len() {
            assert_eq!(read(&frame[..length]), None, "{length}");
        }
        let mut fragment = frame;
        fragment[20] = 0x20;
        assert_eq!(read(&fragment), None);
    }
}
