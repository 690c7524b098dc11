//! The watch: tells that facts have changed, and of which kind they are; never what changed, since the reader
//! takes a whole picture anyway.

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll},
};

use anyhow::Context as _;
use rtnetlink::sys::{
    AsyncSocket, SocketAddr, TokioSocket,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};

use tracing::debug;

use crate::netlink::{Message, Messages};

/// Bits of the multicast groups link (1), neigh (3), tc (4), ipv4-ifaddr (5), ipv4-route (7), ipv4-rule (8) and
/// ipv4-netconf (24), which count from one.
const GROUPS: u32 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 23;

/// Bit of the multicast group of nftables (`NFNLGRP_NFTABLES`, 7).
const NFTABLES: u32 = 1 << 6;

/// `NFNL_SUBSYS_NFTABLES`, the high byte of a message's type.
const NFTABLES_SUBSYSTEM: u16 = 10;

/// Families whose rules may stand behind the hooks of ports: `NFPROTO_INET` (at a device's ingress), `NFPROTO_NETDEV`
/// and `NFPROTO_BRIDGE`.
const PORT_FAMILIES: [u8; 3] = [1, 5, 7];

/// `NFT_MSG_NEWSETELEM` and `NFT_MSG_DELSETELEM` of the family inet: firewalls change their sets all the time.
const INET_ELEMENTS: [(u16, u8); 2] = [(0x0a0c, 1), (0x0a0e, 1)];

/// Bytes of one read: notifications are a few hundred bytes each, a link's up to some thousand.
const BUFFER: usize = 32 * 1024;

/// Reads before a caller gets its answer, so that a flood cannot keep it waiting.
const READS: usize = 256;

/// Which kinds of facts have changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes(u8);

impl Changes {
    /// An interface came, went, or changed its state, MAC, MTU or master.
    pub const LINK: Self = Self(1);
    /// An IPv4 address came or went.
    pub const ADDRESS: Self = Self(2);
    /// An IPv4 route or policy rule came or went.
    pub const ROUTE: Self = Self(4);
    /// An entry of the neighbour table changed; frequent.
    pub const NEIGHBOUR: Self = Self(8);
    /// An entry of a bridge's forwarding table changed; frequent.
    pub const FDB: Self = Self(16);
    /// A rule of nftables behind the hooks of ports came or went.
    pub const RULES: Self = Self(32);
    /// A kernel setting of IPv4 changed: `forwarding` or `rp_filter` of an interface or of all.
    pub const SETTING: Self = Self(64);
    /// A queueing discipline or a filter of tc came or went.
    pub const FILTER: Self = Self(128);
    /// Anything may have changed: notifications were lost.
    pub const ALL: Self = Self(255);

    /// True when nothing has.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// True when any kind of `other` has.
    #[must_use]
    pub const fn any_of(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Both together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A subscription to changes in the network namespace of the thread that opened it.
pub struct Watch {
    socket: TokioSocket,
    /// None where the kernel has no nftables.
    rules: Option<TokioSocket>,
    buffer: Vec<u8>,
}

impl Watch {
    /// Subscribes; needs a tokio runtime. Open it before taking the first picture, so that no change falls between.
    ///
    /// # Errors
    /// When the kernel gives no netlink socket.
    pub fn open() -> anyhow::Result<Self> {
        let socket = subscribe(NETLINK_ROUTE, GROUPS)
            .context("cannot watch the interfaces: netlink refused the subscription")?;
        let rules = subscribe(NETLINK_NETFILTER, NFTABLES);
        let rules = rules.inspect_err(|error| debug!("changes of nftables are not announced: {error}")).ok();
        Ok(Self { socket, rules, buffer: vec![0; BUFFER] })
    }

    /// Waits for changes, and returns all that have been announced by then. Dropping the future loses none.
    ///
    /// # Errors
    /// When the socket fails; lost notifications are no error but [`Changes::ALL`].
    pub async fn next(&mut self) -> io::Result<Changes> {
        poll_fn(|context| self.poll(context)).await
    }

    /// Reads until nothing is left; may return no change after a flood of what is none.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Changes>> {
        let mut changes = Changes::default();
        let mut more = false;
        for socket in [Some(&self.socket), self.rules.as_ref()].into_iter().flatten() {
            let mut reads = 0..READS;
            more |= loop {
                match read(socket, &mut self.buffer, context) {
                    Poll::Ready(found) => changes = changes.with(found?),
                    Poll::Pending => break false,
                }
                if reads.next().is_none() {
                    break true;
                }
            };
        }
        if changes.is_empty() && !more { Poll::Pending } else { Poll::Ready(Ok(changes)) }
    }
}

fn subscribe(protocol: isize, groups: u32) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(protocol)?;
    socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
    Ok(socket)
}

/// The kinds in one datagram.
fn read(socket: &TokioSocket, buffer: &mut [u8], context: &mut Context<'_>) -> Poll<io::Result<Changes>> {
    let mut free = &mut *buffer;
    let result = socket.poll_recv(context, &mut free);
    let length = BUFFER.saturating_sub(free.len());
    result.map(|result| match result {
        Ok(()) => {
            let messages = Messages(buffer.get(..length).unwrap_or_default());
            Ok(messages.map(kind_of).fold(Changes::default(), Changes::with))
        }
        // The socket's buffer overflowed: netlink(7).
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(Changes::ALL),
        Err(error) => Err(error),
    })
}

/// The kind that a notification is of; numbers as in `linux/rtnetlink.h`. The body begins with the family. Both
/// sockets' notifications are told apart by the type alone: routing's have no subsystem.
fn kind_of(message: Message<'_>) -> Changes {
    let family = message.body.first().copied().map_or(libc::AF_UNSPEC, i32::from);
    match message.kind {
        16 | 17 => Changes::LINK,
        20 | 21 => Changes::ADDRESS,
        24 | 25 | 32 | 33 => Changes::ROUTE,
        36 | 37 | 44 | 45 => Changes::FILTER,
        80 if family == libc::AF_INET => Changes::SETTING,
        28 | 29 if family == libc::AF_INET => Changes::NEIGHBOUR,
        28 | 29 if family == libc::AF_BRIDGE => Changes::FDB,
        kind if kind >> 8 == NFTABLES_SUBSYSTEM => match message.body.first() {
            Some(family) if INET_ELEMENTS.contains(&(kind, *family)) => Changes::default(),
            Some(family) if PORT_FAMILIES.contains(family) => Changes::RULES,
            _ => Changes::default(),
        },
        _ => Changes::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_follow_type_and_family() {
        let kind = |kind, family: i32| kind_of(Message { kind, body: &[u8::try_from(family).unwrap()] });
        assert_eq!(kind(16, libc::AF_UNSPEC), Changes::LINK);
        assert_eq!(kind(17, libc::AF_BRIDGE), Changes::LINK);
        assert_eq!(kind(21, libc::AF_INET), Changes::ADDRESS);
        assert_eq!(kind(24, libc::AF_INET), Changes::ROUTE);
        assert_eq!(kind(33, libc::AF_INET), Changes::ROUTE);
        assert_eq!(kind(28, libc::AF_INET), Changes::NEIGHBOUR);
        assert_eq!(kind(28, libc::AF_BRIDGE), Changes::FDB);
        assert_eq!(kind(80, libc::AF_INET), Changes::SETTING);
        assert_eq!(kind(37, libc::AF_UNSPEC), Changes::FILTER);
        assert_eq!(kind(45, libc::AF_UNSPEC), Changes::FILTER);
        assert!(kind(80, libc::AF_INET6).is_empty());
        assert!(kind(28, libc::AF_INET6).is_empty());
        assert!(kind_of(Message { kind: 3, body: &[] }).is_empty());
        assert_eq!(kind_of(Message { kind: 0x0a06, body: &[7] }), Changes::RULES);
        assert!(kind_of(Message { kind: 0x0a06, body: &[2] }).is_empty());
        assert_eq!(kind_of(Message { kind: 0x0a0c, body: &[7] }), Changes::RULES);
        assert!(kind_of(Message { kind: 0x0a0c, body: &[1] }).is_empty());
    }

    #[test]
    fn everything_is_every_kind() {
        let kinds = [
            Changes::LINK,
            Changes::ADDRESS,
            Changes::ROUTE,
            Changes::NEIGHBOUR,
            Changes::FDB,
            Changes::RULES,
            Changes::SETTING,
            Changes::FILTER,
        ];
        assert_eq!(kinds.into_iter().fold(Changes::default(), Changes::with), Changes::ALL);
    }
}
