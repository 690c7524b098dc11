//! Messages of `nf_tables`, as far as those who read rules share them: numbers as in `linux/netfilter/nf_tables.h`; integers
//! are big endian.

use crate::netlink::{Attributes, array};

/// Bytes of `struct nfgenmsg`: family, version, resource.
const NFGENMSG: usize = 4;

/// The first attribute of chains, rules, sets and elements.
const TABLE: u16 = 1;

/// `NFTA_RULE_CHAIN`, `NFTA_SET_NAME`, `NFTA_SET_ELEM_LIST_SET`.
pub(crate) const SECOND: u16 = 2;

/// Attributes of a chain, and of its hook.
pub(crate) mod chain {
    pub(crate) const NAME: u16 = 3;
    pub(crate) const HOOK: u16 = 4;
    pub(crate) const POLICY: u16 = 5;
    pub(crate) const TYPE: u16 = 7;
    pub(crate) const HOOK_NUMBER: u16 = 1;
    pub(crate) const HOOK_PRIORITY: u16 = 2;
    pub(crate) const HOOK_DEVICE: u16 = 3;
    pub(crate) const HOOK_DEVICES: u16 = 4;
    pub(crate) const DEVICE_PREFIX: u16 = 2;
}

/// Attributes of a rule, and of its expressions.
pub(crate) mod rule {
    pub(crate) const HANDLE: u16 = 3;
    pub(crate) const EXPRESSIONS: u16 = 4;
    pub(crate) const EXPRESSION_NAME: u16 = 1;
    pub(crate) const EXPRESSION_DATA: u16 = 2;
}

/// Attributes of a list of elements, and of each.
pub(crate) mod element {
    pub(crate) const ELEMENTS: u16 = 3;
    pub(crate) const KEY: u16 = 1;
    pub(crate) const DATA: u16 = 2;
    pub(crate) const FLAGS: u16 = 3;
    pub(crate) const KEY_END: u16 = 10;
}

/// The attributes of a message's body; none when it is too short to have any.
pub(crate) fn attributes(body: &[u8]) -> Option<Attributes<'_>> {
    body.get(NFGENMSG..).map(Attributes)
}

/// What a message is about: family, table, and the name that stands in the attribute `name`.
pub(crate) fn place(body: &[u8], name: u16) -> Option<(u8, String, String)> {
    let attributes = attributes(body)?;
    Some((*body.first()?, attributes.find(TABLE).map(text)?, attributes.find(name).map(text)?))
}

/// The body of a dump request: family, and table and set where they are named.
pub(crate) fn request(family: u8, names: &[&str]) -> Vec<u8> {
    let mut body = vec![family, 0, 0, 0];
    for (kind, name) in (TABLE..).zip(names) {
        let length = u16::try_from(name.len().saturating_add(5)).unwrap_or(u16::MAX);
        body.extend(length.to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(name.as_bytes());
        body.push(0);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    body
}

/// A big-endian word.
pub(crate) fn number(value: &[u8]) -> Option<u32> {
    array(value, 0).map(u32::from_be_bytes)
}

/// A string up to its terminating zero.
pub(crate) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}
