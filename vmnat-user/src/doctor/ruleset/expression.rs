//! The expressions of `nf_tables`' rules as steps: what each compares, loads or decides. One that is not known becomes a
//! condition that cannot be judged, never one that holds.

use super::{Field, Register, Step, Verdict, xt};
use crate::{
    netlink::Attributes,
    nf_tables::{number, text},
};

/// `NFTA_DATA_VALUE` and `NFTA_DATA_VERDICT`.
const VALUE: u16 = 1;
const VERDICT: u16 = 2;

/// Bytes of all registers.
pub(super) const REGISTERS: usize = 80;

/// `NFT_META_MARK` and `NFT_CT_MARK`.
const META_MARK: u32 = 3;

/// The step of an expression.
pub(super) fn step(name: &str, data: &Attributes<'_>) -> Step {
    known(name, data).unwrap_or_else(|| Step::Unknown(name.to_owned()))
}

fn known(name: &str, data: &Attributes<'_>) -> Option<Step> {
    let word = |kind| data.find(kind).and_then(number);
    let register = |kind| word(kind).and_then(place_of);
    let constant = |kind| data.find(kind).and_then(bytes);
    Some(match name {
        "meta" => match register(1) {
            Some(to) => Step::Load(Field::Meta(word(2)?), to),
            None if word(2)? == META_MARK => Step::SetMark(register(3)?),
            None => Step::Pass("meta set".into()),
        },
        "ct" => match register(1) {
            Some(to) => Step::Load(Field::Connection(word(2)?), to),
            None => Step::Blur("ct set".into()),
        },
        "payload" => match register(1) {
            Some(to) => {
                let field = Field::Header { base: word(2)?, offset: word(3)?, length: word(4)? };
                Step::Load(field, to)
            }
            None => Step::Blur("payload set".into()),
        },
        "fib" => Step::Load(Field::Route { result: word(2)?, flags: word(3)? }, register(1)?),
        "exthdr" | "rt" | "socket" | "numgen" | "hash" | "xfrm" | "osf" | "tunnel" => {
            Step::Load(Field::Unknown(name.to_owned()), register(1)?)
        }
        "bitwise" => mask(data)?,
        "byteorder" => Step::Swap {
            from: register(1)?,
            to: register(2)?,
            length: usize::try_from(word(4)?).ok()?,
            size: usize::try_from(word(5)?).ok()?,
        },
        "cmp" => Step::Compare(register(1)?, word(2)?, constant(3)?),
        "range" => Step::Within {
            from: register(1)?,
            is_outside: word(2)? == 1,
            low: constant(3)?,
            high: constant(4)?,
        },
        "lookup" => Step::LookUp {
            set: data.find(1).map(text)?,
            from: register(2)?,
            to: word(3).map(|to| place_of(to).unwrap_or(0)),
            is_absent: word(5).unwrap_or(0) & 1 != 0,
        },
        "immediate" => match word(1)? {
            0 => Step::End(verdict(data.find(2)?)?),
            to => Step::Constant(place_of(to)?, constant(2)?),
        },
        "reject" => Step::Reject,
        "masq" => Step::Translate("masquerade".into()),
        "redir" => Step::Translate("redirect".into()),
        "nat" => Step::Translate(if word(1)? == 0 { "snat" } else { "dnat" }.into()),
        "match" => {
            let (name, revision) = (data.find(1).map(text)?, word(2).unwrap_or(0));
            Step::Match(xt::read(&name, revision, data.find(3).unwrap_or_default()))
        }
        "target" => xt::target(&data.find(1).map(text)?),
        "queue" => Step::End(Verdict::Queue),
        // A rate that is not to be exceeded lets a packet through; one that must be (`over`) does not.
        "limit" | "quota" if word(5).unwrap_or(0) & 1 == 0 => Step::Pass(name.to_owned()),
        "log" | "notrack" | "objref" | "flow_offload" | "dup" | "last" | "counter" | "dynset" => {
            Step::Pass(name.to_owned())
        }
        _ => return None,
    })
}

fn mask(data: &Attributes<'_>) -> Option<Step> {
    let word = |kind| data.find(kind).and_then(number);
    let (from, to) = (word(1).and_then(place_of)?, word(2).and_then(place_of)?);
    if word(6).unwrap_or(0) != 0 {
        return Some(Step::Load(Field::Unknown("bitwise".into()), to));
    }
    Some(Step::Mask { from, to, mask: data.find(4).and_then(bytes)?, xor: data.find(5).and_then(bytes)? })
}

/// The first byte of a register: `NFT_REG_1` and on are 16 bytes each, `NFT_REG32_00` and on share those bytes by fours.
/// The first 16 bytes are the verdict's.
fn place_of(register: u32) -> Option<Register> {
    let register = usize::try_from(register).ok()?;
    match register {
        1..=4 => register.checked_mul(16),
        8..=23 => register.checked_sub(8)?.checked_mul(4)?.checked_add(16),
        _ => None,
    }
}

/// The bytes of a constant.
pub(super) fn bytes(data: &[u8]) -> Option<Vec<u8>> {
    Attributes(data).find(VALUE).map(<[u8]>::to_vec)
}

/// The verdict of a constant.
pub(super) fn verdict(data: &[u8]) -> Option<Verdict> {
    let verdict = Attributes(Attributes(data).find(VERDICT)?);
    let chain = || verdict.find(2).map(text);
    Some(match verdict.find(1).and_then(number)?.cast_signed() {
        0 => Verdict::Drop,
        1 => Verdict::Accept,
        -1 | -2 => Verdict::Continue,
        -3 => Verdict::Jump(chain()?),
        -4 => Verdict::Goto(chain()?),
        -5 => Verdict::Return,
        _ => Verdict::Queue,
    })
}
