//! Where the host's routes lead, and the redirects that follow them.
//!
//! Asked when a flow is opened and when it is checked again, not per packet.

use aya_ebpf::{
    bindings::{
        BPF_F_INGRESS, BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_FRAG_NEEDED,
        BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_PROHIBIT,
        BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNREACHABLE, bpf_fib_lookup as FibLookup,
        bpf_fib_lookup__bindgen_ty_1 as FibLength, bpf_fib_lookup__bindgen_ty_2 as FibTos,
        bpf_fib_lookup__bindgen_ty_3 as FibSource, bpf_fib_lookup__bindgen_ty_4 as FibDestination,
        bpf_fib_lookup__bindgen_ty_5 as FibTable, bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1 as NextHop,
    },
    helpers::generated::{bpf_clone_redirect, bpf_fib_lookup, bpf_redirect, bpf_redirect_neigh},
    programs::TcContext,
};
use vmnat_common::{
    Address, Mac, Outcome,
    flow::FlowKey,
    session::{Flags, Session},
};

use crate::{rewrite, session};

const AF_INET: u8 = 2;

/// Sizes of the helpers' structs, which they want as `int`.
#[expect(clippy::cast_possible_wrap, reason = "64 and 20")]
const FIB_BYTES: i32 = size_of::<FibLookup>() as i32;
#[expect(clippy::cast_possible_wrap, reason = "64 and 20")]
const HOP_BYTES: i32 = size_of::<bpf_redir_neigh>() as i32;

/// A route's answer. Filled in place: a function that is not inlined can return a number only.
#[derive(Clone, Copy, Default)]
pub struct Route {
    /// Interface index that it leads out by.
    pub out_if: u32,
    /// The gateway, or the destination itself where it is on the link.
    pub next_hop: Address,
    /// The next hop's MAC; zero where the neighbour table does not know it.
    pub neighbour: Mac,
}

/// Looks up where a packet with the tuple `key` goes that came in by `in_if`, policy rules included.
///
/// Errors are outcomes that pass the packet on: to the host, nowhere, or not forwarded at all.
#[inline(never)]
pub fn lookup(ctx: &TcContext, key: &FlowKey, tos: u8, in_if: u32, route: &mut Route) -> Result<(), Outcome> {
    let mut query = question(key, tos, in_if);
    // SAFETY: both pointers are valid for the call, and the length is the struct's.
    let answer = unsafe { bpf_fib_lookup(ctx.skb.skb.cast(), &raw mut query, FIB_BYTES, 0) };
    let neighbour = match answer.cast_unsigned() as u32 {
        BPF_FIB_LKUP_RET_SUCCESS => Mac::new(query.dmac),
        BPF_FIB_LKUP_RET_NO_NEIGH | BPF_FIB_LKUP_RET_FRAG_NEEDED => Mac::ZERO,
        BPF_FIB_LKUP_RET_BLACKHOLE | BPF_FIB_LKUP_RET_UNREACHABLE | BPF_FIB_LKUP_RET_PROHIBIT => {
            return Err(Outcome::NoRoute);
        }
        BPF_FIB_LKUP_RET_FWD_DISABLED => return Err(Outcome::ForwardingDisabled),
        // Among them `NOT_FWDED`: a local or broadcast address, or no route at all; the kernel tells them apart.
        _ => return Err(Outcome::ToHost),
    };
    // A gateway of the other family cannot be written into a flow; the kernel keeps such routes.
    if query.family != AF_INET {
        return Err(Outcome::OtherRoute);
    }
    // SAFETY: the family says which member of the union is set.
    route.next_hop = Address::from_wire(unsafe { query.__bindgen_anon_4.ipv4_dst });
    route.out_if = query.ifindex;
    route.neighbour = neighbour;
    Ok(())
}

/// The MACs of a frame to the neighbour `key.destination` behind `out_if`, and of its sender; none where the kernel has no
/// valid entry, or where its routes lead there by another interface or router.
#[inline(always)]
pub fn station(ctx: &TcContext, key: &FlowKey, in_if: u32, out_if: u32) -> Option<(Mac, Mac)> {
    let mut query = question(key, 0, in_if);
    // SAFETY: as in `lookup`.
    let answer = unsafe { bpf_fib_lookup(ctx.skb.skb.cast(), &raw mut query, FIB_BYTES, 0) };
    // SAFETY: the family says which member of the union is set.
    let next_hop = || Address::from_wire(unsafe { query.__bindgen_anon_4.ipv4_dst });
    let is_its = answer.cast_unsigned() as u32 == BPF_FIB_LKUP_RET_SUCCESS
        && query.family == AF_INET
        && query.ifindex == out_if
        && next_hop() == key.destination;
    is_its.then(|| (Mac::new(query.dmac), Mac::new(query.smac)))
}

/// What the kernel is asked about a packet with the tuple `key` that came in by `in_if`.
#[inline(always)]
fn question(key: &FlowKey, tos: u8, in_if: u32) -> FibLookup {
    // Every member is named: zeroing the whole would become a call of a byte-wise `memset`.
    FibLookup {
        family: AF_INET,
        l4_protocol: key.protocol,
        sport: key.source_port.to_wire(),
        dport: key.destination_port.to_wire(),
        __bindgen_anon_1: FibLength { tot_len: 0 },
        ifindex: in_if,
        __bindgen_anon_2: FibTos { flowinfo: u32::from(tos) },
        __bindgen_anon_3: FibSource { ipv6_src: [key.source.to_wire(), 0, 0, 0] },
        __bindgen_anon_4: FibDestination { ipv6_dst: [key.destination.to_wire(), 0, 0, 0] },
        __bindgen_anon_5: FibTable { tbid: 0 },
        smac: [0; 6],
        dmac: [0; 6],
    }
}

/// Sends the packet out by `out_if` to `next_hop`, whose MAC the kernel resolves.
#[inline(always)]
pub fn to_neighbour(out_if: u32, next_hop: Address) {
    let mut hop = bpf_redir_neigh {
        nh_family: u32::from(AF_INET),
        __bindgen_anon_1: NextHop { ipv6_nh: [next_hop.to_wire(), 0, 0, 0] },
    };
    // SAFETY: the pointer is valid for the call, and the length is the struct's.
    // It fails only for flags that do not exist.
    unsafe { bpf_redirect_neigh(out_if, &raw mut hop, HOP_BYTES, 0) };
}

/// Sends the packet to the guest whose session takes it on: straight to its port where that is known, else by the
/// neighbour table of its bridge.
#[inline(always)]
pub fn to_guest(ctx: &TcContext, session: &Session) -> Result<(), Outcome> {
    if session.has(Flags::VIA_NEIGHBOUR) {
        to_neighbour(session.out_if, session.address);
    } else {
        rewrite::stations(ctx, session::stations(session))?;
        to_port(session.out_if);
    }
    Ok(())
}

/// Sends a copy of the frame out by `out_if`; the frame itself stays.
#[inline(always)]
pub fn copy_to(ctx: &TcContext, out_if: u32) {
    // SAFETY: the context is valid. Where there is no memory for a copy, there is none.
    unsafe { bpf_clone_redirect(ctx.skb.skb, out_if, 0) };
}

/// Lets the frame come in by `in_if` as if it had just arrived there.
#[inline(always)]
pub fn into(in_if: u32) {
    // SAFETY: the helper takes numbers only. It fails only for flags that do not exist.
    unsafe { bpf_redirect(in_if, u64::from(BPF_F_INGRESS)) };
}

/// Sends the frame out by `out_if` as it is.
#[inline(always)]
pub fn to_port(out_if: u32) {
    // SAFETY: the helper takes numbers only. It fails only for flags that do not exist.
    unsafe { bpf_redirect(out_if, 0) };
}
