//! Filters on an interface's ingress that are somebody's: with one of those before the port's traffic (libvirt's
//! `<bandwidth>` is a policer there), a port is left to the hook of its bridge.

use std::io;

use netlink_sys::protocols::NETLINK_ROUTE;

use crate::netlink::{Attributes, Message, array, dump};

const RTM_GETTFILTER: u16 = 46;

/// Bytes of `struct tcmsg`.
const TCMSG: usize = 20;

/// `ffff:`, the handle of an ingress qdisc, which filters name as their parent; for clsact it means both hooks' qdisc.
const INGRESS_QDISC: u32 = 0xffff_0000;

/// `ffff:fff2`, the ingress hook of clsact.
const CLSACT_INGRESS: u32 = 0xffff_fff2;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_NAME: u16 = 7;

/// A filter on the ingress of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngressFilter {
    /// Classifier: `bpf`, `u32`, `matchall`, `flower`.
    pub kind: String,
    /// Preference: the lowest is asked first.
    pub preference: u16,
    /// Handle within the preference.
    pub handle: u32,
    /// Name of the program, of a `bpf` filter.
    pub program: Option<String>,
}

/// The filters on the ingress of an interface, under clsact or an ingress qdisc; tcx programs are none of them.
///
/// # Errors
/// The kernel's.
pub fn ingress_filters(index: u32) -> io::Result<Vec<IngressFilter>> {
    let mut filters = Vec::new();
    for parent in [CLSACT_INGRESS, INGRESS_QDISC] {
        let mut body = [0; TCMSG];
        for (place, word) in body.chunks_exact_mut(4).skip(1).zip([index, 0, parent]) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        dump(NETLINK_ROUTE, RTM_GETTFILTER, &body, |message| {
            let found = decode(message).filter(|filter| !filters.contains(filter));
            filters.extend(found);
        })?;
    }
    Ok(filters)
}

/// A filter from its message; none for the head of a group, which has no handle.
fn decode(message: Message<'_>) -> Option<IngressFilter> {
    let handle = u32::from_ne_bytes(array(message.body, 8)?);
    let [_, _, high, low] = u32::from_ne_bytes(array(message.body, 16)?).to_le_bytes();
    let attributes = Attributes(message.body.get(TCMSG..)?);
    let program = attributes.find(TCA_OPTIONS).and_then(|options| Attributes(options).find(TCA_BPF_NAME));
    let filter = IngressFilter {
        kind: attributes.find(TCA_KIND).map(text)?,
        preference: u16::from_le_bytes([high, low]),
        handle,
        program: program.map(text),
    };
    (handle != 0).then_some(filter)
}

/// A string up to its terminating zero.
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
        }
    }

    #[test]
    fn the_head_of_a_group_is_no_filter() {
        let mut body = vec![0; TCMSG];
        body.extend([8, 0, 1, 0, b'u', b'3', b'2', 0]);
        body[16..20].copy_from_slice(&((7_u32 << 16) | 3).to_ne_bytes());
        assert_eq!(decode(Message { kind: 44, body: &body }), None);
        body[8] = 1;
        let filter = IngressFilter { kind: "u32".into(), preference: 7, handle: 1, program: None };
        assert_eq!(decode(Message { kind: 44, body: &body }), Some(filter));
    }
}
