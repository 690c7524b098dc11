//! Every way a packet's visit can end, declared once and counted per CPU.
//!
//! Each run of a program ends in exactly one outcome, so packets in are the sum of outcomes. The only visit that
//! is not counted is a bridge hook's second look at a packet that its port hook has already judged.

use crate::catalogue::catalogue;

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// vmnat sent it on its way.
    Forwarded,
    /// vmnat left it as it was and let the kernel go on with it.
    Passed,
    /// vmnat discarded it.
    Dropped,
}

impl Kind {
    /// The word that listings and metrics use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::Passed => "passed",
            Self::Dropped => "dropped",
        }
    }
}

catalogue! {
    /// The outcome of one packet at one hook.
    pub enum Outcome of Kind {
        TranslatedOutbound = Forwarded, "translated_outbound", "A guest's packet left by the uplink with the external source.";
        TranslatedInbound = Forwarded, "translated_inbound", "A packet of a known flow went to its guest.";
        ErrorOutbound = Forwarded, "error_outbound", "A guest's ICMP error about a flow of its own left with the external endpoint in its quote.";
        ErrorInbound = Forwarded, "error_inbound", "An ICMP error about a guest's flow went to the guest, with the guest's endpoint in its quote.";
        Hairpin = Forwarded, "hairpin", "A guest's packet to an external endpoint of a guest turned round on the host.";
        QuietRoom = Forwarded, "quiet_room", "Went by way of the quiet room: to be cut to size, put in order, or answered with an ICMP error.";
        GatewayService = Forwarded, "gateway_service", "A guest's packet for a service of its gateway that is allowed went past the host's INPUT rules, or the relay's answer to its guest.";
        BridgedDirect = Forwarded, "bridged_direct", "A packet between two guests of one bridge went straight to the other port.";

        NotIpv4 = Passed, "not_ipv4", "Not IPv4: ARP, IPv6 or another protocol, which vmnat leaves to the kernel.";
        VlanTagged = Passed, "vlan_tagged", "The frame carries a VLAN tag, so it belongs to another network.";
        Unmanaged = Passed, "unmanaged", "The interface is none that vmnat manages.";
        Bridged = Passed, "bridged", "Addressed to another station of the bridge, not to the host.";
        NotUnicast = Passed, "not_unicast", "Broadcast or multicast, which no router forwards.";
        ToHost = Passed, "to_host", "Addressed to the host itself, or to where it has no route: the kernel tells them apart.";
        OtherRoute = Passed, "other_route", "The host's routes lead it out by no managed uplink: the kernel and its firewall decide.";
        Untranslated = Passed, "untranslated", "To or from where guests go without translation, as the operator wants it: the kernel and its firewall decide.";
        NoRoute = Passed, "no_route", "The host has no route to the destination: the kernel answers the guest.";
        ForwardingDisabled = Passed, "forwarding_disabled", "Forwarding is off on the bridge, so the kernel would not route it either.";
        TtlExpired = Passed, "ttl_expired", "The guest's packet may go no further: the kernel answers with time exceeded.";
        TooBig = Passed, "too_big", "Larger than the uplink carries, and not to be fragmented: the kernel answers with the right size.";
        NoFlow = Passed, "no_flow", "Arrived on the uplink for no flow and no port forward: the host's own.";
        InboundFragment = Passed, "inbound_fragment", "A fragment arrived on the uplink: the host's own.";
        Disguised = Passed, "disguised", "An ICMP error of the host's own about a packet for a guest left with the external endpoint in its quote.";
        Clean = Passed, "clean", "Left by the uplink with a source that is no guest's.";

        Truncated = Dropped, "truncated", "Shorter than its own headers say.";
        BadHeader = Dropped, "bad_header", "The IPv4 header contradicts itself.";
        ForeignSource = Dropped, "foreign_source", "The guest's source address is not of its network.";
        SpoofedSource = Dropped, "spoofed_source", "The source address belongs to another guest.";
        UnboundSource = Dropped, "unbound_source", "The network has strict leases, and nobody has given the source address to this MAC at this port: no DHCP server, and not `vmnat leases bind`.";
        OtherNetwork = Dropped, "other_network", "Addressed to another managed network, which is closed to this one.";
        AccessDenied = Dropped, "access_denied", "The access lists (`--deny`, `--deny-from`) forbid this conversation.";
        InvalidDestination = Dropped, "invalid_destination", "Addressed to where no router forwards.";
        ClosedExit = Dropped, "closed_exit", "The route leads to an exit that was closed before vmnat turned on forwarding for the bridge.";
        Fragment = Dropped, "fragment", "A fragment whose first one is not known, so that its ports are not.";
        IcmpNotQuery = Dropped, "icmp_not_query", "An ICMP message of a guest that neither asks anything nor reports an error.";
        ErrorWithoutFlow = Dropped, "error_without_flow", "A guest's ICMP error about no flow of its own.";
        RefusedSource = Dropped, "refused_source", "Addressed to a port forward that its source may not use.";
        BadTcpFlags = Dropped, "bad_tcp_flags", "A combination of TCP flags that no stack sends.";
        ResetWithoutFlow = Dropped, "reset_without_flow", "A TCP reset for a conversation that does not exist.";
        NoUplinkAddress = Dropped, "no_uplink_address", "The uplink has no address to translate to.";
        PortsExhausted = Dropped, "ports_exhausted", "No external port is free for this flow.";
        FlowQuota = Dropped, "flow_quota", "The guest has as many flows as one guest may have.";
        HalfOpenQuota = Dropped, "half_open_quota", "The guest has as many half-open TCP flows as one guest may have.";
        RateQuota = Dropped, "rate_quota", "The guest opens flows faster than one guest may.";
        ServiceQuota = Dropped, "service_quota", "The guest asks the relay for names faster than one guest may.";
        FlowTableFull = Dropped, "flow_table_full", "The flow table has no room; live flows are never evicted.";
        FlowConflict = Dropped, "flow_conflict", "Another flow holds this tuple.";
        StaleFlow = Dropped, "stale_flow", "The flow that was just opened has gone before it was used.";
        MovedRoute = Dropped, "moved_route", "The flow's route leads elsewhere than when its external address was chosen.";
        TooBigToFragment = Dropped, "too_big_to_fragment", "Larger than the uplink carries, and fragmenting is the kernel's, which must not see it.";
        InboundTooBig = Dropped, "inbound_too_big", "Larger than the guest's network carries.";
        InboundTtlExpired = Dropped, "inbound_ttl_expired", "A packet for a guest arrived with no hop left.";
        PrivateDestination = Dropped, "private_destination", "Arrived on the uplink addressed to a guest directly.";
        PrivateSource = Dropped, "private_source", "Arrived on the uplink with a guest's source address.";
        LeakedSource = Dropped, "leaked_source", "Was about to leave by the uplink with a guest's source address.";
        RewriteFailed = Dropped, "rewrite_failed", "The kernel refused to change the packet.";
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_snake_case_facts() {
        let names: HashSet<_> = Outcome::ALL.iter().map(|outcome| outcome.name()).collect();
        assert_eq!(names.len(), Outcome::ALL.len());
        for name in names {
            assert!(
                name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'),
                "{name}"
            );
        }
    }

    #[test]
    fn sentences_end_and_numbers_are_indices() {
        for (index, outcome) in Outcome::ALL.iter().enumerate() {
            assert!(outcome.sentence().ends_with('.'), "{}", outcome.name());
            assert_eq!(outcome.index() as usize, index);
            assert_eq!(Outcome::from_name(outcome.name()), Some(*outcome));
        }
    }
}
