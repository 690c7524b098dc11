//! What the fuzz targets of `fuzz/` run: each takes any bytes and ends where a rule does not hold. The unit tests run the corpus
//! through the same functions.
#![expect(clippy::missing_panics_doc, reason = "to panic is how they report")]

use crate::{
    checksum,
    endpoint::{Address, Port},
    forward::{Forward, STEPS, Search},
    quota::{Bucket, Level},
    tcp_state::{Seen, Stage, flag, is_nonsense, may_open, observe, stage},
    wire::{icmp, ipv4},
};

/// A target: its name, and what it runs.
pub type Target = (&'static str, fn(&[u8]));

/// Every target of this crate.
pub const TARGETS: [Target; 5] = [
    ("wire", wire),
    ("incremental_checksum", incremental_checksum),
    ("tcp_conversation", tcp_conversation),
    ("token_bucket", token_bucket),
    ("forward_search", forward_search),
];

/// Entries that [`forward_search`] searches at most.
const FORWARDS: usize = 256;

/// IPv4 header fields, a hop, and ICMP types.
pub fn wire(bytes: &[u8]) {
    for byte in bytes {
        let length = ipv4::header_length(*byte);
        assert!(length.is_none_or(|length| (ipv4::LEN..=ipv4::MAX_LEN).contains(&length)));
        let far = icmp::far_port(*byte);
        match icmp::class(*byte) {
            icmp::Class::Query => assert_eq!(far, Port::new(u16::from(*byte))),
            icmp::Class::Reply => assert!(matches!(far.number(), 8 | 13)),
            icmp::Class::Error | icmp::Class::Other => {}
        }
    }
    for pair in bytes.as_chunks::<2>().0 {
        let field = u16::from_be_bytes(*pair);
        assert!(ipv4::is_fragment(field) || !ipv4::is_later_fragment(field));
        let word = u16::from_ne_bytes(*pair);
        let (more, given) = ipv4::one_hop_more(word);
        let (less, taken) = ipv4::one_hop_less(more);
        assert!(less == word || pair[0] == u8::MAX, "a hop given and taken");
        if less == word {
            assert_eq!(checksum::fold(u64::from(given).wrapping_add(u64::from(taken))) % u16::MAX, 0);
        }
    }
}

/// The first eight bytes replace the next eight, an address, a port and a word: the checksum that is updated is the one that is computed.
pub fn incremental_checksum(bytes: &[u8]) {
    let Some((new, data)) = bytes.split_first_chunk::<8>() else { return };
    let Some((old, rest)) = data.split_first_chunk::<8>() else { return };
    let (address, port, word) = fields(*new);
    let (old_address, old_port, old_word) = fields(*old);
    let before = checksum::full(rest, sum(*old)).to_be();
    let diffs = [
        checksum::address_diff(old_address, address),
        checksum::port_diff(old_port, port),
        checksum::word_diff(old_word, word),
    ];
    let at_once = checksum::fold(diffs.iter().fold(0, |sum, diff| u64::from(*diff).wrapping_add(sum)));
    let full = checksum::full(rest, sum(*new));
    for after in [
        diffs.iter().fold(before, |sum, diff| checksum::update(sum, *diff)),
        checksum::update(before, at_once),
    ] {
        // 0 and 0xffff are one number.
        assert_eq!(u16::from_be(after) % u16::MAX, full % u16::MAX, "{new:02x?} for {old:02x?}");
    }
}

/// An address, a port, and a word in memory order.
const fn fields([a, b, c, d, high, low, first, second]: [u8; 8]) -> (Address, Port, u16) {
    let port = Port::new(u16::from_be_bytes([high, low]));
    (Address::new([a, b, c, d]), port, u16::from_ne_bytes([first, second]))
}

fn sum(bytes: [u8; 8]) -> u64 {
    bytes
        .as_chunks::<2>()
        .0
        .iter()
        .map(|pair| u64::from(u16::from_be_bytes(*pair)))
        .fold(0, u64::wrapping_add)
}

/// Pairs of bytes are segments: whose, and the flags.
pub fn tcp_conversation(bytes: &[u8]) {
    let mut seen = [0_u8; 2];
    for [side, flags] in bytes.as_chunks::<2>().0 {
        let is_nonsense = is_nonsense(*flags);
        assert!(flags & flag::SYN == 0 || flags & flag::FIN == 0 || is_nonsense);
        assert_eq!(may_open(*flags), flags & flag::RST == 0);
        let [one, other] = &mut seen;
        let half = if side & 1 == 0 { one } else { other };
        *half = observe(*half, *flags);
        assert!(*half <= Seen::SYN | Seen::ACK | Seen::FIN | Seen::RST);
        assert_eq!(*half & Seen::RST != 0, flags & flag::RST != 0, "a reset marks, all else clears the mark");
        let [one, other] = seen;
        assert_eq!(stage(one, other), stage(other, one));
        assert_eq!(stage(one, other) == Stage::Reset, (one | other) & Seen::RST != 0);
        assert!(!stage(one, other).name().is_empty());
    }
}

/// A bucket and its level, then moments at which a token is taken.
pub fn token_bucket(bytes: &[u8]) {
    let mut words = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
    let mut next = || words.next();
    let (Some(rate), Some(burst), Some(hertz)) = (next(), next(), next()) else { return };
    let (Some(taken), Some(since)) = (next(), next()) else { return };
    let (bucket, mut level) = (Bucket { rate, burst }, Level { taken, since });
    for now in words {
        let before = level;
        let is_given = level.take(bucket, now, hertz);
        if rate == 0 {
            assert!(is_given && level == before, "no rate is no limit");
        } else if is_given {
            assert!((1..=burst).contains(&level.taken), "within the bucket");
        } else {
            assert!(level.taken >= burst && level.taken <= before.taken, "refused only when it is empty");
        }
        assert!(level.since == before.since || level.since == now);
    }
}

/// A place that is sought, then gaps and spans of forwards: halving finds what a scan finds.
pub fn forward_search(bytes: &[u8]) {
    let Some((wanted, rows)) = bytes.split_first_chunk::<4>() else { return };
    let wanted = u64::from(u32::from_le_bytes(*wanted));
    let empty = Forward {
        first: 0,
        address: Address::UNSPECIFIED,
        port: Port::new(1),
        span: 0,
        id: 0,
        bridge: 0,
        expires: 0,
        flags: 0,
    };
    let (mut forwards, mut count, mut at) = ([empty; FORWARDS], 0_usize, 0_u64);
    for (forward, [gap, span, high]) in forwards.iter_mut().zip(rows.as_chunks::<3>().0) {
        at = at.wrapping_add(u64::from(*gap));
        *forward = Forward { first: at, span: u16::from_le_bytes([*span, *high]), ..empty };
        at = at.wrapping_add(u64::from(forward.span)).wrapping_add(1);
        count = count.wrapping_add(1);
    }
    let forwards = forwards.get(..count).unwrap_or_default();
    let mut search = Search::among(u32::try_from(count).unwrap_or(0));
    let mut steps = 0_u32;
    while let Some(next) = search.next() {
        steps = steps.wrapping_add(1);
        assert!(steps <= STEPS);
        let forward = forwards.get(next as usize).unwrap_or(&empty);
        search.narrow(next, forward.first <= wanted);
    }
    let leads = |forward: &&Forward| forward.target(wanted).is_some();
    let found = search.found().and_then(|at| forwards.get(at as usize)).filter(leads);
    assert_eq!(found, forwards.iter().find(leads));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_of_every_target_holds() {
        for (name, target) in TARGETS {
            let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name);
            let files: Vec<_> =
                std::fs::read_dir(&corpus).unwrap().map(|file| file.unwrap().path()).collect();
            assert!(!files.is_empty(), "{} is empty", corpus.display());
            for file in files {
                target(&std::fs::read(file).unwrap());
            }
        }
    }
}
