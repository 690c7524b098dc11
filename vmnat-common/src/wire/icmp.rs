//! ICMP (RFC 792): queries, which are tracked by identifier.

use crate::endpoint::Port;

/// Bytes of the header that queries share: type, code, checksum, identifier, sequence.
pub const LEN: usize = network_types::icmp::IcmpHdr::LEN;

/// Offset of the type; the code follows it.
pub const TYPE: usize = 0;

/// Offset of the checksum.
pub const CHECKSUM: usize = 2;

/// Offset of a query's identifier.
pub const IDENTIFIER: usize = 4;

/// What an ICMP type is to a NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A question: echo or timestamp.
    Query,
    /// Its answer.
    Reply,
    /// A report about another packet, which it quotes.
    Error,
    /// Anything else: redirects, router discovery, types that are long dead.
    Other,
}

/// Echo request; also the number that stands for an echo in a flow's far port.
pub const ECHO_REQUEST: u8 = 8;
/// Echo reply.
pub const ECHO_REPLY: u8 = 0;
/// Timestamp request; also the number that stands for a timestamp in a flow's far port.
pub const TIMESTAMP_REQUEST: u8 = 13;
/// Timestamp reply.
pub const TIMESTAMP_REPLY: u8 = 14;

/// The class of a type (RFC 5508 section 1.1).
#[must_use]
pub const fn class(kind: u8) -> Class {
    match kind {
        ECHO_REQUEST | TIMESTAMP_REQUEST => Class::Query,
        ECHO_REPLY | TIMESTAMP_REPLY => Class::Reply,
        3 | 11 | 12 => Class::Error,
        _ => Class::Other,
    }
}

/// The far port of a query's flow: the query's type, the same for question and answer.
#[must_use]
pub const fn far_port(kind: u8) -> Port {
    match kind {
        ECHO_REQUEST | ECHO_REPLY => Port::new(ECHO_REQUEST as u16),
        TIMESTAMP_REQUEST | TIMESTAMP_REPLY => Port::new(TIMESTAMP_REQUEST as u16),
        other => Port::new(other as u16),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn question_and_answer_share_a_far_port() {
        assert_eq!(far_port(ECHO_REQUEST), far_port(ECHO_REPLY));
        assert_eq!(far_port(TIMESTAMP_REQUEST), far_port(TIMESTAMP_REPLY));
        assert_ne!(far_port(ECHO_REPLY), far_port(TIMESTAMP_REPLY));
    }

    #[test]
    fn every_type_has_a_class() {
        let queries = (0..=255).filter(|kind| class(*kind) == Class::Query).count();
        let errors = (0..=255).filter(|kind| class(*kind) == Class::Error).count();
        assert_eq!((queries, errors), (2, 3));
    }
}
