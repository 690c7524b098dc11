//! Chains, rules, sets and elements of `nf_tables` from their messages. Numbers as in `linux/netfilter/nf_tables.h`;
//! integers are big endian.

use super::{Base, Chain, Element, Family, Place, Rule, Set, Source, Value, expression};
use crate::{
    netlink::{Attributes, array},
    nf_tables::{self, SECOND, attributes, chain, element, number, request, rule, text},
};

/// `NFT_SET_INTERVAL` and `NFT_SET_CONCAT`; `NFT_SET_ELEM_INTERVAL_END` and `NFT_SET_ELEM_CATCHALL`.
const SET_FLAGS: u16 = 3;
const INTERVAL: u32 = 4;
const CONCATENATED: u32 = 0x80;
const END: u32 = 1;
const REST: u32 = 2;

/// A chain.
pub(super) fn chain(body: &[u8]) -> Option<Chain> {
    let attributes = attributes(body)?;
    let place = place(body, chain::NAME)?;
    let base = attributes.find(chain::HOOK).map(|hook| {
        let hook = Attributes(hook);
        let mut devices: Vec<String> = hook.find(chain::HOOK_DEVICE).map(text).into_iter().collect();
        if let Some(list) = hook.find(chain::HOOK_DEVICES) {
            devices.extend(Attributes(list).map(|(_, name)| text(name)));
            devices.dedup();
        }
        Base {
            hook: hook.find(chain::HOOK_NUMBER).and_then(number).unwrap_or(u32::MAX),
            priority: hook.find(chain::HOOK_PRIORITY).and_then(number).unwrap_or(0).cast_signed(),
            drops: attributes.find(chain::POLICY).and_then(number) == Some(0),
            is_nat: attributes.find(chain::TYPE).map(text).as_deref() == Some("nat"),
            devices,
        }
    });
    Some(Chain { place, base, rules: Vec::new() })
}

/// A rule and its chain.
pub(super) fn rule(body: &[u8]) -> Option<(Place, Rule)> {
    let attributes = attributes(body)?;
    let place = place(body, SECOND)?;
    let handle =
        attributes.find(rule::HANDLE).and_then(|handle| array(handle, 0)).map_or(0, u64::from_be_bytes);
    let mut found = Rule { handle, ..Rule::default() };
    for (_, expression) in Attributes(attributes.find(rule::EXPRESSIONS).unwrap_or_default()) {
        let expression = Attributes(expression);
        let Some(name) = expression.find(rule::EXPRESSION_NAME).map(text) else { continue };
        let data = Attributes(expression.find(rule::EXPRESSION_DATA).unwrap_or_default());
        if name == "counter" {
            found.packets = data.find(2).and_then(|packets| array(packets, 0)).map(u64::from_be_bytes);
            continue;
        }
        found.steps.push(expression::step(&name, &data));
    }
    Some((place, found))
}

/// A set without its elements.
pub(super) fn set(body: &[u8]) -> Option<(Place, Set)> {
    let attributes = attributes(body)?;
    let flags = attributes.find(SET_FLAGS).and_then(number).unwrap_or(0);
    let set = Set {
        is_ranges: flags & INTERVAL != 0,
        is_concatenated: flags & CONCATENATED != 0,
        elements: Vec::new(),
    };
    Some((place(body, SECOND)?, set))
}

/// The body of a request for the elements of the set that a message is about.
pub(super) fn elements_request(body: &[u8]) -> Option<Vec<u8>> {
    let (place, _) = set(body)?;
    Some(request(place.family.0, &[&place.table, &place.name]))
}

/// Some elements of a set.
pub(super) fn elements(body: &[u8]) -> Option<(Place, Vec<Element>)> {
    let attributes = attributes(body)?;
    let list = Attributes(attributes.find(element::ELEMENTS).unwrap_or_default());
    let elements = list.filter_map(|(_, element)| self::element(&Attributes(element))).collect();
    Some((place(body, SECOND)?, elements))
}

fn element(attributes: &Attributes<'_>) -> Option<Element> {
    let flags = attributes.find(element::FLAGS).and_then(number).unwrap_or(0);
    let bytes = |kind| attributes.find(kind).and_then(expression::bytes);
    let key = bytes(element::KEY);
    let is_rest = flags & REST != 0;
    if key.is_none() && !is_rest {
        return None;
    }
    let value = attributes.find(element::DATA).and_then(|data| {
        let verdict = expression::verdict(data).map(Value::Verdict);
        verdict.or_else(|| expression::bytes(data).map(Value::Bytes))
    });
    Some(Element {
        key: key.unwrap_or_default(),
        last: bytes(element::KEY_END),
        is_end: flags & END != 0,
        is_rest,
        value,
    })
}

fn place(body: &[u8], name: u16) -> Option<Place> {
    let (family, table, name) = nf_tables::place(body, name)?;
    Some(Place { source: Source::Nft, family: Family(family), table, name })
}
