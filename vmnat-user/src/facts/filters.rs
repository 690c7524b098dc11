//! Filters of tc on an interface, and the queueing disciplines that hold them. With somebody's filter before a port's
//! traffic (libvirt's `<bandwidth>` is a policer there), the port is left to the hook of its bridge.

use std::io;

use netlink_sys::protocols::NETLINK_ROUTE;

use crate::{
    link::Point,
    netlink::{Attributes, Message, array, dump},
};

const RTM_GETQDISC: u16 = 38;
const RTM_GETTFILTER: u16 = 46;

/// Bytes of `struct tcmsg`.
const TCMSG: usize = 20;

/// `ffff:`, the handle of an ingress qdisc, which filters name as their parent; for clsact it means both hooks' qdisc.
const INGRESS_QDISC: u32 = 0xffff_0000;

/// `ffff:fff2`, the ingress hook of clsact.
const CLSACT_INGRESS: u32 = 0xffff_fff2;

/// `ffff:fff3`, its egress hook.
const CLSACT_EGRESS: u32 = 0xffff_fff3;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_ID: u16 = 11;

/// A filter at a hook of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Classifier: `bpf`, `u32`, `matchall`, `flower`.
    pub kind: String,
    /// Preference: the lowest is asked first.
    pub preference: u16,
    /// Handle within the preference.
    pub handle: u32,
    /// Name of the program, of a `bpf` filter.
    pub program: Option<String>,
    /// The kernel's number of the program.
    pub program_id: Option<u32>,
}

/// The filters at a hook of an interface, under clsact or an ingress qdisc; tcx programs are none of them.
///
/// # Errors
/// The kernel's.
pub fn filters(index: u32, point: Point) -> io::Result<Vec<Filter>> {
    let parents: &[u32] = match point {
        Point::Ingress => &[CLSACT_INGRESS, INGRESS_QDISC],
        Point::Egress => &[CLSACT_EGRESS],
    };
    let mut filters = Vec::new();
    for parent in parents {
        dump(NETLINK_ROUTE, RTM_GETTFILTER, &request(index, *parent), |message| {
            let found = decode(message).filter(|filter| !filters.contains(filter));
            filters.extend(found);
        })?;
    }
    Ok(filters)
}

/// True when an interface has an `ingress` queueing discipline, which is in the place of clsact and has no egress.
///
/// # Errors
/// The kernel's.
pub fn has_plain_ingress(index: u32) -> io::Result<bool> {
    has_discipline(index, "ingress")
}

/// True when an interface has a clsact queueing discipline.
///
/// # Errors
/// The kernel's.
pub fn has_clsact(index: u32) -> io::Result<bool> {
    has_discipline(index, "clsact")
}

fn has_discipline(index: u32, kind: &str) -> io::Result<bool> {
    let mut found = false;
    dump(NETLINK_ROUTE, RTM_GETQDISC, &request(index, 0), |message| {
        found |= is_discipline(message, index, kind);
    })?;
    Ok(found)
}

/// `struct tcmsg` of a request.
fn request(index: u32, parent: u32) -> [u8; TCMSG] {
    let mut body = [0; TCMSG];
    for (place, word) in body.chunks_exact_mut(4).skip(1).zip([index, 0, parent]) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    body
}

/// The kernel lists the disciplines of every interface, whatever was asked for.
fn is_discipline(message: Message<'_>, index: u32, wanted: &str) -> bool {
    let attributes = message.body.get(TCMSG..).map(Attributes);
    let kind = attributes.and_then(|attributes| attributes.find(TCA_KIND).map(text));
    array(message.body, 4).map(u32::from_ne_bytes) == Some(index) && kind.as_deref() == Some(wanted)
}

/// A filter from its message; none for the head of a group, which has no handle.
fn decode(message: Message<'_>) -> Option<Filter> {
    let handle = u32::from_ne_bytes(array(message.body, 8)?);
    let [_, _, high, low] = u32::from_ne_bytes(array(message.body, 16)?).to_le_bytes();
    let attributes = Attributes(message.body.get(TCMSG..)?);
    let options = Attributes(attributes.find(TCA_OPTIONS).unwrap_or_default());
    let filter = Filter {
        kind: attributes.find(TCA_KIND).map(text)?,
        preference: u16::from_le_bytes([high, low]),
        handle,
        program: options.find(TCA_BPF_NAME).map(text),
        program_id: options.find(TCA_BPF_ID).and_then(|id| array(id, 0)).map(u32::from_ne_bytes),
    };
    (handle != 0).then_some(filter)
}

/// A string up to its terminating zero.
/// Decodes any body, for the fuzz target.
#[cfg(any(test, fuzzing))]
pub(crate) fn decode_any(body: &[u8]) {
    let _ = decode(Message { kind: 44, body });
    let _ = is_discipline(Message { kind: 36, body }, 7, "ingress");
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn decoding_never_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(Message { kind: 44, body: &body });
            let _ = is_discipline(Message { kind: 36, body: &body }, 7, "ingress");
        }
    }

    #[test]
    fn an_ingress_discipline_is_told_from_clsact_and_from_another_interfaces() {
        let discipline = |index, kind: &[u8]| {
            let mut body = request(index, 0).to_vec();
            body.extend([12, 0, 1, 0]);
            body.extend(kind);
            is_discipline(Message { kind: 36, body: &body }, 7, "ingress")
        };
        assert!(discipline(7, b"ingress\0"));
        assert!(!discipline(8, b"ingress\0"));
        assert!(!discipline(7, b"clsact\0\0"));
    }

    #[test]
    fn the_head_of_a_group_is_no_filter() {
        let mut body = vec![0; TCMSG];
        body.extend([8, 0, 1, 0, b'u', b'3', b'2', 0]);
        body[16..20].copy_from_slice(&((7_u32 << 16) | 3).to_ne_bytes());
        assert_eq!(decode(Message { kind: 44, body: &body }), None);
        body[8] = 1;
        let filter = Filter { kind: "u32".into(), preference: 7, handle: 1, program: None, program_id: None };
        assert_eq!(decode(Message { kind: 44, body: &body }), Some(filter));
    }
}
