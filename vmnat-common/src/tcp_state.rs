//! The TCP rule: flag bits seen in each direction, and the stage that both together mean.
//!
//! A direction records only its own bits, on the hot path, in its own entry. Nothing is validated against
//! sequence numbers, so nothing that a stranger forges ends a flow: a reset only marks, and the next segment of
//! that direction that is no reset clears the mark (RFC 5961's concern, met by delay).

/// TCP header flags, byte 13 of the header (RFC 9293 section 3.1).
pub mod flag {
    /// No more data from sender.
    pub const FIN: u8 = 0x01;
    /// Synchronize sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// Acknowledgment field is significant.
    pub const ACK: u8 = 0x10;
    /// Urgent pointer is significant.
    pub const URG: u8 = 0x20;
}

/// Bits of [`crate::session::Session::tcp_seen`].
#[derive(Clone, Copy, Debug)]
pub struct Seen;

impl Seen {
    /// A SYN, with or without ACK.
    pub const SYN: u8 = 1;
    /// A segment with ACK and without SYN: this side has taken part.
    pub const ACK: u8 = 2;
    /// A FIN.
    pub const FIN: u8 = 4;
    /// The last segment was a RST.
    pub const RST: u8 = 8;
    /// All of them. What else stands in the byte is not this rule's, and stays.
    const ALL: u8 = Self::SYN | Self::ACK | Self::FIN | Self::RST;
}

/// What a segment with `flags` leaves of a direction that has `seen`.
#[must_use]
pub const fn observe(seen: u8, flags: u8) -> u8 {
    if flags & flag::RST != 0 {
        return seen | Seen::RST;
    }
    let kept = seen & !Seen::RST;
    if flags & flag::SYN != 0 {
        // A SYN on a closing tuple opens it again (RFC 9293 section 3.6.1).
        let reopened = seen & (Seen::FIN | Seen::RST) != 0;
        return if reopened { kept & !Seen::ALL | Seen::SYN } else { kept | Seen::SYN };
    }
    let fin = if flags & flag::FIN != 0 { Seen::FIN } else { 0 };
    let ack = if flags & flag::ACK != 0 { Seen::ACK } else { 0 };
    kept | fin | ack
}

/// True for combinations that no conforming stack sends: none, SYN with FIN or RST, FIN with RST, FIN without ACK
/// (and so the "xmas" scan), PSH or URG alone.
#[must_use]
pub const fn is_nonsense(flags: u8) -> bool {
    let control = flags & (flag::FIN | flag::SYN | flag::RST | flag::ACK);
    match control {
        0 | flag::FIN => true,
        _ => {
            let syn = control & flag::SYN != 0;
            let fin = control & flag::FIN != 0;
            let rst = control & flag::RST != 0;
            (syn && (fin || rst)) || (fin && rst)
        }
    }
}

/// True when a segment may open a flow: a SYN, or an ACK that picks up a conversation whose state was lost.
/// A reset has nobody left to tell, and never opens one.
#[must_use]
pub const fn may_open(flags: u8) -> bool {
    flags & flag::RST == 0
}

/// The stage of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Not acknowledged in both directions.
    HalfOpen,
    /// Acknowledged in both directions.
    Established,
    /// One side has sent FIN.
    HalfClosed,
    /// Both sides have sent FIN.
    Closed,
    /// The last segment of a side was a reset.
    Reset,
}

/// The stage that two directions' bits mean together.
#[must_use]
pub const fn stage(one: u8, other: u8) -> Stage {
    let either = one | other;
    let both = one & other;
    if either & Seen::RST != 0 {
        Stage::Reset
    } else if both & Seen::FIN != 0 {
        Stage::Closed
    } else if either & Seen::FIN != 0 {
        Stage::HalfClosed
    } else if both & Seen::ACK != 0 {
        Stage::Established
    } else {
        Stage::HalfOpen
    }
}

impl Stage {
    /// The name that listings show.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::HalfOpen => "half-open",
            Self::Established => "established",
            Self::HalfClosed => "half-closed",
            Self::Closed => "closed",
            Self::Reset => "reset",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{flag::*, *};

    /// A conversation's name, its segments by side, and the stage it must come to.
    type Row<'a> = (&'a str, &'a [(usize, u8)], Stage);

    fn play(segments: &[(usize, u8)]) -> Stage {
        let mut seen = [0, 0];
        for &(side, flags) in segments {
            seen[side] = observe(seen[side], flags);
        }
        stage(seen[0], seen[1])
    }

    #[test]
    fn table_of_conversations() {
        let open = [(0, SYN), (1, SYN | ACK), (0, ACK)];
        let established = [&open[..], &[(1, ACK)]].concat();
        let rows: &[Row<'_>] = &[
            ("lone syn", &[(0, SYN)], Stage::HalfOpen),
            ("handshake without the server's data", &open, Stage::HalfOpen),
            ("handshake and data", &established, Stage::Established),
            (
                "simultaneous open",
                &[(0, SYN), (1, SYN), (0, SYN | ACK), (1, SYN | ACK), (0, ACK), (1, ACK)],
                Stage::Established,
            ),
            ("pickup in the middle", &[(0, ACK | PSH), (1, ACK)], Stage::Established),
            ("one fin", &[&established[..], &[(0, FIN | ACK)]].concat(), Stage::HalfClosed),
            ("both fins", &[&established[..], &[(0, FIN | ACK), (1, FIN | ACK)]].concat(), Stage::Closed),
            (
                "last ack after both fins",
                &[&established[..], &[(0, FIN | ACK), (1, FIN | ACK), (0, ACK)]].concat(),
                Stage::Closed,
            ),
            ("reset", &[&established[..], &[(1, RST)]].concat(), Stage::Reset),
            (
                "blind reset, then data",
                &[&established[..], &[(1, RST), (1, ACK)]].concat(),
                Stage::Established,
            ),
            (
                "reopened after close",
                &[&established[..], &[(0, FIN | ACK), (1, FIN | ACK), (0, SYN), (1, SYN | ACK)]].concat(),
                Stage::HalfOpen,
            ),
            (
                "challenge ack",
                &[&established[..], &[(0, SYN), (1, ACK), (0, RST), (0, SYN)]].concat(),
                Stage::HalfOpen,
            ),
        ];
        for (name, segments, expected) in rows {
            let result = play(segments);
            assert_eq!(result, *expected, "{name}");
        }
    }

    #[test]
    fn nonsense_flags_are_known() {
        for flags in [0, FIN, FIN | PSH | URG, SYN | FIN, SYN | RST, FIN | RST, PSH, URG] {
            assert!(is_nonsense(flags), "{flags:#x}");
        }
        for flags in
            [SYN, SYN | ACK, ACK, PSH | ACK, FIN | ACK, RST, RST | ACK, SYN | URG, SYN | PSH, 0xc0 | SYN]
        {
            assert!(!is_nonsense(flags), "{flags:#x}");
        }
    }

    proptest! {
        #[test]
        fn a_segment_without_reset_always_clears_the_mark(seen in 0u8..16, flags in any::<u8>()) {
            prop_assume!(flags & RST == 0);
            prop_assert_eq!(observe(seen, flags) & Seen::RST, 0);
        }

        #[test]
        fn stage_does_not_depend_on_the_order_of_the_halves(one in 0u8..16, other in 0u8..16) {
            prop_assert_eq!(stage(one, other), stage(other, one));
        }
    }
}
