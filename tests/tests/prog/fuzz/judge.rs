//! What must hold after every run, whatever the frame was.
//!
//! Checksums are held to more than "right if it was right": the ones' complement sum over all that a checksum covers is the same
//! before and after, so a wrong one stays wrong by as much.

use std::ops::Range;

use vmnat_common::{Outcome, outcome::Kind};

use crate::rig::{DROP, EXTERNAL, GATEWAY, PASS, REDIRECT, Ran};

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const DCCP: u8 = 33;
const UDP_LITE: u8 = 136;

/// Panics where a run has broken a rule.
pub fn judge(program: &str, before: &[u8], ran: &Ran) {
    let after = &ran.frame[..];
    let (code, untouched) = match ran.outcome.kind() {
        Kind::Forwarded => (REDIRECT, ran.outcome == Outcome::BridgedDirect),
        Kind::Passed => (PASS, ran.outcome != Outcome::Disguised),
        Kind::Dropped => (DROP, false),
    };
    assert_eq!(ran.code, code, "{:?}", ran.outcome);
    assert!(!untouched || before == after, "passed, but not as it was");
    if ran.outcome == Outcome::Clean {
        assert!(before[12..14] != [8, 0] || !is_managed(&before[26..30]), "a guest's source leaves");
    }
    if ran.outcome == Outcome::Disguised {
        let (l4, mut allowed) = (14 + usize::from(before[14] & 0xf) * 4, Vec::new());
        error(before, after, l4, Outcome::ErrorOutbound, &mut allowed);
        nothing_else(before, after, allowed);
    }
    if ran.outcome.kind() == Kind::Forwarded && !untouched {
        forwarded(program, before, after, ran.outcome);
    }
}

fn forwarded(program: &str, before: &[u8], after: &[u8], outcome: Outcome) {
    // The host's own datagram is given back as it is.
    if outcome == Outcome::QuietRoom && program == "room_inward" && before == after {
        return;
    }
    let l4 = 14 + usize::from(before[14] & 0xf) * 4;
    if outcome == Outcome::GatewayService {
        service(program, before, after, l4);
        return;
    }
    assert_eq!((before.len(), before[14] >> 4, before[14]), (after.len(), 4, after[14]));
    assert!((34..=74).contains(&l4));
    addresses(program, before, after, outcome);
    hops(program, before[22], after[22], outcome);
    assert_eq!(
        sum(&before[14..l4.min(before.len())]),
        sum(&after[14..l4.min(after.len())]),
        "the header's checksum"
    );
    let mut allowed = vec![0..12, 22..23, 24..34];
    let is_later = u16::from_be_bytes([before[20], before[21]]) & 0x1fff != 0;
    if u16::from_be_bytes([before[20], before[21]]) & 0x3fff != 0 {
        allowed.push(18..20);
    }
    match outcome {
        Outcome::QuietRoom => {}
        Outcome::ErrorOutbound | Outcome::ErrorInbound => error(before, after, l4, outcome, &mut allowed),
        // An error about a hairpin.
        Outcome::Hairpin
            if before[23] == ICMP && matches!(before.get(l4), Some(3 | 11 | 12)) && !is_later =>
        {
            error(before, after, l4, outcome, &mut allowed);
        }
        _ if is_later => {}
        _ => transport(before, after, l4, &mut allowed),
    }
    nothing_else(before, after, allowed);
}

/// A question to the gateway, or its answer: the open port alone, of a guest alone, and nothing has changed but the MACs.
fn service(program: &str, before: &[u8], after: &[u8], l4: usize) {
    let (guest, gateway, port) = if program == "room_inward" {
        (&before[30..34], &before[26..30], &before[l4..l4 + 2])
    } else {
        (&before[26..30], &before[30..34], &before[l4 + 2..l4 + 4])
    };
    assert!(is_guests(guest) && gateway == GATEWAY && port == [0, 53] && before[23] == UDP);
    assert_eq!(before[12..], after[12..], "more than the MACs has changed");
    if program == "outbound_port" || program == "outbound_bridge" {
        assert_eq!(before[20] & 0x3f, 0, "a fragment");
        assert!(after[..12] == [0; 12] || after[..6] == [0x02, 0x76, 0x6d, 0x6e, 0, 1]);
    }
}

/// No byte has changed but the allowed ones.
fn nothing_else(before: &[u8], after: &[u8], allowed: Vec<Range<usize>>) {
    let mut expected = before.to_vec();
    for range in allowed {
        let range = range.start.min(after.len())..range.end.min(after.len());
        expected[range.clone()].copy_from_slice(&after[range]);
    }
    assert!(
        expected == after,
        "a byte has changed that nothing should change, at {:?}",
        expected.iter().zip(after).position(|(a, b)| a != b)
    );
}

/// Who the packet is from and to.
fn addresses(program: &str, before: &[u8], after: &[u8], outcome: Outcome) {
    let (source, destination) = (&after[26..30], &after[30..34]);
    let (same_source, same_destination) = (source == &before[26..30], destination == &before[30..34]);
    let leaves = source == EXTERNAL && same_destination;
    let arrives = is_guests(destination) && same_source && !is_managed(source);
    let holds = match (outcome, program) {
        (Outcome::TranslatedOutbound | Outcome::ErrorOutbound, _) | (Outcome::QuietRoom, "room_outward") => {
            leaves
        }
        (Outcome::TranslatedInbound | Outcome::ErrorInbound, _) => arrives,
        (Outcome::Hairpin, _) => source == EXTERNAL && is_guests(destination),
        // The room's own error, from the gateway of whom it is for.
        (Outcome::QuietRoom, "room_inward") => {
            same_destination && is_managed(destination) && source == [&destination[..3], &[1]].concat()
        }
        (Outcome::QuietRoom, _) => same_source && same_destination,
        _ => false,
    };
    assert!(holds, "{outcome:?} by {program}: from {source:?} to {destination:?}");
}

fn hops(program: &str, before: u8, after: u8, outcome: Outcome) {
    let enters = outcome == Outcome::QuietRoom && !program.starts_with("room");
    if enters {
        // To be answered by the room it keeps its hops.
        assert!(
            after == before.saturating_add(1) || (after == before && before <= 1),
            "{before} hops became {after}"
        );
    } else if !program.starts_with("room") || before > 1 || outcome == Outcome::TranslatedInbound {
        // What guests have sent, and the room itself sends, comes out of it with a hop left.
        assert_eq!(Some(after), before.checked_sub(1), "a hop");
        assert!(after > 0 || outcome == Outcome::QuietRoom, "sent on without a hop left");
    }
}

/// Ports, identifier, checksum and the announced segment.
fn transport(before: &[u8], after: &[u8], l4: usize, allowed: &mut Vec<Range<usize>>) {
    let protocol = before[23];
    let Some(sum_at) = checksum_at(protocol) else { return };
    let sum_at = l4 + sum_at;
    allowed.push(sum_at..sum_at + 2);
    match protocol {
        TCP | UDP => allowed.push(l4..l4 + 4),
        ICMP => allowed.push(l4 + 4..l4 + 6),
        _ => {}
    }
    if protocol == TCP && before[l4 + 13] & 2 != 0 {
        allowed.extend(announced(before, l4));
    }
    let pseudo = |frame: &[u8]| if protocol == ICMP { 0 } else { sum(&frame[26..34]) };
    covers(before, after, l4, sum_at, protocol, pseudo);
}

/// An ICMP error: its own checksum, and the quote's addresses, ports and checksums.
fn error(before: &[u8], after: &[u8], l4: usize, outcome: Outcome, allowed: &mut Vec<Range<usize>>) {
    let l3 = l4 + 8;
    allowed.extend([l4 + 2..l4 + 4, l3 + 10..l3 + 20]);
    assert_eq!(sum(&before[l4..]), sum(&after[l4..]), "the error's checksum");
    let quoted = l3 + usize::from(before[l3] & 0xf) * 4;
    assert_eq!(sum(&before[l3..quoted]), sum(&after[l3..quoted]), "the quoted header's checksum");
    let (source, destination) = (&after[l3 + 12..l3 + 16], &after[l3 + 16..l3 + 20]);
    match outcome {
        Outcome::ErrorOutbound => {
            assert!(destination == EXTERNAL && !is_managed(source), "{source:?} {destination:?}");
        }
        _ => assert!(is_guests(source), "{source:?}"),
    }
    let protocol = before[l3 + 9];
    let Some(at) = checksum_at(protocol) else { return };
    let sum_at = quoted + at;
    allowed.push(sum_at..sum_at + 2);
    allowed.push(if protocol == ICMP { quoted + 4..quoted + 6 } else { quoted..quoted + 4 });
    let pseudo = |frame: &[u8]| if protocol == ICMP { 0 } else { sum(&frame[l3 + 12..l3 + 20]) };
    if sum_at + 2 <= before.len() {
        covers(before, after, quoted, sum_at, protocol, pseudo);
    }
}

/// All that the checksum covers adds up to the same, unless it was never computed.
fn covers(before: &[u8], after: &[u8], from: usize, at: usize, protocol: u8, pseudo: impl Fn(&[u8]) -> u32) {
    if protocol == UDP && before[at..at + 2] == [0, 0] {
        assert_eq!(after[at..at + 2], [0, 0], "no checksum became one");
        return;
    }
    let all = |frame: &[u8]| (sum(&frame[from..]) + pseudo(frame)) % 0xffff;
    assert_eq!(all(before), all(after), "the checksum of protocol {protocol}");
}

fn checksum_at(protocol: u8) -> Option<usize> {
    match protocol {
        ICMP => Some(2),
        TCP => Some(16),
        UDP | DCCP | UDP_LITE => Some(6),
        _ => None,
    }
}

/// Where the largest segment is announced.
fn announced(frame: &[u8], l4: usize) -> Option<Range<usize>> {
    let end = (l4 + usize::from(frame[l4 + 12] >> 4) * 4).min(frame.len());
    let mut at = l4 + 20;
    while at < end {
        at += match frame[at] {
            0 => return None,
            1 => 1,
            2 => return (frame.get(at + 1) == Some(&4)).then_some(at + 2..at + 4),
            _ => usize::from(*frame.get(at + 1).filter(|length| **length >= 2)?),
        };
    }
    None
}

/// The ones' complement sum, where zero is the same as all ones.
fn sum(bytes: &[u8]) -> u32 {
    let pairs = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    pairs.fold(0, |sum, word| (sum + word) % 0xffff)
}

fn is_managed(address: &[u8]) -> bool {
    matches!(address, [192, 168, 122 | 123, _])
}

fn is_guests(address: &[u8]) -> bool {
    address[..3] == [192, 168, 122] && address != GATEWAY
}
