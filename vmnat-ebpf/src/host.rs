//! The host's own sockets and port forwards: 127.0.0.1 and the external addresses lead to the guest for them too.
//!
//! Their packets would reach no hook of an interface before the host's own routing has kept them, so the socket is led to the
//! guest when it says where it wants to go, before a packet exists: at no cost per packet, and past every firewall rule
//! but those for the host's own traffic. The programs stand at the cgroup's root and see all sockets of the machine; those of
//! other network namespaces (containers) are left alone. What a socket had asked for is remembered, so that it sees its
//! peer under the address that it knows.

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock_addr as SockAddr,
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    programs::SockAddrContext,
};
use vmnat_common::{
    Address, Port,
    endpoint::Endpoint,
    host::{HostPeer, HostPeerKey},
};

use crate::{forward, maps::HOST_PEER, settings};

/// The code by which the kernel goes on with the call.
pub const GO_ON: i32 = 1;

const LOOPBACK: Address = Address::new([127, 0, 0, 1]);

/// Leads a socket that asks for a port forward to its guest.
#[inline(always)]
pub fn lead(ctx: &SockAddrContext) -> Option<()> {
    is_hosts(ctx).then_some(())?;
    let mut wanted = named(ctx);
    // The kernel takes the unspecified address for the loopback too (`__ip4_datagram_connect`, `tcp_v4_connect`).
    if wanted.address.is_unspecified() {
        wanted.address = LOOPBACK;
    }
    let invitation = forward::of(protocol(ctx), wanted)?;
    // A source that was bound to the loopback cannot reach a guest; the socket finds out for itself.
    if bound_address(ctx).octets()[0] == LOOPBACK.octets()[0] {
        return None;
    }
    let key = HostPeerKey::new(cookie(ctx), invitation.target);
    let peer = HostPeer { address: wanted.address, port: wanted.port, reserved: 0 };
    // SAFETY: an element that is replaced at this instant costs a count.
    if unsafe { HOST_PEER.get(key) } != Some(&peer) {
        forward::count_connection(invitation.forward.id);
        // Where it cannot be remembered the socket sees the guest's own endpoint.
        let _ = HOST_PEER.insert(key, peer, 0);
    }
    rename(ctx, invitation.target);
    Some(())
}

/// Tells a socket that was led to a guest its peer under the endpoint that it had asked for.
#[inline(always)]
pub fn restore(ctx: &SockAddrContext) -> Option<()> {
    is_hosts(ctx).then_some(())?;
    // SAFETY: an element that is replaced at this instant names another endpoint of the same guest's port.
    let peer = unsafe { HOST_PEER.get(HostPeerKey::new(cookie(ctx), named(ctx))) }?;
    rename(ctx, Endpoint::new(peer.address, peer.port));
    Some(())
}

/// True for a socket of the host's own network namespace.
#[inline(always)]
fn is_hosts(ctx: &SockAddrContext) -> bool {
    // SAFETY: the context is valid for the program's run.
    let namespace = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    settings::get().is_ok_and(|settings| settings.netns_cookie == namespace)
}

#[inline(always)]
fn cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the context is valid for the program's run.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

/// The endpoint that the call is about.
#[inline(always)]
fn named(ctx: &SockAddrContext) -> Endpoint {
    let at = address_of(ctx);
    // SAFETY: the context is valid for the program's run. Volatile, because the verifier wants each field loaded alone and
    // in full.
    let (address, port) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*at).user_ip4),
            core::ptr::read_volatile(&raw const (*at).user_port),
        )
    };
    Endpoint::new(Address::from_wire(address), Port::from_wire(port as u16))
}

/// Replaces the endpoint that the call is about.
#[inline(always)]
fn rename(ctx: &SockAddrContext, endpoint: Endpoint) {
    let at = address_of(ctx);
    // SAFETY: as in `named`; the kernel lets these programs write both fields.
    unsafe {
        core::ptr::write_volatile(&raw mut (*at).user_ip4, endpoint.address.to_wire());
        core::ptr::write_volatile(&raw mut (*at).user_port, u32::from(endpoint.port.to_wire()));
    }
}

/// IP protocol number of the socket.
#[inline(always)]
fn protocol(ctx: &SockAddrContext) -> u8 {
    // SAFETY: as in `named`.
    unsafe { core::ptr::read_volatile(&raw const (*address_of(ctx)).protocol) as u8 }
}

/// The address that the socket is bound to; unspecified for none.
#[inline(always)]
fn bound_address(ctx: &SockAddrContext) -> Address {
    // SAFETY: the context is valid for the program's run; the kernel gives a null pointer or a socket.
    unsafe {
        let socket = core::ptr::read_volatile(&raw const (*address_of(ctx)).__bindgen_anon_1.sk);
        if socket.is_null() {
            return Address::UNSPECIFIED;
        }
        Address::from_wire(core::ptr::read_volatile(&raw const (*socket).src_ip4))
    }
}

#[inline(always)]
fn address_of(ctx: &SockAddrContext) -> *mut SockAddr {
    ctx.sock_addr
}
