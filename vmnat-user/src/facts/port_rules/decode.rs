//! Chains, rules and set elements of nftables from their messages: only as much of an expression as tells which
//! interfaces it is about. Numbers as in `linux/netfilter/nf_tables.h`; integers are big endian.

use super::{Base, Name, Place, Rule};
use crate::{
    netlink::Attributes,
    nf_tables::{self, SECOND, attributes, chain, element, number, rule, text},
};

/// `NFNL_SUBSYS_NFTABLES` with `NFT_MSG_GETCHAIN`, `NFT_MSG_GETRULE` and `NFT_MSG_GETSETELEM`.
pub(super) const CHAINS: u16 = 0x0a04;
pub(super) const RULES: u16 = 0x0a07;
pub(super) const ELEMENTS: u16 = 0x0a0d;

/// Families: `enum` of `linux/netfilter.h`.
pub(super) const ANY: u8 = 0;
pub(super) const INET: u8 = 1;
pub(super) const NETDEV: u8 = 5;
pub(super) const BRIDGE: u8 = 7;

/// Bytes of an interface's name (`IFNAMSIZ`).
const NAME: usize = 16;

/// `NFTA_LIST_ELEM`, and `NFTA_DATA_VALUE` and `NFTA_DATA_VERDICT` of constants.
const LIST_ELEMENT: u16 = 1;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;

/// Keys of `meta` that are an interface's name: `iifname`, `oifname`, `ibrname`, `obrname`.
const NAME_KEYS: [u32; 4] = [6, 7, 17, 18];

/// `NFT_JUMP` and `NFT_GOTO`.
const JUMPS: [i32; 2] = [-3, -4];

/// A base chain through which packets of ports may come: of the bridge family, or bound to devices.
pub(super) fn base(body: &[u8]) -> Option<Base> {
    let attributes = attributes(body)?;
    let place = place(body, chain::NAME)?;
    let hook = Attributes(attributes.find(chain::HOOK)?);
    let mut devices: Vec<Name> = hook.find(chain::HOOK_DEVICE).map(exact).into_iter().collect();
    if let Some(list) = hook.find(chain::HOOK_DEVICES) {
        devices.extend(
            Attributes(list)
                .map(|(kind, text)| Name { is_prefix: kind == chain::DEVICE_PREFIX, ..exact(text) }),
        );
        devices.dedup();
    }
    let drops = attributes.find(chain::POLICY).and_then(number) == Some(0);
    (place.family == BRIDGE || !devices.is_empty()).then_some(Base { place, drops, devices })
}

/// A rule and its chain.
pub(super) fn rule(body: &[u8]) -> Option<(Place, Rule)> {
    let attributes = attributes(body)?;
    let place = place(body, SECOND)?;
    let mut found = Rule::default();
    // The register that holds an interface's name.
    let mut loaded = None;
    for (kind, expression) in Attributes(attributes.find(rule::EXPRESSIONS).unwrap_or_default()) {
        let expression = Attributes(expression);
        let name = expression.find(rule::EXPRESSION_NAME).map(text);
        let data = Attributes(expression.find(rule::EXPRESSION_DATA).unwrap_or_default());
        if let (LIST_ELEMENT, Some(name)) = (kind, name) {
            read(&name, &data, &mut loaded, &mut found);
        }
    }
    Some((place, found))
}

/// Reads one expression.
fn read(name: &str, data: &Attributes<'_>, loaded: &mut Option<u32>, rule: &mut Rule) {
    let word = |kind| data.find(kind).and_then(number);
    match name {
        "meta" if word(2).is_some_and(|key| NAME_KEYS.contains(&key)) => *loaded = word(1),
        // Register, operation (0: equal), constant.
        "cmp" if loaded.is_some() && word(1) == *loaded => {
            let value = data.find(3).and_then(|data| Attributes(data).find(DATA_VALUE));
            if let (Some(0), Some(value)) = (word(2), value) {
                rule.names.push(compared(value));
            }
        }
        // Set, register, flags (1: not in it).
        "lookup" if loaded.is_some() && word(2) == *loaded && word(5).unwrap_or(0) == 0 => {
            rule.sets.extend(data.find(1).map(text));
        }
        // Register and constant: a verdict among others.
        "immediate" => {
            let verdict = data.find(2).and_then(|data| Attributes(data).find(DATA_VERDICT)).map(Attributes);
            let code = verdict.as_ref().and_then(|verdict| verdict.find(1)).and_then(number);
            if code.is_some_and(|code| JUMPS.contains(&code.cast_signed())) {
                rule.jump = verdict.and_then(|verdict| verdict.find(2)).map(text);
            }
        }
        // Others write a register first of all, or read it to change it.
        _ if word(1) == *loaded => *loaded = None,
        _ => {}
    }
}

/// The interfaces' names in one message of a set's elements; none where they are ranges, or more than names.
pub(super) fn elements(body: &[u8]) -> Option<Vec<Name>> {
    let attributes = attributes(body)?;
    let list = Attributes(attributes.find(element::ELEMENTS).unwrap_or_default());
    list.map(|(_, element)| {
        let element = Attributes(element);
        let is_plain = element.find(element::FLAGS).and_then(number).unwrap_or(0) == 0
            && element.find(element::KEY_END).is_none();
        let key = element.find(element::KEY).and_then(|key| Attributes(key).find(DATA_VALUE))?;
        // Of a concatenation, the name comes first.
        is_plain.then(|| key.get(..NAME).map(exact))?
    })
    .collect()
}

fn place(body: &[u8], name: u16) -> Option<Place> {
    let (family, table, name) = nf_tables::place(body, name)?;
    Some(Place { family, table, name })
}

/// A name in a comparison: without its terminating zero, and shorter than a name may be, it is a prefix.
fn compared(value: &[u8]) -> Name {
    Name { is_prefix: value.len() < NAME && !value.contains(&0), ..exact(value) }
}

fn exact(value: &[u8]) -> Name {
    Name { text: text(value), is_prefix: false }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(value.len().saturating_add(4)).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn word(kind: u16, value: u32) -> Vec<u8> {
        attribute(kind, &value.to_be_bytes())
    }

    fn expression(name: &str, data: &[Vec<u8>]) -> Vec<u8> {
        let data = attribute(2, &data.concat());
        attribute(1, &[attribute(1, name.as_bytes()), data].concat())
    }

    fn message(family: u8, attributes: &[Vec<u8>]) -> Vec<u8> {
        [vec![family, 0, 0, 0], attributes.concat()].concat()
    }

    fn decoded(expressions: &[Vec<u8>]) -> Rule {
        let attributes =
            [attribute(1, b"filter\0"), attribute(2, b"FORWARD\0"), attribute(4, &expressions.concat())];
        let (place, found) = rule(&message(BRIDGE, &attributes)).unwrap();
        assert_eq!(place, Place { family: BRIDGE, table: "filter".into(), name: "FORWARD".into() });
        found
    }

    fn load_name() -> Vec<u8> {
        expression("meta", &[word(2, 6), word(1, 1)])
    }

    fn compare(operation: u32, value: &[u8]) -> Vec<u8> {
        expression("cmp", &[word(1, 1), word(2, operation), attribute(3, &attribute(1, value))])
    }

    #[test]
    fn names_are_read_whole_by_prefix_and_not_when_excluded() {
        let mut padded = *b"vnet0\0\0\0\0\0\0\0\0\0\0\0";
        padded[4] = b'7';
        let name = |value: &[u8]| decoded(&[load_name(), compare(0, value)]).names;
        assert_eq!(name(&padded), [Name { text: "vnet7".into(), is_prefix: false }]);
        assert_eq!(name(b"vnet7\0"), [Name { text: "vnet7".into(), is_prefix: false }]);
        assert_eq!(name(b"vnet"), [Name { text: "vnet".into(), is_prefix: true }]);
        assert!(decoded(&[load_name(), compare(1, &padded)]).names.is_empty());
        assert!(decoded(&[compare(0, &padded)]).names.is_empty(), "another thing is compared");
        let overwritten = expression("payload", &[word(1, 1)]);
        assert!(decoded(&[load_name(), overwritten, compare(0, &padded)]).names.is_empty());
    }

    #[test]
    fn sets_and_jumps_are_read() {
        let beside = expression("payload", &[word(1, 2)]);
        let look_up = |flags| expression("lookup", &[attribute(1, b"guests\0"), word(2, 1), word(5, flags)]);
        assert_eq!(decoded(&[load_name(), beside, look_up(0)]).sets, ["guests"]);
        assert!(decoded(&[load_name(), look_up(1)]).sets.is_empty());
        let verdict = [word(1, (-3_i32).cast_unsigned()), attribute(2, b"I-vnet0\0")].concat();
        let jump = expression("immediate", &[word(1, 0), attribute(2, &attribute(2, &verdict))]);
        assert_eq!(decoded(&[jump]).jump.as_deref(), Some("I-vnet0"));
    }

    #[test]
    fn base_chains_of_bridges_and_devices_are_taken() {
        let chain = |family, hook: &[Vec<u8>], policy| {
            let hook = attribute(4, &hook.concat());
            base(&message(family, &[attribute(1, b"t\0"), attribute(3, b"c\0"), hook, word(5, policy)]))
        };
        assert!(chain(BRIDGE, &[word(1, 2)], 0).unwrap().drops);
        assert!(!chain(BRIDGE, &[word(1, 2)], 1).unwrap().drops);
        assert_eq!(chain(INET, &[word(1, 2)], 0), None);
        let devices = chain(NETDEV, &[attribute(3, b"eth0\0"), attribute(4, &attribute(1, b"eth0\0"))], 1);
        assert_eq!(devices.unwrap().devices, [Name { text: "eth0".into(), is_prefix: false }]);
        assert_eq!(base(&message(BRIDGE, &[attribute(1, b"t\0"), attribute(3, b"c\0")])), None);
    }

    #[test]
    fn elements_are_names_unless_they_are_ranges() {
        let mut padded = [0; 24];
        padded[..5].copy_from_slice(b"vnet0");
        let key = |value: &[u8]| attribute(1, &attribute(1, value));
        let list = |element: &[Vec<u8>]| {
            elements(&message(BRIDGE, &[attribute(3, &attribute(1, &element.concat()))]))
        };
        let name = Name { text: "vnet0".into(), is_prefix: false };
        assert_eq!(list(&[key(&padded[..16])]), Some(vec![name.clone()]));
        assert_eq!(list(&[key(&padded)]), Some(vec![name]), "the rest of a concatenation does not matter");
        assert_eq!(list(&[key(&padded[..4])]), None);
        assert_eq!(list(&[key(&padded[..16]), word(3, 1)]), None);
    }

    proptest! {
        #[test]
        fn decoding_never_panics(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (base(&body), rule(&body), elements(&body));
        }
    }
}
