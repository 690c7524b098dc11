//! The first stage: what the packet is. Only this file and the one below it read packet bytes.
//!
//! Reads are direct. `bpf_skb_pull_data` is called only where the linear part is short of the headers, which happens
//! with frames that a tap's owner built in pieces.
//!
//! Packet loads use the natural width at whatever alignment the frame has: the IPv4 header of an Ethernet frame
//! lies two bytes off a word. The verifier allows that where the architecture does
//! (`CONFIG_HAVE_EFFICIENT_UNALIGNED_ACCESS`), and BPF has no trap for it.

mod quote;

use core::mem::offset_of;

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_skb_pull_data, programs::TcContext};
use vmnat_common::{
    Address, Mac, Outcome, Port,
    endpoint::Protocol,
    flow::{FlowKey, Side},
    wire::{
        ethernet::{self, Stations},
        icmp, ipv4, sctp, tcp, udp, udplite,
    },
};

pub use self::quote::{Quote, quote};

/// Bytes from the frame's start to the IPv4 header.
pub const L3: usize = ethernet::LEN;

/// The same where the interface carries bare IP packets (tun, `WireGuard`, ppp).
pub const BARE: usize = 0;

/// Bytes that are made linear when any are missing: the longest IPv4 header and a TCP header.
const PULL: u32 = (L3 + ipv4::MAX_LEN + tcp::LEN) as u32;

/// What the stages need to know of a packet. The order of members is the stack's: the verifier keeps apart what begins a word of
/// eight bytes there, and `tracked` would have it walk the judgement for every reason.
#[repr(C)]
pub struct Packet {
    /// The tuple as it lies on the wire; ports are zero while `tracked` is an error.
    pub key: FlowKey,
    /// Whose frame it is; zero where the interface carries bare IP packets.
    pub stations: Stations,
    /// Whether ports could be read, and why not.
    pub tracked: Result<(), Outcome>,
    /// Largest IP packet that this becomes on the wire, bytes: one segment, where it will be segmented.
    pub size: u32,
    /// TTL and protocol in memory order.
    pub ttl_protocol: u16,
    /// Flags and offset of fragments, as [`ipv4`] reads them.
    fragment: u16,
    /// Type of service.
    pub tos: u8,
    /// Bytes from the frame's start to the transport header, 34 to 74; 14 less where there is no Ethernet header.
    l4: u8,
    /// TCP flags; zero for other protocols.
    pub tcp_flags: u8,
    /// ICMP type; zero for other protocols.
    pub icmp_type: u8,
}

impl Packet {
    /// A packet of which nothing is known yet. Filled in place: returned by value it would be copied on the stack.
    #[inline(always)]
    pub const fn unread() -> Self {
        Self {
            key: FlowKey {
                source: Address::UNSPECIFIED,
                destination: Address::UNSPECIFIED,
                source_port: Port::new(0),
                destination_port: Port::new(0),
                protocol: 0,
                side: 0,
                reserved: 0,
            },
            stations: Stations::NONE,
            tracked: Err(Outcome::Truncated),
            l4: (L3 + ipv4::LEN) as u8,
            size: 0,
            ttl_protocol: 0,
            tos: 0,
            tcp_flags: 0,
            icmp_type: 0,
            fragment: 0,
        }
    }

    /// Bytes from the frame's start to the transport header, 34 to 74.
    #[inline(always)]
    pub fn l4(&self) -> usize {
        usize::from(self.l4)
    }

    /// Hops left.
    #[inline(always)]
    pub fn ttl(&self) -> u8 {
        self.ttl_protocol.to_ne_bytes()[0]
    }

    /// True when the sender forbids fragmenting.
    #[inline(always)]
    pub fn must_not_fragment(&self) -> bool {
        ipv4::must_not_fragment(self.fragment)
    }

    /// True for a part of a datagram.
    #[inline(always)]
    pub fn is_fragment(&self) -> bool {
        ipv4::is_fragment(self.fragment)
    }

    /// True for the part of a datagram that has the transport header.
    #[inline(always)]
    pub fn is_first_fragment(&self) -> bool {
        self.is_fragment() && !self.is_later_fragment()
    }

    /// True for a part of a datagram that has no transport header.
    #[inline(always)]
    pub fn is_later_fragment(&self) -> bool {
        ipv4::is_later_fragment(self.fragment)
    }

    /// The protocol, where its ports could be read.
    #[inline(always)]
    pub fn protocol(&self) -> Option<Protocol> {
        Protocol::from_number(self.key.protocol)
    }
}

/// What kind of frame this is, before any byte is read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    /// IPv4 without a VLAN tag.
    Ipv4,
    /// ARP without a VLAN tag.
    Arp,
}

/// The frame's kind; errors are outcomes that pass it on.
#[inline(always)]
pub fn frame(ctx: &TcContext) -> Result<Frame, Outcome> {
    // A tag lives beside the frame, not in it: without this check tagged guests would be translated and would leave
    // the uplink with their tag.
    if read(ctx, offset_of!(__sk_buff, vlan_present)) != 0 {
        return Err(Outcome::VlanTagged);
    }
    match ether_type(ctx) {
        ethernet::IPV4 => Ok(Frame::Ipv4),
        ethernet::ARP => Ok(Frame::Arp),
        _ => Err(Outcome::NotIpv4),
    }
}

/// Reads the headers of an IPv4 frame, as seen from `side`, into `packet`.
#[inline(always)]
pub fn ipv4(ctx: &TcContext, side: Side, packet: &mut Packet) -> Result<(), Outcome> {
    ipv4_at::<L3>(ctx, side, packet)
}

/// The same with the IPv4 header `AT` bytes behind the start: [`L3`], or [`BARE`], where MACs stay unread.
#[inline(always)]
pub fn ipv4_at<const AT: usize>(ctx: &TcContext, side: Side, packet: &mut Packet) -> Result<(), Outcome> {
    let (start, end) = linear::<AT>(ctx)?;
    let l3 = start + AT;
    // SAFETY: `linear` made sure that all headers up to IPv4's lie between start and end; the verifier checks each of
    // these loads against the same comparison.
    let (version_ihl, total_length, fragment) = unsafe {
        if AT == L3 {
            packet.stations = Stations::from_words(load::<[u32; 3]>(start + ethernet::DESTINATION));
        }
        packet.tos = load::<u8>(l3 + ipv4::VERSION_IHL + 1);
        packet.ttl_protocol = load::<u16>(l3 + ipv4::TTL);
        packet.key.source = Address::from_wire(load::<u32>(l3 + ipv4::SOURCE));
        packet.key.destination = Address::from_wire(load::<u32>(l3 + ipv4::DESTINATION));
        (
            load::<u8>(l3 + ipv4::VERSION_IHL),
            u16::from_be(load::<u16>(l3 + ipv4::TOTAL_LENGTH)),
            u16::from_be(load::<u16>(l3 + ipv4::FRAGMENT)),
        )
    };
    packet.key.protocol = packet.ttl_protocol.to_ne_bytes()[1];
    packet.key.side = side as u8;
    packet.fragment = fragment;
    let Some(header) = ipv4::header_length(version_ihl) else {
        packet.tracked = Err(Outcome::BadHeader);
        return Ok(());
    };
    packet.l4 = (AT + header) as u8;
    packet.tracked = match lengths::<AT>(ctx, header as u32, u32::from(total_length)) {
        Err(reason) => Err(reason),
        Ok(()) if ipv4::is_fragment(fragment) => Err(Outcome::Fragment),
        Ok(()) => transport::<AT>(ctx, packet, start, end),
    };
    Ok(())
}

/// Reads the transport header of a first fragment, which [`ipv4`] leaves alone.
#[inline(always)]
pub fn transport_of_first(ctx: &TcContext, packet: &mut Packet) -> Result<(), Outcome> {
    let (start, end) = bounds(ctx);
    transport::<L3>(ctx, packet, start, end)
}

/// The sender of an ARP frame.
pub struct ArpSender {
    /// The address that it says is its own.
    pub address: Address,
    /// The MAC that it says the address has.
    pub mac: Mac,
    /// The station that sent the frame.
    pub station: Mac,
}

/// Reads the sender of an Ethernet/IPv4 ARP frame.
#[inline(always)]
pub fn arp_sender(ctx: &TcContext) -> Option<ArpSender> {
    use ethernet::arp;
    let (start, end) = bounds(ctx);
    if start + arp::END > end {
        return None;
    }
    // SAFETY: the comparison above covers every load.
    unsafe {
        if load::<u32>(start + arp::HARDWARE) != u32::from_ne_bytes([0, 1, 8, 0])
            || load::<u16>(start + arp::HARDWARE + 4) != u16::from_ne_bytes([6, 4])
        {
            return None;
        }
        Some(ArpSender {
            address: Address::from_wire(load::<u32>(start + arp::SENDER_ADDRESS)),
            mac: mac(start + arp::SENDER_MAC),
            station: mac(start + ethernet::SOURCE),
        })
    }
}

/// Destination MAC of a frame; zero when it is too short to have one.
#[inline(always)]
pub fn destination_mac(ctx: &TcContext) -> Mac {
    let (start, end) = bounds(ctx);
    if start + L3 > end {
        return Mac::ZERO;
    }
    // SAFETY: the comparison above covers the Ethernet header.
    unsafe { mac(start + ethernet::DESTINATION) }
}

/// Source address and protocol of an IPv4 packet on its way out, whose header lies `AT` bytes behind the start; none when it
/// is too short to have them.
#[inline(always)]
pub fn source<const AT: usize>(ctx: &TcContext) -> Option<(Address, u8)> {
    let (start, _) = linear::<AT>(ctx).ok()?;
    let l3 = start + AT;
    // SAFETY: `linear` made sure of the header.
    Some(unsafe { (Address::from_wire(load::<u32>(l3 + ipv4::SOURCE)), load::<u8>(l3 + ipv4::PROTOCOL)) })
}

/// Source port of a packet whose header has no options, as nearly all have none: what the host's own TCP and UDP are known by.
#[inline(always)]
pub fn source_port<const AT: usize>(ctx: &TcContext) -> Option<Port> {
    let (start, end) = bounds(ctx);
    let l4 = start + AT + ipv4::LEN;
    if l4 + udp::LEN > end {
        return None;
    }
    // SAFETY: the comparison above covers both loads.
    let (version_ihl, port) = unsafe { (load::<u8>(start + AT + ipv4::VERSION_IHL), load::<u16>(l4)) };
    (version_ihl & 0x0f == 5).then_some(Port::from_wire(port))
}

/// Destination address of an IPv4 packet on its way out; none when it is too short to have one.
#[inline(always)]
pub fn destination<const AT: usize>(ctx: &TcContext) -> Option<Address> {
    let (start, _) = linear::<AT>(ctx).ok()?;
    // SAFETY: `linear` made sure of the header.
    Some(unsafe { Address::from_wire(load::<u32>(start + AT + ipv4::DESTINATION)) })
}

/// The frame's `EtherType` as it lies in a packet.
#[inline(always)]
pub fn ether_type(ctx: &TcContext) -> u16 {
    read(ctx, offset_of!(__sk_buff, protocol)) as u16
}

/// Index of the interface whose hook this is.
#[inline(always)]
pub fn interface(ctx: &TcContext) -> u32 {
    read(ctx, offset_of!(__sk_buff, ifindex))
}

/// Start and end of the linear part.
#[inline(always)]
pub fn bounds(ctx: &TcContext) -> (usize, usize) {
    (ctx.data(), ctx.data_end())
}

/// Bounds of the linear part, with the headers pulled into it where they were not, and at least those up to IPv4's
/// inside.
#[inline(always)]
fn linear<const AT: usize>(ctx: &TcContext) -> Result<(usize, usize), Outcome> {
    let (mut start, mut end) = bounds(ctx);
    if start + AT + ipv4::LEN + tcp::LEN > end {
        let total = length(ctx);
        if (end - start) as u32 != total {
            // SAFETY: the context is valid; the length is at most the packet's.
            unsafe { bpf_skb_pull_data(ctx.skb.skb, if total < PULL { total } else { PULL }) };
            (start, end) = bounds(ctx);
        }
        if start + AT + ipv4::LEN > end {
            return Err(Outcome::Truncated);
        }
    }
    Ok((start, end))
}

/// Whether the header's own lengths agree with the packet's.
#[inline(always)]
fn lengths<const AT: usize>(ctx: &TcContext, header: u32, total: u32) -> Result<(), Outcome> {
    // A BIG TCP packet has a total length of zero (kernel commit b1a78b9b9886).
    let big = total == 0 && gso_size(ctx) != 0;
    if big || (total >= header && total <= bytes_at::<AT>(ctx)) { Ok(()) } else { Err(Outcome::BadHeader) }
}

#[inline(always)]
fn transport<const AT: usize>(
    ctx: &TcContext,
    packet: &mut Packet,
    start: usize,
    end: usize,
) -> Result<(), Outcome> {
    let l4 = start + packet.l4();
    let gso = gso_size(ctx);
    let mut headers = packet.l4() as u32 - AT as u32;
    match Protocol::from_number(packet.key.protocol) {
        Some(Protocol::Tcp) => {
            if l4 + tcp::LEN > end {
                return Err(Outcome::Truncated);
            }
            // SAFETY: the comparison above covers the whole TCP header.
            unsafe {
                ports(packet, l4);
                packet.tcp_flags = load::<u8>(l4 + tcp::FLAGS);
                headers += u32::from(load::<u8>(l4 + tcp::FLAGS - 1) >> 4) * 4;
            }
        }
        Some(Protocol::Udp) => {
            if l4 + udp::LEN > end {
                return Err(Outcome::Truncated);
            }
            // SAFETY: the comparison above covers the whole UDP header.
            unsafe { ports(packet, l4) };
            headers += udp::LEN as u32;
        }
        Some(Protocol::Icmp) => {
            if l4 + icmp::LEN > end {
                return Err(Outcome::Truncated);
            }
            // SAFETY: the comparison above covers the whole ICMP header.
            unsafe { query(packet, l4)? };
        }
        Some(Protocol::Sctp) => {
            if l4 + sctp::LEN > end {
                return Err(Outcome::Truncated);
            }
            // SAFETY: the comparison above covers the common header.
            unsafe { ports(packet, l4) };
            // Its segments are packets of their own in one buffer, each cut to the path's size by the sender.
            packet.size = if gso == 0 { bytes_at::<AT>(ctx) } else { headers };
            return Ok(());
        }
        Some(Protocol::Dccp | Protocol::UdpLite) => {
            if l4 + udplite::LEN > end {
                return Err(Outcome::Truncated);
            }
            // SAFETY: the comparison above covers the ports.
            unsafe { ports(packet, l4) };
        }
        // Known by its addresses alone.
        None => {}
    }
    packet.size = if gso == 0 { bytes_at::<AT>(ctx) } else { headers + gso };
    Ok(())
}

/// # Safety
/// Four bytes at `l4` must have been compared with the packet's end.
#[inline(always)]
unsafe fn ports(packet: &mut Packet, l4: usize) {
    // SAFETY: the caller's.
    unsafe {
        packet.key.source_port = Port::from_wire(load::<u16>(l4 + tcp::SOURCE));
        packet.key.destination_port = Port::from_wire(load::<u16>(l4 + tcp::DESTINATION));
    }
}

/// A guest asks and the world answers; the identifier is the near port.
///
/// # Safety
/// [`icmp::LEN`] bytes at `l4` must have been compared with the packet's end.
#[inline(always)]
unsafe fn query(packet: &mut Packet, l4: usize) -> Result<(), Outcome> {
    // SAFETY: the caller's.
    let (kind, identifier) = unsafe { (load::<u8>(l4 + icmp::TYPE), load::<u16>(l4 + icmp::IDENTIFIER)) };
    packet.icmp_type = kind;
    let (near, far) = (Port::from_wire(identifier), icmp::far_port(kind));
    match (icmp::class(kind), packet.key.side == Side::Guest as u8) {
        (icmp::Class::Query, true) => {
            packet.key.source_port = near;
            packet.key.destination_port = far;
            Ok(())
        }
        (icmp::Class::Reply, false) => {
            packet.key.source_port = far;
            packet.key.destination_port = near;
            Ok(())
        }
        _ => Err(Outcome::IcmpNotQuery),
    }
}

/// # Safety
/// Six bytes at `at` must have been compared with the packet's end.
#[inline(always)]
unsafe fn mac(at: usize) -> Mac {
    // SAFETY: the caller's.
    let (high, low) = unsafe { (load::<u32>(at).to_ne_bytes(), load::<u16>(at + 4).to_ne_bytes()) };
    Mac::new([high[0], high[1], high[2], high[3], low[0], low[1]])
}

/// # Safety
/// The bytes must lie inside the packet; the verifier refuses the program otherwise.
#[inline(always)]
unsafe fn load<T: Copy>(at: usize) -> T {
    // SAFETY: the caller's; for alignment see the head of this file.
    unsafe { *(at as *const T) }
}

/// True for a buffer that is yet to be cut into segments; its transport checksum is partial.
#[inline(always)]
pub fn is_segmented(ctx: &TcContext) -> bool {
    gso_size(ctx) != 0
}

/// Bytes from the transport header on, of a packet that [`ipv4`] has read and that starts at `start`.
#[inline(always)]
pub fn transport_length(start: usize, packet: &Packet) -> u16 {
    // SAFETY: `ipv4` made sure of the header; the verifier checks the load against the caller's comparison.
    let total = u16::from_be(unsafe { load::<u16>(start + L3 + ipv4::TOTAL_LENGTH) });
    total.wrapping_sub((packet.l4() - L3) as u16)
}

/// Bytes of the packet, IP header included.
#[inline(always)]
pub fn bytes(ctx: &TcContext) -> u32 {
    bytes_at::<L3>(ctx)
}

#[inline(always)]
fn bytes_at<const AT: usize>(ctx: &TcContext) -> u32 {
    length(ctx).wrapping_sub(AT as u32)
}

#[inline(always)]
fn length(ctx: &TcContext) -> u32 {
    read(ctx, offset_of!(__sk_buff, len))
}

#[inline(always)]
fn gso_size(ctx: &TcContext) -> u32 {
    read(ctx, offset_of!(__sk_buff, gso_size))
}

/// Reads the context's four-byte field at this offset. Volatile, because the verifier wants each field loaded alone and in full.
#[inline(always)]
fn read(ctx: &TcContext, field: usize) -> u32 {
    // SAFETY: the context is valid for the program's run, and the offset is that of one of its four-byte fields.
    unsafe { core::ptr::read_volatile(ctx.skb.skb.byte_add(field).cast::<u32>()) }
}
