//! One rule and one packet: the registers, the comparisons, the look-ups. A byte of a register is known or not; what
//! compares an unknown byte is neither true nor false.

use super::{
    Element, Family, Field, Place, Rule, Ruleset, Set, Step, Value, Verdict,
    evaluate::{Known, Packet},
    expression::REGISTERS,
};

/// What a rule does to the packets that it matches.
pub(super) enum End {
    /// Nothing.
    Next,
    Verdict(Verdict),
    Reject,
    Translate(String),
    /// It may be anything.
    Unknown,
}

/// Bytes of a registers' file, known or not.
type Registers = [Option<u8>; REGISTERS];

/// Judges a rule.
pub(super) fn rule(ruleset: &Ruleset, place: &Place, rule: &Rule, packet: &mut Packet) -> (Known, End) {
    let mut registers: Registers = [None; REGISTERS];
    let mut holds = Known::Yes;
    for step in &rule.steps {
        let met = match step {
            Step::Load(field, to) => {
                write(&mut registers, *to, &field.load(packet));
                Known::Yes
            }
            Step::Constant(to, bytes) => {
                let bytes: Vec<_> = bytes.iter().copied().map(Some).collect();
                write(&mut registers, *to, &bytes);
                Known::Yes
            }
            Step::SetMark(from) => {
                let mark: Option<Vec<u8>> = read(&registers, *from, 4).into_iter().collect();
                let mark = mark.and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
                packet.mark = if holds == Known::Yes { mark } else { None };
                Known::Yes
            }
            Step::Mask { from, to, mask, xor } => {
                let bytes: Vec<_> = read(&registers, *from, mask.len())
                    .into_iter()
                    .zip(mask.iter().zip(xor.iter().chain(std::iter::repeat(&0))))
                    .map(|(byte, (mask, xor))| match (byte, *mask) {
                        (_, 0) => Some(*xor),
                        (byte, mask) => byte.map(|byte| (byte & mask) ^ xor),
                    })
                    .collect();
                write(&mut registers, *to, &bytes);
                Known::Yes
            }
            Step::Swap { from, to, length, size } => {
                let mut bytes = read(&registers, *from, (*length).min(REGISTERS));
                bytes.chunks_mut((*size).max(1)).for_each(<[_]>::reverse);
                // Numbers of the host are turned; so are those of the network where the host is little endian.
                if cfg!(target_endian = "big") {
                    bytes = read(&registers, *from, (*length).min(REGISTERS));
                }
                write(&mut registers, *to, &bytes);
                Known::Yes
            }
            Step::Compare(from, operation, bytes) => {
                compare(&read(&registers, *from, bytes.len()), *operation, bytes)
            }
            Step::Within { from, is_outside, low, high } => {
                let value = read(&registers, *from, low.len());
                compare(&value, 5, low).and(compare(&value, 3, high)).turned(*is_outside)
            }
            Step::LookUp { set, from, to, is_absent } => {
                match (look_up(ruleset, place, set, &registers, *from), to) {
                    (Found::Unknown, _) => {
                        if to.is_some() {
                            return (Known::Maybe, End::Unknown);
                        }
                        Known::Maybe
                    }
                    (Found::Nothing, _) => Known::of(*is_absent),
                    (Found::Element(element), Some(0)) => match &element.value {
                        Some(Value::Verdict(verdict)) => return (holds, End::Verdict(verdict.clone())),
                        _ => return (holds, End::Unknown),
                    },
                    (Found::Element(element), Some(to)) => {
                        if let Some(Value::Bytes(bytes)) = &element.value {
                            let bytes: Vec<_> = bytes.iter().copied().map(Some).collect();
                            write(&mut registers, *to, &bytes);
                        }
                        Known::Yes
                    }
                    (Found::Element(_), None) => Known::of(!is_absent),
                }
            }
            Step::Match(condition) => condition.holds(packet),
            Step::Unknown(_) => Known::Maybe,
            Step::Pass(_) => Known::Yes,
            Step::Blur(_) => {
                packet.mark = None;
                Known::Yes
            }
            Step::End(verdict) => return (holds, End::Verdict(verdict.clone())),
            Step::Reject => return (holds, End::Reject),
            Step::Translate(text) => return (holds, End::Translate(text.clone())),
        };
        holds = holds.and(met);
        if holds == Known::No {
            return (holds, End::Next);
        }
    }
    // A target that is not known may end the packet, or let it go on.
    let is_unknown_end = matches!(rule.steps.last(), Some(Step::Unknown(_)));
    (holds, if is_unknown_end { End::Unknown } else { End::Next })
}

fn read(registers: &Registers, from: usize, length: usize) -> Vec<Option<u8>> {
    let bytes = registers.iter().skip(from).copied();
    bytes.chain(std::iter::repeat(None)).take(length.min(REGISTERS)).collect()
}

/// A value fills whole words; what is behind it in its last one is zero.
fn write(registers: &mut Registers, to: usize, bytes: &[Option<u8>]) {
    let padded =
        bytes.iter().copied().chain(std::iter::repeat(Some(0))).take(bytes.len().next_multiple_of(4));
    registers.iter_mut().skip(to).zip(padded).for_each(|(place, byte)| *place = byte);
}

/// 0 equal, 1 not, 2 less, 3 at most, 4 more, 5 at least.
fn compare(value: &[Option<u8>], operation: u32, with: &[u8]) -> Known {
    use std::cmp::Ordering;
    // Known bytes that differ decide about equality, whatever the others are.
    let differs = value.iter().zip(with).any(|(byte, with)| byte.is_some_and(|byte| byte != *with));
    let known: Option<Vec<u8>> = value.iter().copied().collect();
    let ordering = known.map(|known| known.as_slice().cmp(with));
    match (operation, ordering) {
        (0, _) if differs => Known::No,
        (1, _) if differs => Known::Yes,
        (0, Some(ordering)) => Known::of(ordering == Ordering::Equal),
        (1, Some(ordering)) => Known::of(ordering != Ordering::Equal),
        (2, Some(ordering)) => Known::of(ordering == Ordering::Less),
        (3, Some(ordering)) => Known::of(ordering != Ordering::Greater),
        (4, Some(ordering)) => Known::of(ordering == Ordering::Greater),
        (5, Some(ordering)) => Known::of(ordering != Ordering::Less),
        _ => Known::Maybe,
    }
}

enum Found<'a> {
    Element(&'a Element),
    Nothing,
    Unknown,
}

fn look_up<'a>(
    ruleset: &'a Ruleset,
    place: &Place,
    set: &str,
    registers: &Registers,
    from: usize,
) -> Found<'a> {
    let Some(set) = ruleset.sets.get(&place.beside(set)) else { return Found::Unknown };
    let rest = set.elements.iter().find(|element| element.is_rest);
    let Some(length) =
        set.elements.iter().map(|element| element.key.len()).max().filter(|length| *length > 0)
    else {
        return rest.map_or(Found::Nothing, Found::Element);
    };
    let value: Option<Vec<u8>> = read(registers, from, length).into_iter().collect();
    let Some(value) = value else { return Found::Unknown };
    let found = if set.is_ranges && !set.is_concatenated { range(set, &value) } else { exact(set, &value) };
    found.or(rest).map_or(Found::Nothing, Found::Element)
}

/// The element that is, or whose fields' ranges hold, a value. Fields begin at words.
fn exact<'a>(set: &'a Set, value: &[u8]) -> Option<&'a Element> {
    set.elements.iter().find(|element| match &element.last {
        _ if element.is_rest => false,
        None => element.key == value,
        Some(last) => {
            let fields = value.chunks(4).zip(element.key.chunks(4)).zip(last.chunks(4));
            fields.into_iter().all(|((field, first), last)| first <= field && field <= last)
        }
    })
}

/// The range that holds a value: the greatest border that is not above it begins one, or ends one.
fn range<'a>(set: &'a Set, value: &[u8]) -> Option<&'a Element> {
    let below = set.elements.iter().filter(|element| !element.is_rest && element.key.as_slice() <= value);
    let border = below.max_by(|one, other| one.key.cmp(&other.key).then(other.is_end.cmp(&one.is_end)))?;
    (!border.is_end).then_some(border)
}

impl Field {
    /// The field of a packet.
    fn load(&self, packet: &Packet) -> Vec<Option<u8>> {
        let known = |bytes: &[u8]| bytes.iter().copied().map(Some).collect::<Vec<_>>();
        let unknown = |length: usize| vec![None; length.min(REGISTERS)];
        match self {
            Self::Meta(key) => meta(*key, packet).map_or_else(|| unknown(16), |bytes| known(&bytes)),
            Self::Header { base, offset, length } => {
                let (offset, length) =
                    (usize::try_from(*offset).unwrap_or(usize::MAX), usize::try_from(*length).unwrap_or(0));
                let header = packet.header(*base);
                let bytes = header.into_iter().skip(offset).chain(std::iter::repeat(None));
                bytes.take(length.min(REGISTERS)).collect()
            }
            // `NFT_CT_STATE`, `NFT_CT_DIRECTION`, `NFT_CT_STATUS`, `NFT_CT_MARK`.
            Self::Connection(0) => known(&packet.state.xtables().to_ne_bytes()),
            Self::Connection(1) => known(&[u8::from(packet.state == super::Sender::Answers)]),
            // Nothing is translated yet where a flow opens.
            Self::Connection(2) if packet.state == super::Sender::Opens => known(&[0; 4]),
            Self::Connection(3) => known(&[0; 4]),
            Self::Route { result: 3, flags } if flags & 1 != 0 => known(&packet.source_type.to_ne_bytes()),
            Self::Route { result: 3, flags } if flags & 2 != 0 => {
                known(&packet.destination_type.to_ne_bytes())
            }
            Self::Connection(_) | Self::Unknown(_) | Self::Route { .. } => unknown(16),
        }
    }
}

/// `NFT_META_*`.
fn meta(key: u32, packet: &Packet) -> Option<Vec<u8>> {
    const ETHERNET: u16 = 1;
    let name = |name: &Option<String>| {
        let bytes = name.as_deref().unwrap_or_default().bytes();
        bytes.chain(std::iter::repeat(0)).take(16).collect::<Vec<u8>>()
    };
    Some(match key {
        1 => vec![0x08, 0x00],
        3 => packet.mark?.to_ne_bytes().to_vec(),
        4 => packet.indices.0.to_ne_bytes().to_vec(),
        5 => packet.indices.1.to_ne_bytes().to_vec(),
        6 => name(&packet.input),
        7 => name(&packet.output),
        8 | 9 => ETHERNET.to_ne_bytes().to_vec(),
        // `NFPROTO_BRIDGE` or `NFPROTO_IPV4`.
        15 => vec![if packet.family == Family::BRIDGE { 7 } else { 2 }],
        16 => vec![packet.protocol],
        // To one host.
        19 => vec![u8::from(packet.destination_type == 3)],
        _ => return None,
    })
}

impl Packet {
    /// The bytes of a header: 0 link, 1 network, 2 transport.
    fn header(&self, base: u32) -> Vec<Option<u8>> {
        let known = |bytes: &[u8]| bytes.iter().copied().map(Some).collect::<Vec<_>>();
        let port = |port: Option<u16>| match port {
            Some(port) => known(&port.to_be_bytes()),
            None => vec![None; 2],
        };
        match (base, self.icmp) {
            (0, _) => [vec![None; 12], known(&[0x08, 0x00])].concat(),
            (1, _) => [
                known(&[0x45, 0]),
                vec![None; 4],
                // Whole, and not to be cut.
                known(&[0x40, 0, 64, self.protocol]),
                vec![None; 2],
                known(&self.source),
                known(&self.destination),
            ]
            .concat(),
            (2, Some((kind, code))) => known(&[kind, code]),
            (2, None) => {
                [port(self.ports.0), port(self.ports.1), vec![None; 9], known(&[self.tcp_flags])].concat()
            }
            _ => Vec::new(),
        }
    }
}
