//! The change itself: addresses, ports, hop count and checksums. Only this file and the one below it write packet bytes.
//!
//! All direct writes come before the first helper, which invalidates packet pointers.

mod transport;

use aya_ebpf::{
    bindings::BPF_F_MARK_MANGLED_0, helpers::generated::bpf_skb_change_head, programs::TcContext,
};
use vmnat_common::{
    Address, Mac, Outcome, Port,
    checksum::{self, address_diff, port_diff},
    endpoint::{Endpoint, Protocol},
    session::Session,
    wire::{ethernet, icmp, ipv4, tcp, udp, udplite},
};

use crate::parse::{L3, Packet, Quote, bounds};

/// What replaces the near endpoint, and the differences that makes to checksums.
#[derive(Clone, Copy)]
pub struct Change {
    /// The address.
    pub address: Address,
    /// The port or identifier.
    pub port: Port,
    /// Difference of the address.
    pub address_diff: u16,
    /// Difference of the port.
    pub port_diff: u16,
}

impl Change {
    /// What a session does to the near endpoint.
    #[inline(always)]
    pub fn of(session: &Session, near: Endpoint) -> Self {
        Self {
            address: session.address,
            port: session.port,
            address_diff: address_diff(near.address, session.address),
            port_diff: port_diff(near.port, session.port),
        }
    }
}

/// The changes of one packet: at its source, at its destination, or at both.
#[derive(Clone, Copy)]
struct Changes {
    source: Option<Change>,
    destination: Option<Change>,
}

impl Changes {
    /// Difference of the addresses.
    #[inline(always)]
    fn address_diff(self) -> u16 {
        self.sum(|change| change.address_diff)
    }

    /// Difference of the ports.
    #[inline(always)]
    fn port_diff(self) -> u16 {
        self.sum(|change| change.port_diff)
    }

    #[inline(always)]
    fn sum(self, diff: impl Fn(Change) -> u16) -> u16 {
        match (self.source, self.destination) {
            (Some(one), Some(other)) => checksum::sum(diff(one), diff(other)),
            (Some(change), None) | (None, Some(change)) => diff(change),
            (None, None) => 0,
        }
    }
}

/// Where the near endpoint stands in the headers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Source,
    Destination,
}

/// Replaces the source of a guest's packet, one hop further.
#[inline(always)]
pub fn source(ctx: &TcContext, packet: &Packet, change: Change) -> Result<(), Outcome> {
    endpoints(ctx, packet, Changes { source: Some(change), destination: None })
}

/// Replaces the destination of a packet for a guest, one hop further.
#[inline(always)]
pub fn destination(ctx: &TcContext, packet: &Packet, change: Change) -> Result<(), Outcome> {
    endpoints(ctx, packet, Changes { source: None, destination: Some(change) })
}

/// Replaces both ends of a packet that turns round on the host, one hop further.
#[inline(always)]
pub fn both(ctx: &TcContext, packet: &Packet, source: Change, destination: Change) -> Result<(), Outcome> {
    endpoints(ctx, packet, Changes { source: Some(source), destination: Some(destination) })
}

/// Replaces the source of an ICMP error's own header, one hop further.
#[inline(always)]
pub fn outer_source(ctx: &TcContext, packet: &Packet, change: Change) -> Result<(), Outcome> {
    let (start, end) = bounds(ctx);
    network(start, end, packet, Changes { source: Some(change), destination: None })
}

/// Replaces the destination of an ICMP error's own header, one hop further.
#[inline(always)]
pub fn outer_destination(ctx: &TcContext, packet: &Packet, change: Change) -> Result<(), Outcome> {
    let (start, end) = bounds(ctx);
    network(start, end, packet, Changes { source: None, destination: Some(change) })
}

/// Replaces both ends of an ICMP error's own header, one hop further.
#[inline(always)]
pub fn outer_both(
    ctx: &TcContext,
    packet: &Packet,
    source: Change,
    destination: Change,
) -> Result<(), Outcome> {
    let (start, end) = bounds(ctx);
    network(start, end, packet, Changes { source: Some(source), destination: Some(destination) })
}

/// Replaces the identification of a datagram in fragments.
#[inline(always)]
pub fn identification(ctx: &TcContext, old: u16, new: u16) -> Result<(), Outcome> {
    ctx.store(L3 + ipv4::IDENTIFICATION, &new, 0).map_err(|_| Outcome::RewriteFailed)?;
    replaced_sum(ctx, L3 + ipv4::CHECKSUM, checksum::word_diff(old, new)).map(drop)
}

/// Gives a packet one more hop, for one that will be taken before it is translated; the most that there is stays.
#[inline(always)]
pub fn one_hop_more(ctx: &TcContext, packet: &Packet) -> Result<(), Outcome> {
    let (ttl_protocol, diff) = ipv4::one_hop_more(packet.ttl_protocol);
    ctx.store(L3 + ipv4::TTL, &ttl_protocol, 0).map_err(|_| Outcome::RewriteFailed)?;
    replaced_sum(ctx, L3 + ipv4::CHECKSUM, diff).map(drop)
}

/// Replaces the source in an ICMP error's quote.
#[inline(always)]
pub fn quoted_source(ctx: &TcContext, packet: &Packet, quote: &Quote, change: Change) -> Result<(), Outcome> {
    quoted(ctx, packet, quote, change, End::Source)
}

/// Replaces the destination in an ICMP error's quote.
#[inline(always)]
pub fn quoted_destination(
    ctx: &TcContext,
    packet: &Packet,
    quote: &Quote,
    change: Change,
) -> Result<(), Outcome> {
    quoted(ctx, packet, quote, change, End::Destination)
}

/// The quote: address, header checksum, port, and the transport checksum where the quote reaches that far. The error's own
/// checksum covers them all and takes the sum of the differences.
#[inline(always)]
fn quoted(
    ctx: &TcContext,
    packet: &Packet,
    quote: &Quote,
    change: Change,
    which: End,
) -> Result<(), Outcome> {
    let Quote { l3, l4, protocol, .. } = *quote;
    let both = checksum::sum(change.address_diff, change.port_diff);
    let (address_at, port_at) = match which {
        End::Source => (l3 + ipv4::SOURCE, l4 + tcp::SOURCE),
        End::Destination => (l3 + ipv4::DESTINATION, l4 + tcp::DESTINATION),
    };
    let (port_at, sum_at, sum_diff) = match Protocol::from_number(protocol) {
        Some(Protocol::Tcp) => (port_at, l4 + tcp::CHECKSUM, both),
        Some(Protocol::Udp) => (port_at, l4 + udp::CHECKSUM, both),
        Some(Protocol::Icmp) => (l4 + icmp::IDENTIFIER, l4 + icmp::CHECKSUM, change.port_diff),
        Some(Protocol::Dccp | Protocol::UdpLite) => (port_at, l4 + udplite::CHECKSUM, both),
        // Nothing but the address changes, and no checksum knows it.
        Some(Protocol::Sctp) | None => (0, 0, 0),
    };
    let mut diff = u64::from(both);
    ctx.store(address_at, &change.address.to_wire(), 0).map_err(|_| Outcome::RewriteFailed)?;
    if port_at != 0 {
        ctx.store(port_at, &change.port.to_wire(), 0).map_err(|_| Outcome::RewriteFailed)?;
    }
    diff += replaced_sum(ctx, l3 + ipv4::CHECKSUM, change.address_diff)?;
    // A UDP checksum of zero was never computed; TCP's lies beyond a quote of eight bytes.
    match ctx.load::<u16>(sum_at) {
        _ if sum_at == 0 => {}
        Ok(0) if protocol == Protocol::Udp.number() => {}
        Ok(_) => diff += replaced_sum(ctx, sum_at, sum_diff)?,
        Err(_) => {}
    }
    replaced_sum(ctx, packet.l4() + icmp::CHECKSUM, checksum::fold(diff)).map(drop)
}

/// Updates a checksum field by a difference; returns the difference that the field itself makes.
#[inline(always)]
fn replaced_sum(ctx: &TcContext, at: usize, diff: u16) -> Result<u64, Outcome> {
    let old = ctx.load::<u16>(at).map_err(|_| Outcome::RewriteFailed)?;
    let new = checksum::update(old, diff);
    ctx.store(at, &new, 0).map_err(|_| Outcome::RewriteFailed)?;
    Ok(u64::from(checksum::word_diff(old, new)))
}

/// Writes both MACs of the frame.
#[inline(always)]
pub fn macs(ctx: &TcContext, destination: Mac, source: Mac) -> Result<(), Outcome> {
    let (start, end) = bounds(ctx);
    if start + L3 > end {
        return Err(Outcome::RewriteFailed);
    }
    // SAFETY: the comparison above covers the Ethernet header, and a `Mac` wants no more alignment than a packet has.
    unsafe {
        store(start + ethernet::DESTINATION, destination);
        store(start + ethernet::SOURCE, source);
    }
    Ok(())
}

/// Writes both MACs of the frame from words.
#[inline(always)]
pub fn stations(ctx: &TcContext, words: [u32; 3]) -> Result<(), Outcome> {
    let (start, end) = bounds(ctx);
    if start + L3 > end {
        return Err(Outcome::RewriteFailed);
    }
    // SAFETY: the comparison above covers the Ethernet header.
    unsafe { store(start + ethernet::DESTINATION, words) };
    Ok(())
}

/// Writes both MACs of the frame from the words of a [`vmnat_common::next_hop::NextHop`].
#[inline(always)]
pub fn ethernet(ctx: &TcContext, macs: u64, rest: u32) -> Result<(), Outcome> {
    let (start, end) = bounds(ctx);
    if start + L3 > end {
        return Err(Outcome::RewriteFailed);
    }
    // SAFETY: the comparison above covers the Ethernet header.
    unsafe {
        store(start, macs);
        store(start + size_of::<u64>(), rest);
    }
    Ok(())
}

/// Puts an Ethernet header for IPv4 before a bare IP packet; its MACs are zero until [`macs`] writes them. The kernel allows
/// this for segments that wait to be cut, too.
#[inline(always)]
pub fn add_ethernet(ctx: &TcContext) -> Result<(), Outcome> {
    // SAFETY: the context is valid, and the helper checks the length itself.
    if unsafe { bpf_skb_change_head(ctx.skb.skb, L3 as u32, 0) } != 0 {
        return Err(Outcome::RewriteFailed);
    }
    let (start, end) = bounds(ctx);
    if start + L3 > end {
        return Err(Outcome::RewriteFailed);
    }
    // SAFETY: the comparison above covers the Ethernet header.
    unsafe { store(start + ethernet::TYPE, ethernet::IPV4) };
    Ok(())
}

#[inline(always)]
fn endpoints(ctx: &TcContext, packet: &Packet, changes: Changes) -> Result<(), Outcome> {
    let (start, end) = bounds(ctx);
    let l4 = start + packet.l4();
    network(start, end, packet, changes)?;
    if packet.is_later_fragment() {
        return Ok(());
    }
    match packet.protocol() {
        Some(Protocol::Tcp) => {
            if l4 + tcp::LEN > end {
                return Err(Outcome::RewriteFailed);
            }
            // SAFETY: the comparison above covers the ports and the checksum.
            unsafe {
                ports(l4, changes);
                transport::sum_in_place(ctx, packet, (start, l4), tcp::CHECKSUM, changes, 0)
            }
        }
        Some(Protocol::Udp) => {
            if l4 + udp::LEN > end {
                return Err(Outcome::RewriteFailed);
            }
            // SAFETY: the comparison above covers the ports and the checksum.
            unsafe {
                ports(l4, changes);
                transport::sum_in_place(
                    ctx,
                    packet,
                    (start, l4),
                    udp::CHECKSUM,
                    changes,
                    u64::from(BPF_F_MARK_MANGLED_0),
                )
            }
        }
        Some(Protocol::Icmp) => {
            let Some(change) = changes.source.or(changes.destination) else { return Ok(()) };
            if l4 + icmp::LEN > end {
                return Err(Outcome::RewriteFailed);
            }
            // ICMP has no pseudo-header: identifier and checksum change together, and any sum over the packet stays.
            // SAFETY: the comparison above covers the header.
            unsafe {
                let sum = (l4 + icmp::CHECKSUM) as *mut u16;
                *sum = checksum::update(*sum, change.port_diff);
                store(l4 + icmp::IDENTIFIER, change.port.to_wire());
            }
            Ok(())
        }
        // Ports stay, and the checksum covers the addresses.
        Some(Protocol::Dccp | Protocol::UdpLite) => {
            transport::sum(ctx, packet.l4() + udplite::CHECKSUM, changes, 0)
        }
        // No checksum knows the addresses.
        Some(Protocol::Sctp) | None => Ok(()),
    }
}

/// The IPv4 header: addresses, hop count, checksum.
#[inline(always)]
fn network(start: usize, end: usize, packet: &Packet, changes: Changes) -> Result<(), Outcome> {
    if start + L3 + ipv4::LEN > end {
        return Err(Outcome::RewriteFailed);
    }
    let l3 = start + L3;
    let (ttl_protocol, hop_diff) = ipv4::one_hop_less(packet.ttl_protocol);
    let diff = checksum::sum(changes.address_diff(), hop_diff);
    // SAFETY: the comparison above covers the header without options, where all of these fields lie.
    unsafe {
        store(l3 + ipv4::TTL, ttl_protocol);
        let sum = (l3 + ipv4::CHECKSUM) as *mut u16;
        *sum = checksum::update(*sum, diff);
        if let Some(change) = changes.source {
            store(l3 + ipv4::SOURCE, change.address.to_wire());
        }
        if let Some(change) = changes.destination {
            store(l3 + ipv4::DESTINATION, change.address.to_wire());
        }
    }
    Ok(())
}

/// # Safety
/// Four bytes at `l4` must have been compared with the packet's end.
#[inline(always)]
unsafe fn ports(l4: usize, changes: Changes) {
    // SAFETY: the caller's.
    unsafe {
        if let Some(change) = changes.source {
            store(l4 + tcp::SOURCE, change.port.to_wire());
        }
        if let Some(change) = changes.destination {
            store(l4 + tcp::DESTINATION, change.port.to_wire());
        }
    }
}

/// # Safety
/// The bytes must lie inside the packet; the verifier refuses the program otherwise.
#[inline(always)]
unsafe fn store<T>(at: usize, value: T) {
    // SAFETY: the caller's; for alignment see the head of `parse`.
    unsafe { *(at as *mut T) = value };
}
