//! Who waits for DHCP and DNS on this host: the kernel's tables of sockets, with the interface that each is bound to.

use std::net::Ipv4Addr;

use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use vmnat_common::Protocol;

use crate::{
    host_sockets::{self, Process},
    netlink::{array, dump},
};

/// `SOCK_DIAG_BY_FAMILY`.
const BY_FAMILY: u16 = 20;

/// Where things are in `struct inet_diag_msg`.
const INTERFACE: usize = 40;
const INODE: usize = 68;

/// A server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Its protocol.
    pub protocol: Protocol,
    /// Its port.
    pub port: u16,
    /// The address that it is bound to; 0.0.0.0 for all of them.
    pub at: Ipv4Addr,
    /// The interface that it is bound to; none: any, or unknown.
    pub interface: Option<u32>,
    /// Whose it is.
    pub process: Option<Process>,
}

/// Servers of DHCP and DNS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Servers {
    /// All of them.
    pub list: Vec<Server>,
    /// The kernel's table could not be read.
    pub is_hidden: bool,
}

impl Servers {
    /// Looks for them in the calling thread's network namespace.
    #[must_use]
    pub fn find() -> Self {
        let Ok(sockets) = host_sockets::sockets() else { return Self { list: Vec::new(), is_hidden: true } };
        let interfaces = interfaces();
        let is_wanted = |protocol, port| match port {
            67 => protocol == Protocol::Udp,
            53 => true,
            _ => false,
        };
        let list = sockets.iter().filter(|(protocol, port, _)| is_wanted(*protocol, *port)).map(
            |(protocol, port, socket)| {
                let bound = interfaces.iter().find(|(inode, _)| u64::from(*inode) == socket.inode);
                Server {
                    protocol,
                    port,
                    at: socket.at,
                    interface: bound.map(|(_, interface)| *interface).filter(|interface| *interface != 0),
                    process: host_sockets::holder(socket.inode),
                }
            },
        );
        Self { list: list.collect(), is_hidden: false }
    }

    /// Who serves DHCP at an interface.
    #[must_use]
    pub fn dhcp_at(&self, interface: u32) -> Option<&Server> {
        self.list
            .iter()
            .find(|server| server.port == 67 && server.interface.is_none_or(|bound| bound == interface))
    }

    /// Who serves DNS at an address.
    #[must_use]
    pub fn dns_at(&self, address: Ipv4Addr) -> Option<&Server> {
        let is_here = |server: &&Server| {
            server.protocol == Protocol::Udp
                && server.port == 53
                && (server.at.is_unspecified() || server.at == address)
        };
        self.list.iter().find(is_here)
    }
}

impl Server {
    /// Its process, in words.
    #[must_use]
    pub fn text(&self) -> String {
        self.process
            .as_ref()
            .map_or_else(|| "a process that cannot be seen from here".to_owned(), ToString::to_string)
    }
}

/// UDP sockets by inode, with the interface that they are bound to; none where the kernel cannot tell.
fn interfaces() -> Vec<(u32, u32)> {
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        // `struct inet_diag_req_v2`: family, protocol, every state.
        let mut request = vec![u8::try_from(family).unwrap_or(0), 17, 0, 0];
        request.extend(u32::MAX.to_ne_bytes());
        request.resize(56, 0);
        let _ = dump(NETLINK_SOCK_DIAG, BY_FAMILY, &request, |message| {
            let word = |at| array(message.body, at).map(u32::from_ne_bytes);
            found.extend(word(INODE).zip(word(INTERFACE)));
        });
    }
    found
}
