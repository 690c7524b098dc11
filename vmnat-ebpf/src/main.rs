//! The programs that the kernel runs; this file names them and nothing else.
//!
//! On any target but BPF this is an empty program, so that `cargo check --workspace` works on the host.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(core_intrinsics))]
#![cfg_attr(
    target_arch = "bpf",
    expect(internal_features, reason = "atomic addition without a result has no stable name on this target"),
    expect(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        reason = "overflow wraps here, there is nobody to panic to; offsets are bounded by the verifier"
    ),
    expect(
        clippy::inline_always,
        reason = "a stage is a part of its program; only scalars return from a real call"
    ),
    expect(clippy::needless_pass_by_value, reason = "the macro hands the context over")
)]

#[cfg(target_arch = "bpf")]
mod access;
#[cfg(target_arch = "bpf")]
mod bridge;
#[cfg(target_arch = "bpf")]
mod classify;
#[cfg(target_arch = "bpf")]
mod clock;
#[cfg(target_arch = "bpf")]
mod filtering;
#[cfg(target_arch = "bpf")]
mod flow_table;
#[cfg(target_arch = "bpf")]
mod forward;
#[cfg(target_arch = "bpf")]
mod fragment;
#[cfg(target_arch = "bpf")]
mod guard;
#[cfg(target_arch = "bpf")]
mod hairpin;
#[cfg(target_arch = "bpf")]
mod host;
#[cfg(target_arch = "bpf")]
mod icmp;
#[cfg(target_arch = "bpf")]
mod inbound;
#[cfg(target_arch = "bpf")]
mod lease;
#[cfg(target_arch = "bpf")]
mod mapping;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod mss;
#[cfg(target_arch = "bpf")]
mod next_hop;
#[cfg(target_arch = "bpf")]
mod outbound;
#[cfg(target_arch = "bpf")]
mod owner;
#[cfg(target_arch = "bpf")]
mod parse;
#[cfg(target_arch = "bpf")]
mod quota;
#[cfg(target_arch = "bpf")]
mod reaper;
#[cfg(target_arch = "bpf")]
mod rewrite;
#[cfg(target_arch = "bpf")]
mod room;
#[cfg(target_arch = "bpf")]
mod route;
#[cfg(target_arch = "bpf")]
mod service;
#[cfg(target_arch = "bpf")]
mod session;
#[cfg(target_arch = "bpf")]
mod settings;
#[cfg(target_arch = "bpf")]
mod socket;
#[cfg(target_arch = "bpf")]
mod verdict;

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{
        macros::{cgroup_sock_addr, classifier},
        programs::{SockAddrContext, TcContext},
    };

    use crate::{
        clock, guard, host, inbound, outbound,
        parse::{BARE, L3},
        reaper, room, verdict,
    };

    /// tcx ingress of a bridge's port: guest to world, guest to guest.
    #[classifier]
    pub fn outbound_port(ctx: TcContext) -> i32 {
        verdict::settle_outbound(&ctx, outbound::at_port(&ctx))
    }

    /// tcx ingress of a bridge: the same for guests whose port has no hook.
    #[classifier]
    pub fn outbound_bridge(ctx: TcContext) -> i32 {
        if verdict::finds(&ctx, verdict::Mark::JUDGED) {
            verdict::PASS
        } else {
            verdict::settle_outbound(&ctx, outbound::at_bridge(&ctx))
        }
    }

    /// tcx ingress of an uplink: world to guest.
    #[classifier]
    pub fn inbound(ctx: TcContext) -> i32 {
        verdict::settle(&ctx, inbound::at_uplink(&ctx))
    }

    /// The same for an uplink without Ethernet header.
    #[classifier]
    pub fn inbound_bare(ctx: TcContext) -> i32 {
        verdict::settle(&ctx, inbound::at_bare_uplink(&ctx))
    }

    /// tcx ingress of a port of an uplink that is a bridge: the same, before `br_netfilter`.
    #[classifier]
    pub fn inbound_port(ctx: TcContext) -> i32 {
        verdict::settle_inbound(&ctx, inbound::at_port(&ctx))
    }

    /// tcx ingress of an uplink that is a bridge: the same for ports without a hook.
    #[classifier]
    pub fn inbound_bridge(ctx: TcContext) -> i32 {
        if verdict::finds(&ctx, verdict::Mark::JUDGED) {
            verdict::PASS
        } else {
            verdict::settle(&ctx, inbound::at_uplink(&ctx))
        }
    }

    /// tcx egress of an uplink: nothing leaves with a guest's source.
    #[classifier]
    pub fn guard(ctx: TcContext) -> i32 {
        verdict::settle(&ctx, guard::at_uplink::<L3>(&ctx))
    }

    /// The same for an uplink without Ethernet header.
    #[classifier]
    pub fn guard_bare(ctx: TcContext) -> i32 {
        verdict::settle(&ctx, guard::at_uplink::<BARE>(&ctx))
    }

    /// tcx ingress of the inner way out of the quiet room: what the world sent.
    #[classifier]
    pub fn room_inward(ctx: TcContext) -> i32 {
        verdict::settle(&ctx, room::inward(&ctx))
    }

    /// tcx ingress of the outer way out of the quiet room: what guests sent.
    #[classifier]
    pub fn room_outward(ctx: TcContext) -> i32 {
        verdict::settle(&ctx, room::outward(&ctx))
    }

    /// A socket of the host connects.
    #[cgroup_sock_addr(connect4)]
    pub fn host_connect(ctx: SockAddrContext) -> i32 {
        host::lead(&ctx);
        host::GO_ON
    }

    /// A socket of the host sends a datagram without being connected.
    #[cgroup_sock_addr(sendmsg4)]
    pub fn host_send(ctx: SockAddrContext) -> i32 {
        host::lead(&ctx);
        host::GO_ON
    }

    /// A socket of the host is told who has sent a datagram.
    #[cgroup_sock_addr(recvmsg4)]
    pub fn host_receive(ctx: SockAddrContext) -> i32 {
        host::restore(&ctx);
        host::GO_ON
    }

    /// A socket of the host asks who its peer is.
    #[cgroup_sock_addr(getpeername4)]
    pub fn host_peer(ctx: SockAddrContext) -> i32 {
        host::restore(&ctx);
        host::GO_ON
    }

    /// Run by user space through `BPF_PROG_TEST_RUN`: removes what it nominates.
    #[classifier]
    pub fn reaper(ctx: TcContext) -> i32 {
        reaper::reap(&ctx)
    }

    /// Run by user space through `BPF_PROG_TEST_RUN`: tells the kernel's clocks.
    #[classifier]
    pub fn clock(ctx: TcContext) -> i32 {
        clock::tell(&ctx)
    }
}

#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
