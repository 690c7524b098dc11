//! What an ICMP error quotes. Off the hot path, so by copies.

use aya_ebpf::programs::TcContext;
use vmnat_common::{
    Address, Port, checksum,
    endpoint::{Endpoint, Protocol},
    wire::{icmp, ipv4, tcp},
};

use super::Packet;

/// What an ICMP error quotes of the packet that it is about.
#[derive(Clone, Copy, Default)]
pub struct Quote {
    /// Source of the quoted packet.
    pub source: Endpoint,
    /// Its destination.
    pub destination: Endpoint,
    /// Its IP protocol number.
    pub protocol: u8,
    /// Bytes from the frame's start to the quoted IPv4 header.
    pub l3: usize,
    /// Bytes from the frame's start to the quoted transport header.
    pub l4: usize,
}

/// Reads the quote of an ICMP error. It may be cut anywhere; an error is one with a wrong header, or without ports that it
/// should have: too short, or of a later fragment. Off the hot path, so by copies.
#[inline(always)]
pub fn quote(ctx: &TcContext, packet: &Packet, quote: &mut Quote) -> Result<(), ()> {
    let l3 = packet.l4() + icmp::LEN;
    let copy = |offset: usize| ctx.load::<u16>(offset).map_err(drop);
    let address = |offset: usize| ctx.load::<u32>(offset).map(Address::from_wire).map_err(drop);
    let header = ipv4::header_length(ctx.load::<u8>(l3 + ipv4::VERSION_IHL).map_err(drop)?).ok_or(())?;
    if ipv4::is_later_fragment(u16::from_be(copy(l3 + ipv4::FRAGMENT)?)) {
        return Err(());
    }
    if header_sum(ctx, l3 as u32, header as u32) != u32::from(u16::MAX) {
        return Err(());
    }
    let l4 = l3 + header;
    let protocol = ctx.load::<u8>(l3 + ipv4::PROTOCOL).map_err(drop)?;
    let (source, destination) = match Protocol::from_number(protocol) {
        Some(Protocol::Tcp | Protocol::Udp | Protocol::Dccp | Protocol::Sctp | Protocol::UdpLite) => {
            (copy(l4 + tcp::SOURCE)?, copy(l4 + tcp::DESTINATION)?)
        }
        Some(Protocol::Icmp) => {
            let kind = ctx.load::<u8>(l4 + icmp::TYPE).map_err(drop)?;
            let (near, far) = (copy(l4 + icmp::IDENTIFIER)?, icmp::far_port(kind).to_wire());
            match icmp::class(kind) {
                icmp::Class::Query => (near, far),
                icmp::Class::Reply => (far, near),
                icmp::Class::Error | icmp::Class::Other => return Err(()),
            }
        }
        None => (0, 0),
    };
    quote.source = Endpoint::new(address(l3 + ipv4::SOURCE)?, Port::from_wire(source));
    quote.destination = Endpoint::new(address(l3 + ipv4::DESTINATION)?, Port::from_wire(destination));
    quote.protocol = protocol;
    quote.l3 = l3;
    quote.l4 = l4;
    Ok(())
}

/// The sum over a quoted header, 0xffff for one that is right (RFC 5508 REQ-3a). A call of its own, so that the verifier meets what
/// follows once and not for each length that a header may have.
#[inline(never)]
fn header_sum(ctx: &TcContext, l3: u32, header: u32) -> u32 {
    let mut sum = 0_u64;
    for at in (0..ipv4::MAX_LEN as u32).step_by(4) {
        if at >= header {
            break;
        }
        match ctx.load::<u32>((l3 + at) as usize) {
            Ok(word) => sum += u64::from(word),
            Err(_) => return 0,
        }
    }
    u32::from(checksum::fold(sum))
}
