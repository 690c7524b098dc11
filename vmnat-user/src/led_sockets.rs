//! The host's own sockets that were led to guests of port forwards: found by the kernel's cookies of them, and ended.

use std::{collections::HashSet, io};

use anyhow::{Context as _, Result};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use tracing::warn;
use vmnat_common::{
    Endpoint, Protocol,
    forward::{Forward, place},
};

use crate::{
    netlink::{Message, array, command, dump, tell},
    tables::Tables,
};

/// `SOCK_DIAG_BY_FAMILY` and `SOCK_DESTROY` of `linux/sock_diag.h`.
const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;

/// Bytes of `struct inet_diag_sockid` of `linux/inet_diag.h`: ports, addresses, interface, cookie.
const ID: usize = 48;

/// Where the identity begins in `struct inet_diag_msg`.
const ID_OFFSET: usize = 4;

/// Where the cookie begins in the identity: two words, the low one first.
const COOKIE_OFFSET: usize = 40;

/// `TCP_ESTABLISHED`, which a connected UDP socket has too.
const ESTABLISHED: u8 = 1;

/// A socket, as the kernel wants it named.
type Identity = [u8; ID];

/// Ends the host's conversations through these forwards; tells how many. A kernel that ends no sockets
/// (`CONFIG_INET_DIAG_DESTROY`) is a warning.
///
/// # Errors
/// What the kernel answers; some may have ended by then.
pub fn end(tables: &Tables, forwards: &[Forward]) -> Result<usize> {
    let led = led(tables, forwards)?;
    let mut ended = 0_usize;
    for protocol in [Protocol::Tcp, Protocol::Udp].map(Protocol::number) {
        if !led.iter().any(|(of, _)| *of == protocol) {
            continue;
        }
        let mut doomed = Vec::new();
        dump(NETLINK_SOCK_DIAG, BY_FAMILY, &request(protocol, &[0; ID]), |message| {
            let identity = identity(&message, protocol);
            doomed.extend(identity.filter(|(cookie, _)| led.contains(&(protocol, *cookie))));
        })
        .context("list the host's sockets")?;
        for (_, identity) in doomed {
            match tell(NETLINK_SOCK_DIAG, &command(DESTROY, &request(protocol, &identity))) {
                Ok(()) => ended = ended.saturating_add(1),
                // It has ended by itself.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                    warn!(
                        "this kernel ends no sockets: the host's own conversations through the forwards go on"
                    );
                    return Ok(ended);
                }
                Err(error) => return Err(error).context("end a socket of the host"),
            }
        }
    }
    Ok(ended)
}

/// Protocol and cookie of the sockets that were led by one of the forwards.
fn led(tables: &Tables, forwards: &[Forward]) -> Result<HashSet<(u8, u64)>> {
    let mut led = HashSet::new();
    for (key, peer) in tables.host_peer.entries()? {
        let (guest, called) = (Endpoint::new(key.address, key.port), Endpoint::new(peer.address, peer.port));
        for protocol in [Protocol::Tcp, Protocol::Udp].map(Protocol::number) {
            let place = place(protocol, called);
            if forwards.iter().any(|forward| forward.target(place) == Some(guest)) {
                led.insert((protocol, key.cookie));
            }
        }
    }
    Ok(led)
}

/// `struct inet_diag_req_v2`: IPv4 sockets of a protocol in every state, all or this one.
fn request(protocol: u8, identity: &Identity) -> Vec<u8> {
    let family = u8::try_from(libc::AF_INET).unwrap_or_default();
    [&[family, protocol, 0, 0][..], &u32::MAX.to_ne_bytes(), identity].concat()
}

/// Cookie and identity of a socket in the listing; a UDP socket that is connected to nobody has no conversation to end.
fn identity(message: &Message<'_>, protocol: u8) -> Option<(u64, Identity)> {
    let [_, state, _, _] = array(message.body, 0)?;
    if protocol == Protocol::Udp.number() && state != ESTABLISHED {
        return None;
    }
    let identity: Identity = array(message.body, ID_OFFSET)?;
    let word = |at| array(&identity, at).map(u32::from_ne_bytes).map(u64::from);
    let cookie = word(COOKIE_OFFSET)? | word(COOKIE_OFFSET.saturating_add(4))? << 32;
    Some((cookie, identity))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_named_as_it_was_listed() {
        let mut body = vec![2, ESTABLISHED, 0, 0];
        body.extend([7; COOKIE_OFFSET]);
        body.extend([0x11_u32.to_ne_bytes(), 0x22_u32.to_ne_bytes()].concat());
        let message = Message { kind: BY_FAMILY, body: &body };
        let (cookie, identity) = identity(&message, 6).unwrap();
        assert_eq!(cookie, 0x22_0000_0011);
        assert_eq!(request(6, &identity)[8..], body[4..]);
        body[1] = 7;
        assert!(super::identity(&Message { kind: BY_FAMILY, body: &body }, 17).is_none());
    }
}
