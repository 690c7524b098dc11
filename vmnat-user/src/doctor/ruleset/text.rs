//! A rule as a person reads it: close to what `nft` or `iptables` would print, and the same without either of them.

use std::{fmt::Write as _, net::Ipv4Addr};

use super::{
    Chain, Decision, Field, Place, Register, Rule, Ruleset, Set, Source, Step, Value, Verdict,
    xt::{Header, Match, NOT_DESTINATION, NOT_INPUT, NOT_OUTPUT, NOT_PROTOCOL, NOT_SOURCE},
};

/// How many elements of a set are written.
const ELEMENTS: usize = 6;

/// How a value is to be written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Name,
    Address,
    Number,
    HostNumber,
    State,
    Protocol,
    Bytes,
}

impl Ruleset {
    /// Where and what decided, in one line.
    #[must_use]
    pub fn evidence(&self, decision: &Decision) -> String {
        let Decision { base, chain, rule, rejects: _ } = decision;
        let way = if base == chain { String::new() } else { format!(", reached from {}", base.name) };
        match rule.and_then(|number| Some((number, self.chain(chain)?.rules.get(number)?))) {
            Some((number, rule)) => {
                let handle = match rule.handle {
                    0 => String::new(),
                    handle => format!(" (handle {handle})"),
                };
                let count =
                    rule.packets.map_or(String::new(), |packets| format!(" [{packets} packets so far]"));
                let number = number.saturating_add(1);
                format!("{chain}{way}, rule {number}{handle}: {}{count}", self.rule(chain, rule))
            }
            None => format!("{chain}{}: policy drop", self.chain(chain).map(hook).unwrap_or_default()),
        }
    }

    /// A rule in words.
    #[must_use]
    pub fn rule(&self, place: &Place, rule: &Rule) -> String {
        let mut text = String::new();
        let mut loaded: Vec<(Register, String, Form)> = Vec::new();
        for step in &rule.steps {
            let word = match step {
                Step::Load(field, to) => {
                    let (name, form) = field.text();
                    loaded.retain(|(register, ..)| register != to);
                    loaded.push((*to, name, form));
                    continue;
                }
                Step::Mask { from, to, mask, .. } => {
                    if let Some((_, name, form)) =
                        loaded.iter().find(|(register, ..)| register == from).cloned()
                    {
                        let name = if form == Form::State {
                            name
                        } else {
                            format!("{name} & {}", value(mask, form))
                        };
                        loaded.retain(|(register, ..)| register != to);
                        loaded.push((*to, name, form));
                    }
                    continue;
                }
                Step::Constant(..) | Step::Swap { .. } | Step::SetMark(_) => continue,
                Step::Compare(from, operation, bytes) => {
                    let (name, form) = of(&loaded, *from);
                    // `ct state new` is a mask that must not come to zero.
                    if form == Form::State && bytes.iter().all(|byte| *byte == 0) {
                        state_of(rule, *from, &name)
                    } else {
                        let sign = ["", "!= ", "< ", "<= ", "> ", ">= "];
                        let sign = usize::try_from(*operation).ok().and_then(|place| sign.get(place));
                        format!("{name} {}{}", sign.unwrap_or(&"? "), value(bytes, form))
                    }
                }
                Step::Within { from, is_outside, low, high } => {
                    let (name, form) = of(&loaded, *from);
                    let not = if *is_outside { "!= " } else { "" };
                    format!("{name} {not}{}-{}", value(low, form), value(high, form))
                }
                Step::LookUp { set, from, to, is_absent } => {
                    let (name, form) = of(&loaded, *from);
                    let not = if *is_absent { "!= " } else { "" };
                    let map = if to.is_some() { "vmap " } else { "" };
                    format!("{name} {not}{map}{}", self.set(place, set, form))
                }
                other => other.text(),
            };
            if !word.is_empty() {
                let blank = if text.is_empty() { "" } else { " " };
                let _ = write!(text, "{blank}{word}");
            }
        }
        text
    }

    fn set(&self, place: &Place, name: &str, form: Form) -> String {
        let Some(set) = self.sets.get(&place.beside(name)).filter(|_| name.starts_with("__")) else {
            return format!("@{name}");
        };
        let Set { elements, .. } = set;
        let mut words: Vec<String> = elements
            .iter()
            .filter(|element| !element.is_end)
            .map(|element| {
                let key = if element.is_rest { "*".to_owned() } else { value(&element.key, form) };
                match &element.value {
                    Some(Value::Verdict(verdict)) => format!("{key} : {}", verdict.text()),
                    _ => key,
                }
            })
            .collect();
        if words.len() > ELEMENTS {
            words.truncate(ELEMENTS);
            words.push("...".to_owned());
        }
        format!("{{ {} }}", words.join(", "))
    }
}

/// The hook of a base chain, in words.
fn hook(chain: &Chain) -> String {
    const HOOKS: [&str; 5] = ["prerouting", "input", "forward", "output", "postrouting"];
    let Some(base) = &chain.base else { return String::new() };
    if chain.place.source == Source::Legacy || chain.place.is_of_iptables() {
        return String::new();
    }
    let name = usize::try_from(base.hook).ok().and_then(|hook| HOOKS.get(hook)).copied().unwrap_or("other");
    format!(" (hook {name}, priority {})", base.priority)
}

fn of(loaded: &[(Register, String, Form)], register: Register) -> (String, Form) {
    let found = loaded.iter().find(|(place, ..)| *place == register);
    found.map_or_else(|| ("value".to_owned(), Form::Bytes), |(_, name, form)| (name.clone(), *form))
}

/// The states in the mask before a comparison.
fn state_of(rule: &Rule, register: Register, name: &str) -> String {
    let mask = rule.steps.iter().find_map(|step| match step {
        Step::Mask { to, mask, .. } if *to == register => Some(value(mask, Form::State)),
        _ => None,
    });
    format!("{name} {}", mask.unwrap_or_default())
}

fn value(bytes: &[u8], form: Form) -> String {
    match form {
        Form::Name => {
            let name = crate::nf_tables::text(bytes);
            let star = if bytes.len() < 16 && !bytes.contains(&0) { "*" } else { "" };
            format!("\"{name}{star}\"")
        }
        Form::Address => match <[u8; 4]>::try_from(bytes) {
            Ok(octets) => Ipv4Addr::from(octets).to_string(),
            // A prefix of whole bytes is compared by those alone.
            Err(_) if bytes.len() < 4 => {
                let mut octets = [0; 4];
                octets.iter_mut().zip(bytes).for_each(|(place, byte)| *place = *byte);
                format!("{}/{}", Ipv4Addr::from(octets), bytes.len().saturating_mul(8))
            }
            Err(_) => value(bytes, Form::Bytes),
        },
        Form::Number if bytes.len() <= 8 => number(bytes.iter().copied()).to_string(),
        Form::HostNumber if bytes.len() <= 8 && cfg!(target_endian = "little") => {
            number(bytes.iter().rev().copied()).to_string()
        }
        Form::State => {
            let bits = number(bytes.iter().rev().copied());
            states(u32::try_from(bits).unwrap_or(0))
        }
        Form::Protocol => match bytes {
            [1] => "icmp".to_owned(),
            [6] => "tcp".to_owned(),
            [17] => "udp".to_owned(),
            _ => number(bytes.iter().copied()).to_string(),
        },
        _ => bytes.iter().fold("0x".to_owned(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        }),
    }
}

fn number(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0, |number, byte| number.wrapping_shl(8) | u64::from(byte))
}

fn states(bits: u32) -> String {
    const STATES: [(u32, &str); 5] =
        [(1, "invalid"), (2, "established"), (4, "related"), (8, "new"), (0x40, "untracked")];
    let names = STATES.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| *name);
    names.collect::<Vec<_>>().join(",")
}

impl Field {
    fn text(&self) -> (String, Form) {
        let (name, form) = match self {
            Self::Meta(1) => ("meta protocol", Form::Bytes),
            Self::Meta(3) => ("meta mark", Form::HostNumber),
            Self::Meta(4) => ("iif", Form::HostNumber),
            Self::Meta(5) => ("oif", Form::HostNumber),
            Self::Meta(6) => ("iifname", Form::Name),
            Self::Meta(7) => ("oifname", Form::Name),
            Self::Meta(15) => ("meta nfproto", Form::Number),
            Self::Meta(16) => ("meta l4proto", Form::Protocol),
            Self::Meta(17) => ("ibrname", Form::Name),
            Self::Meta(18) => ("obrname", Form::Name),
            Self::Meta(_) => ("meta", Form::Bytes),
            Self::Header { base: 1, offset: 12, length } if *length <= 4 => ("ip saddr", Form::Address),
            Self::Header { base: 1, offset: 16, length } if *length <= 4 => ("ip daddr", Form::Address),
            Self::Header { base: 1, offset: 9, .. } => ("ip protocol", Form::Protocol),
            Self::Header { base: 2, offset: 0, length: 2 } => ("th sport", Form::Number),
            Self::Header { base: 2, offset: 2, length: 2 } => ("th dport", Form::Number),
            Self::Header { base: 2, offset: 0, length: 1 } => ("icmp type", Form::Number),
            Self::Connection(0) => ("ct state", Form::State),
            Self::Connection(2) => ("ct status", Form::HostNumber),
            Self::Connection(3) => ("ct mark", Form::HostNumber),
            Self::Route { flags, .. } if flags & 1 != 0 => ("fib saddr", Form::HostNumber),
            Self::Route { .. } => ("fib daddr", Form::HostNumber),
            Self::Header { base, offset, length } => {
                let text = format!("@{base},{},{}", offset.saturating_mul(8), length.saturating_mul(8));
                return (text, Form::Bytes);
            }
            Self::Connection(key) => return (format!("ct {key}"), Form::Bytes),
            Self::Unknown(name) => return (name.clone(), Form::Bytes),
        };
        (name.to_owned(), form)
    }
}

impl Verdict {
    fn text(&self) -> String {
        match self {
            Self::Drop => "drop".to_owned(),
            Self::Accept => "accept".to_owned(),
            Self::Continue => "continue".to_owned(),
            Self::Return => "return".to_owned(),
            Self::Queue => "queue".to_owned(),
            Self::Jump(chain) => format!("jump {chain}"),
            Self::Goto(chain) => format!("goto {chain}"),
        }
    }
}

impl Step {
    fn text(&self) -> String {
        match self {
            Self::End(verdict) => verdict.text(),
            Self::Reject => "reject".to_owned(),
            Self::Translate(name) | Self::Pass(name) | Self::Blur(name) => name.to_lowercase(),
            Self::Unknown(name) => format!("[{name}]"),
            Self::Match(condition) => condition.text(),
            _ => String::new(),
        }
    }
}

impl Match {
    fn text(&self) -> String {
        match self {
            Self::Header(header) => header.text(),
            Self::State { states: bits, is_not } => {
                format!("{}--ctstate {}", bang(*is_not), states(*bits).to_uppercase())
            }
            Self::Ports { protocol, sources, destinations, is_not, .. } => {
                let mut text = String::new();
                match protocol {
                    Some(6) => text.push_str("-m tcp"),
                    Some(17) => text.push_str("-m udp"),
                    _ => text.push_str("-m multiport"),
                }
                for (name, ranges, is_not) in
                    [("--sport", sources, is_not.0), ("--dport", destinations, is_not.1)]
                {
                    if ranges.as_slice() != [(0, u16::MAX)] {
                        let words: Vec<String> =
                            ranges
                                .iter()
                                .map(|(first, last)| {
                                    if first == last { first.to_string() } else { format!("{first}:{last}") }
                                })
                                .collect();
                        let _ = write!(text, " {}{name} {}", bang(is_not), words.join(","));
                    }
                }
                text
            }
            Self::Icmp { kind: 255, .. } => "--icmp-type any".to_owned(),
            Self::Icmp { kind, is_not, .. } => format!("{}--icmp-type {kind}", bang(*is_not)),
            Self::AddressType { source, destination, is_not } => {
                let mut words = Vec::new();
                for (name, types, is_not) in
                    [("--src-type", source, is_not.0), ("--dst-type", destination, is_not.1)]
                {
                    if *types != 0 {
                        words.push(format!("{}{name} {}", bang(is_not), kinds(*types)));
                    }
                }
                words.join(" ")
            }
            Self::Mark { value, mask, is_not } => format!("{}--mark {value:#x}/{mask:#x}", bang(*is_not)),
            Self::IsBridged { is_not } => format!("{}--physdev-is-bridged", bang(*is_not)),
            Self::Always(text) => text.clone(),
            Self::Unknown(name) => format!("[-m {name}]"),
        }
    }
}

/// Types of addresses by their bit (`RTN_*`).
fn kinds(types: u16) -> String {
    const TYPES: [&str; 9] = [
        "UNSPEC",
        "UNICAST",
        "LOCAL",
        "BROADCAST",
        "ANYCAST",
        "MULTICAST",
        "BLACKHOLE",
        "UNREACHABLE",
        "PROHIBIT",
    ];
    let is_set =
        |place: usize| u32::try_from(place).is_ok_and(|bit| types.checked_shr(bit).unwrap_or(0) & 1 == 1);
    let names = TYPES.iter().enumerate().filter(|(place, _)| is_set(*place)).map(|(_, name)| *name);
    names.collect::<Vec<_>>().join(",")
}

impl Header {
    fn text(&self) -> String {
        let not = |bit| bang(self.inverted & bit != 0);
        let mut words = Vec::new();
        for (option, (name, is_prefix), bit) in
            [("-i", &self.input, NOT_INPUT), ("-o", &self.output, NOT_OUTPUT)]
        {
            if !name.is_empty() {
                words.push(format!("{}{option} {name}{}", not(bit), if *is_prefix { "+" } else { "" }));
            }
        }
        let addresses = [("-s", &self.source, NOT_SOURCE), ("-d", &self.destination, NOT_DESTINATION)];
        for (option, (net, mask), bit) in addresses {
            if *mask != [0; 4] {
                let length = u32::from_be_bytes(*mask).leading_ones();
                words.push(format!("{}{option} {}/{length}", not(bit), Ipv4Addr::from(*net)));
            }
        }
        match self.protocol {
            0 => {}
            1 => words.push(format!("{}-p icmp", not(NOT_PROTOCOL))),
            6 => words.push(format!("{}-p tcp", not(NOT_PROTOCOL))),
            17 => words.push(format!("{}-p udp", not(NOT_PROTOCOL))),
            number => words.push(format!("{}-p {number}", not(NOT_PROTOCOL))),
        }
        words.join(" ")
    }
}

const fn bang(is_not: bool) -> &'static str {
    if is_not { "! " } else { "" }
}
