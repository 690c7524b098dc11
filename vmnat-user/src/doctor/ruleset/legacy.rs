//! Tables of `ip_tables`, as `IPT_SO_GET_ENTRIES` gives them: entries behind each other, each with a header, conditions
//! and a target; a jump names the offset of its chain's first entry. An entry whose target is `ERROR` heads a chain of
//! the operator's, or ends the table. See `linux/netfilter_ipv4/ip_tables.h`.

use std::collections::BTreeMap;

use super::{
    Base, Chain, Family, Place, Rule, Source, Step, Verdict,
    xt::{self, Header, Match},
};
use crate::{netlink::array, nf_tables::text};

/// Bytes of `struct ipt_getinfo` and of a table's name in it.
const INFO: usize = 84;
const NAME: usize = 32;

/// Bytes of `struct ipt_entry` before its conditions, and of the head of a condition or a target.
const ENTRY: usize = 112;
const HEAD: usize = 32;

/// `IPT_F_GOTO`.
const GOTO: u8 = 2;

/// Hooks with their chain.
const HOOKS: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

/// Entries of a table that are read.
const MOST: usize = 1_000_000;

/// Name, hooks and entries of a table as one body.
pub(super) fn packed(table: &str, info: &[u8], entries: &[u8]) -> Vec<u8> {
    let mut body = vec![0; NAME];
    body.iter_mut().take(31).zip(table.bytes()).for_each(|(place, byte)| *place = byte);
    body.extend(info.iter().copied().chain(std::iter::repeat(0)).take(INFO));
    body.extend(entries);
    body
}

/// One entry.
struct Entry<'a> {
    next: usize,
    steps: Vec<Step>,
    packets: u64,
    target: Target<'a>,
}

enum Target<'a> {
    /// `XT_STANDARD_TARGET`: a verdict below zero, an offset from zero on; whether it comes back.
    Standard(i32, bool),
    /// A chain's head, or the end.
    Head(String),
    Other(&'a [u8]),
}

/// The chains of a table.
pub(super) fn table(body: &[u8]) -> Vec<Chain> {
    let name = text(body.get(..NAME).unwrap_or_default());
    let info = body.get(NAME..NAME.saturating_add(INFO)).unwrap_or_default();
    let entries = body.get(NAME.saturating_add(INFO)..).unwrap_or_default();
    let place = |chain: &str| Place {
        source: Source::Legacy,
        family: Family::IPV4,
        table: name.clone(),
        name: chain.to_owned(),
    };
    let hooks = hooks(info);
    let names = names(entries, &hooks);
    let mut chains: Vec<Chain> = Vec::new();
    let mut offset = 0;
    for _ in 0..MOST {
        let Some(entry) = read(entries, offset) else { break };
        let hook = hooks.get(&offset).copied();
        if let Some((number, _)) = hook {
            let base = Base {
                hook: u32::try_from(number).unwrap_or(u32::MAX),
                priority: priority(&name, number),
                drops: false,
                is_nat: name == "nat",
                devices: Vec::new(),
            };
            let title = HOOKS.get(number).copied().unwrap_or_default();
            chains.push(Chain { place: place(title), base: Some(base), rules: Vec::new() });
        }
        if let Target::Head(title) = &entry.target {
            chains.push(Chain { place: place(title), base: None, rules: Vec::new() });
        } else if let Some(chain) = chains.last_mut() {
            add(chain, &entry, offset, &hooks, &names);
        }
        offset = entry.next;
    }
    // The last entry ends the table, and heads nothing.
    chains.retain(|chain| chain.base.is_some() || chain.place.name != "ERROR");
    chains
}

fn add(
    chain: &mut Chain,
    entry: &Entry<'_>,
    offset: usize,
    hooks: &BTreeMap<usize, (usize, usize)>,
    names: &BTreeMap<usize, String>,
) {
    // The underflow is the policy.
    if let Some(base) = &mut chain.base
        && hooks.values().any(|(number, underflow)| {
            *underflow == offset && u32::try_from(*number).is_ok_and(|number| number == base.hook)
        })
    {
        base.drops = matches!(entry.target, Target::Standard(-1, _));
        return;
    }
    let mut steps = entry.steps.clone();
    match &entry.target {
        Target::Standard(code, returns) => steps.extend(standard(*code, *returns, entry.next, names)),
        Target::Other(name) => steps.push(xt::target(&text(name))),
        Target::Head(_) => {}
    }
    chain.rules.push(Rule { handle: 0, steps, packets: Some(entry.packets) });
}

/// A standard target: no step where it only leads to the next entry.
fn standard(code: i32, returns: bool, next: usize, names: &BTreeMap<usize, String>) -> Option<Step> {
    let verdict = match code {
        -1 => Verdict::Drop,
        -2 => Verdict::Accept,
        -4 => Verdict::Queue,
        -5 => Verdict::Return,
        offset => {
            let offset = usize::try_from(offset).ok()?;
            if offset == next {
                return None;
            }
            let name = names.get(&offset)?.clone();
            if returns { Verdict::Jump(name) } else { Verdict::Goto(name) }
        }
    };
    Some(Step::End(verdict))
}

/// Hooks by the offset of their first entry, with that of their policy.
fn hooks(info: &[u8]) -> BTreeMap<usize, (usize, usize)> {
    let word = |at| array(info, at).map(u32::from_ne_bytes);
    let valid = word(NAME).unwrap_or(0);
    let hook = |number: usize| {
        let entry = word(number.checked_mul(4)?.checked_add(36)?)?;
        let underflow = word(number.checked_mul(4)?.checked_add(56)?)?;
        let is_valid = valid & 1_u32.checked_shl(u32::try_from(number).ok()?)? != 0;
        let offsets = (usize::try_from(entry).ok()?, (number, usize::try_from(underflow).ok()?));
        is_valid.then_some(offsets)
    };
    (0..HOOKS.len()).filter_map(hook).collect()
}

/// The names of chains by the offset of their first rule.
fn names(entries: &[u8], hooks: &BTreeMap<usize, (usize, usize)>) -> BTreeMap<usize, String> {
    let builtin =
        hooks.iter().map(|(offset, (number, _))| (*offset, HOOKS.get(*number).copied().unwrap_or_default()));
    let mut names: BTreeMap<usize, String> =
        builtin.map(|(offset, name)| (offset, name.to_owned())).collect();
    let mut offset = 0;
    for _ in 0..MOST {
        let Some(entry) = read(entries, offset) else { break };
        if let Target::Head(name) = entry.target {
            names.insert(entry.next, name);
        }
        offset = entry.next;
    }
    names
}

/// The priority of a table's hook: `NF_IP_PRI_*`.
fn priority(table: &str, hook: usize) -> i32 {
    match (table, hook) {
        ("raw", _) => -300,
        ("mangle", _) => -150,
        ("nat", 0 | 3) => -100,
        ("nat", _) => 100,
        ("security", _) => 50,
        _ => 0,
    }
}

fn read(entries: &[u8], offset: usize) -> Option<Entry<'_>> {
    let entry = entries.get(offset..)?;
    let target_offset = usize::from(array(entry, 88).map(u16::from_ne_bytes)?);
    let length = usize::from(array(entry, 90).map(u16::from_ne_bytes)?);
    let entry = entry.get(..length)?;
    if target_offset < ENTRY || length < target_offset.checked_add(HEAD)? {
        return None;
    }
    let mut steps: Vec<Step> =
        header(entry).map(|header| Step::Match(Match::Header(Box::new(header)))).into_iter().collect();
    let mut conditions = entry.get(ENTRY..target_offset)?;
    while let (Some(size), Some(revision)) =
        (array(conditions, 0).map(u16::from_ne_bytes), conditions.get(31).copied())
    {
        let size = usize::from(size);
        let Some(data) = conditions.get(HEAD..size) else { break };
        let name = text(conditions.get(2..31)?);
        steps.push(Step::Match(xt::read(&name, revision.into(), data)));
        conditions = conditions.get(size..)?;
    }
    let target = entry.get(target_offset..)?;
    let name = target.get(2..31)?;
    let target = match text(name).as_str() {
        "" => Target::Standard(array(target, HEAD).map(i32::from_ne_bytes)?, *entry.get(82)? & GOTO == 0),
        "ERROR" => Target::Head(text(target.get(HEAD..)?)),
        _ => Target::Other(name),
    };
    let packets = array(entry, 96).map(u64::from_ne_bytes)?;
    Some(Entry { next: offset.checked_add(length)?, steps, packets, target })
}

/// What the head of an entry asks for; none where it asks for nothing.
fn header(entry: &[u8]) -> Option<Header> {
    let pair = |at: usize| Some((array(entry, at)?, array(entry, at.checked_add(8)?)?));
    let name = |at: usize| {
        let (name, mask) =
            (entry.get(at..at.checked_add(16)?)?, entry.get(at.checked_add(32)?..at.checked_add(48)?)?);
        let name = text(name);
        // The mask covers the terminating zero too, but of `eth+`, which is kept with its sign, only what is before it.
        let covered = mask.iter().take_while(|byte| **byte != 0).count();
        let is_prefix = covered > 0 && covered <= name.len();
        let name = if covered == 0 { String::new() } else { name.chars().take(covered).collect() };
        Some((name, is_prefix))
    };
    let header = Header {
        source: pair(0)?,
        destination: pair(4)?,
        input: name(16)?,
        output: name(32)?,
        protocol: array(entry, 80).map(u16::from_ne_bytes)?,
        inverted: *entry.get(83)?,
    };
    (header != Header::default()).then_some(header)
}
