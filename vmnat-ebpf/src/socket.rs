//! What the host's sockets hold: asked before an external endpoint is given to anybody else.

use aya_ebpf::{
    bindings::{
        bpf_sock as Socket, bpf_sock_tuple as SockTuple,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as SockTuple4,
    },
    helpers::generated::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
    programs::TcContext,
};
use vmnat_common::{
    endpoint::{Endpoint, Protocol},
    flow::FlowKey,
};

/// The current network namespace (`BPF_F_CURRENT_NETNS`).
const THIS_NETNS: u64 = u64::MAX;

/// `TCP_ESTABLISHED` of the kernel's `tcp_states.h`, which a connected UDP socket has too.
const ESTABLISHED: u32 = 1;

/// `TCP_LISTEN` of the kernel's `tcp_states.h`.
const LISTEN: u32 = 10;

/// No socket of the host would receive the packet.
pub const NONE: u32 = 0;

/// A socket of the host waits for anybody.
pub const WAITING: u32 = 1;

/// A socket of the host converses with this very remote.
pub const CONVERSING: u32 = 2;

/// Whether a socket of the host would receive what the destination of `key` ([`FlowKey::remote`] of either side) sends to
/// the external endpoint: [`NONE`], [`WAITING`] or [`CONVERSING`]. A number, since a real call returns nothing else.
#[inline(never)]
pub fn holding(ctx: &TcContext, key: &FlowKey, external: Endpoint) -> u32 {
    let remote = key.remote();
    let mut ipv4 = SockTuple4 {
        saddr: remote.address.to_wire(),
        daddr: external.address.to_wire(),
        sport: remote.port.to_wire(),
        dport: external.port.to_wire(),
    };
    // The helpers tell the members of the union apart by its size.
    let (tuple, size) = ((&raw mut ipv4).cast::<SockTuple>(), size_of::<SockTuple4>() as u32);
    let skb = ctx.skb.skb.cast();
    // SAFETY: the pointers are valid for the calls; a socket that was found is released on the spot.
    unsafe {
        if key.protocol == Protocol::Tcp.number() {
            let socket = bpf_skc_lookup_tcp(skb, tuple, size, THIS_NETNS, 0);
            if socket.is_null() {
                return NONE;
            }
            let state = state(socket);
            bpf_sk_release(socket.cast());
            if state == LISTEN { WAITING } else { CONVERSING }
        } else if key.protocol == Protocol::Udp.number() {
            let socket = bpf_sk_lookup_udp(skb, tuple, size, THIS_NETNS, 0);
            if socket.is_null() {
                return NONE;
            }
            let state = state(socket);
            bpf_sk_release(socket.cast());
            if state == ESTABLISHED { CONVERSING } else { WAITING }
        } else {
            // ICMP identifiers are not kept apart by sockets, and the kernel has no look-up for other protocols: see `guard`.
            NONE
        }
    }
}

/// # Safety
/// The socket must come from a look-up and not be released yet.
#[inline(always)]
unsafe fn state(socket: *mut Socket) -> u32 {
    // SAFETY: the caller's. Volatile, because the verifier wants the field loaded alone and in full.
    unsafe { core::ptr::read_volatile(&raw const (*socket).state) }
}
