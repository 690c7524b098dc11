//! Raw netlink: dumps and attributes that no crate of ours decodes (ctnetlink, filters, notifications by type), and
//! requests of threads that have no runtime.
//!
//! A message is a 16-byte head (length, type, flags, sequence, port) and a body; a body is a fixed part of its
//! family and then attributes. Heads and attribute heads are native byte order. Nothing here trusts a length.

mod batch;

use std::io;

use netlink_packet_core::{NLM_F_ACK, NetlinkMessage, Parseable as _};
use netlink_packet_route::{RouteNetlinkMessage, link::LinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

pub(crate) use self::batch::{Batch, Body};

/// Bytes of a message's head (`struct nlmsghdr`).
const HEAD: usize = 16;

/// Bytes of an attribute's head (`struct nlattr`).
const ATTRIBUTE_HEAD: usize = 4;

/// Bytes of the fixed part of a message about an interface (`struct ifinfomsg`).
const LINK_HEAD: usize = 16;

/// The kernel fills at most 32 KiB a read (`netlink_dump()`), whatever the reader offers beyond.
const BUFFER: usize = 64 * 1024;

const NLM_F_REQUEST: u16 = 0x001;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// Attribute types carry two flags: nested (0x8000) and network byte order (0x4000).
const ATTRIBUTE_TYPE: u16 = 0x3fff;

/// One message: its type and its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    /// The type.
    pub(crate) kind: u16,
    /// What follows the head.
    pub(crate) body: &'a [u8],
}

/// The messages of one datagram; stops at the first that contradicts itself.
#[derive(Clone, Debug)]
pub(crate) struct Messages<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::try_from(u32::from_ne_bytes(array(self.0, 0)?)).ok()?;
        let kind = u16::from_ne_bytes(array(self.0, 4)?);
        let body = self.0.get(HEAD..length)?;
        self.0 = self.0.get(aligned(length)..).unwrap_or_default();
        Some(Message { kind, body })
    }
}

/// The attributes of a body; stops at the first that contradicts itself.
#[derive(Clone, Debug)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes(array(self.0, 0)?));
        let kind = u16::from_ne_bytes(array(self.0, 2)?) & ATTRIBUTE_TYPE;
        let value = self.0.get(ATTRIBUTE_HEAD..length)?;
        self.0 = self.0.get(aligned(length)..).unwrap_or_default();
        Some((kind, value))
    }
}

impl<'a> Attributes<'a> {
    /// The first attribute of that type.
    pub(crate) fn find(&self, kind: u16) -> Option<&'a [u8]> {
        self.clone().find_map(|(found, value)| (found == kind).then_some(value))
    }
}

/// `N` bytes at an offset.
pub(crate) fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

/// Asks for a dump in the network namespace of the calling thread, and hands each answer to `each`.
///
/// # Errors
/// The kernel's, as it names them, or `TimedOut` when it stays silent.
pub(crate) fn dump(
    protocol: isize,
    kind: u16,
    body: &[u8],
    mut each: impl FnMut(Message<'_>),
) -> io::Result<()> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&request(kind, body), 0)?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = socket.recv(&mut buffer.as_mut_slice(), 0)?;
        let datagram = buffer.get(..length).unwrap_or_default();
        for message in Messages(datagram) {
            match message.kind {
                NLMSG_NOOP => {}
                NLMSG_ERROR | NLMSG_DONE => return end(message.body),
                _ => each(message),
            }
        }
    }
}

/// The interfaces of the calling thread's network namespace.
///
/// # Errors
/// The kernel's, as it names them.
pub(crate) fn links() -> io::Result<Vec<LinkMessage>> {
    let mut links = Vec::new();
    dump(NETLINK_ROUTE, libc::RTM_GETLINK, &[0; LINK_HEAD], |message| {
        links.extend(LinkMessage::parse(message.body));
    })?;
    Ok(links)
}

/// Asks for a change by routing netlink, in the network namespace of the calling thread.
///
/// # Errors
/// The kernel's, as it names them.
pub(crate) fn change(message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    tell(NETLINK_ROUTE, &bytes)
}

/// Sends one request, or a batch, of which something asks for an acknowledgement, and waits for the first that comes: a
/// batch is done by then, and what failed of it is told first.
///
/// # Errors
/// The kernel's, as it names them.
pub(crate) fn tell(protocol: isize, bytes: &[u8]) -> io::Result<()> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(bytes, 0)?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = socket.recv(&mut buffer.as_mut_slice(), 0)?;
        let mut answers = Messages(buffer.get(..length).unwrap_or_default());
        if let Some(answer) = answers.find(|message| message.kind == NLMSG_ERROR) {
            return end(answer.body);
        }
    }
}

/// A request that is to be acknowledged, for [`tell`].
pub(crate) fn command(kind: u16, body: &[u8]) -> Vec<u8> {
    written(kind, NLM_F_REQUEST | NLM_F_ACK, body)
}

/// A dump request.
fn request(kind: u16, body: &[u8]) -> Vec<u8> {
    written(kind, NLM_F_REQUEST | NLM_F_DUMP, body)
}

fn written(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEAD.saturating_add(body.len())).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEAD.saturating_add(body.len()));
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(body);
    bytes
}

/// The result in the body of the last message: zero or a negated error number.
fn end(body: &[u8]) -> io::Result<()> {
    match array(body, 0).map_or(0, i32::from_ne_bytes) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error.saturating_neg())),
    }
}

/// Lengths are rounded up to four for the place of what follows.
const fn aligned(length: usize) -> usize {
    length.saturating_add(3) & !3
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn decoding_never_panics_and_ends(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Messages(&bytes).count() <= bytes.len());
            prop_assert!(Attributes(&bytes).count() <= bytes.len());
        }
    }

    #[test]
    fn a_request_reads_back() {
        let bytes = request(0x101, &[2, 0, 0, 0]);
        let messages: Vec<_> = Messages(&bytes).collect();
        assert_eq!(messages, [Message { kind: 0x101, body: &[2, 0, 0, 0] }]);
    }

    #[test]
    fn attributes_are_padded_and_flags_are_ignored() {
        let mut bytes = Vec::new();
        bytes.extend(5_u16.to_ne_bytes());
        bytes.extend(0x8007_u16.to_ne_bytes());
        bytes.extend([9, 0, 0, 0]);
        bytes.extend(4_u16.to_ne_bytes());
        bytes.extend(8_u16.to_ne_bytes());
        assert_eq!(Attributes(&bytes).collect::<Vec<_>>(), [(7, &[9][..]), (8, &[][..])]);
        assert_eq!(Attributes(&bytes).find(8), Some(&[][..]));
    }
}
