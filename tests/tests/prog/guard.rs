//! What may leave by an uplink.

use vmnat_common::{Outcome, network::NetworkKey};
use vmnat_tests::lab::frame::{Ends, Packet};

use super::{
    errors::{error, whole_quote},
    rig::{
        DROP, EXTERNAL, GUEST1, IntoAddress as _, OTHER_SERVER, PASS, PORT1, Rig, SERVER, UPLINK,
        from_guest1, from_world, question,
    },
};

#[test]
fn a_guests_source_does_not_leave() {
    let mut rig = Rig::new();
    for source in [[192, 168, 122, 10], [192, 168, 122, 1], [192, 168, 123, 200]] {
        let mut packet = question();
        packet.source = source;
        let ran = rig.run("guard", UPLINK, &packet.bytes());
        assert_eq!((ran.outcome, ran.code), (Outcome::LeakedSource, DROP));
    }
}

#[test]
fn all_else_leaves_untouched() {
    let mut rig = Rig::new();
    for source in [EXTERNAL, [192, 168, 121, 255], [192, 168, 124, 0], [10, 0, 0, 1]] {
        let mut packet = question();
        packet.source = source;
        let frame = packet.bytes();
        let ran = rig.run("guard", UPLINK, &frame);
        assert_eq!((ran.outcome, ran.code, ran.frame), (Outcome::Clean, PASS, frame));
    }
    let mut arp = question().bytes();
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    let ran = rig.run("guard", UPLINK, &arp);
    assert_eq!((ran.outcome, ran.code), (Outcome::NotIpv4, PASS));
}

/// The host's kernel was handed a packet for guest 1, could not deliver it, and says so to the world with the guest in its quote.
#[test]
fn an_error_of_the_hosts_kernel_shows_the_external_endpoint_alone() {
    let mut rig = Rig::new();
    rig.run("outbound_port", PORT1, &question().bytes());
    let to_guest = Ends { destination: GUEST1, ..from_world(SERVER) };
    let handed = Packet::udp(to_guest, 7, 5000, b"answer").bytes()[14..].to_vec();
    let report = |quoted: &[u8]| {
        let ends = Ends { source: EXTERNAL, ..from_guest1(SERVER) };
        error(ends, 3, 1, quoted, quoted.len()).bytes()
    };
    let ran = rig.run("guard", UPLINK, &report(&handed));
    assert_eq!((ran.code, ran.outcome), (PASS, Outcome::Disguised));
    let inner = whole_quote(&ran);
    assert_eq!((inner.source, inner.destination, inner.ports()), (SERVER, EXTERNAL, Some((7, 5000))));
    // About what is no flow of a guest's there is nothing to say to the world; about the host's own there is.
    let stray = Packet::udp(to_guest, 7, 5001, b"answer").bytes()[14..].to_vec();
    let ran = rig.run("guard", UPLINK, &report(&stray));
    assert_eq!((ran.code, ran.outcome), (DROP, Outcome::LeakedSource));
    let own = Packet::udp(from_world(SERVER), 7, 5001, b"answer").bytes()[14..].to_vec();
    let frame = report(&own);
    let ran = rig.run("guard", UPLINK, &frame);
    assert_eq!((ran.code, ran.outcome, ran.frame), (PASS, Outcome::Clean, frame));
}

/// RFC 6888 REQ-6: towards and from a destination without translation, nothing of a guest's is touched or held back.
#[test]
fn destinations_without_translation_are_the_kernels_both_ways() {
    let mut rig = Rig::new();
    let key = NetworkKey { prefix: 24, address: [198, 51, 100, 0].into_address() };
    rig.tables.untranslated.set(&key, &1).unwrap();
    let out = question().bytes();
    for (program, interface) in [("outbound_port", PORT1), ("guard", UPLINK)] {
        let ran = rig.run(program, interface, &out);
        assert_eq!((ran.code, ran.outcome, &ran.frame), (PASS, Outcome::Untranslated, &out), "{program}");
    }
    let back = Packet::udp(Ends { destination: GUEST1, ..from_world(SERVER) }, 7, 5000, b"answer").bytes();
    let ran = rig.run("inbound", UPLINK, &back);
    assert_eq!((ran.code, ran.outcome, ran.frame), (PASS, Outcome::Untranslated, back));
    let elsewhere = Packet::udp(from_guest1([192, 0, 2, 1]), 5000, 7, b"question").bytes();
    assert_eq!(rig.run("outbound_port", PORT1, &elsewhere).outcome, Outcome::TranslatedOutbound);
    assert_eq!(rig.run("guard", UPLINK, &elsewhere).outcome, Outcome::LeakedSource);
    assert_eq!(rig.flows(), 2);
}

/// A socket of the host takes a port that a guest's flow has: the host's first packet takes the tuple from the guest.
#[test]
fn a_port_that_the_host_has_just_taken_is_the_hosts_at_once() {
    let mut rig = Rig::new();
    rig.run("outbound_port", PORT1, &question().bytes());
    let answer = Packet::udp(from_world(SERVER), 7, 5000, b"answer").bytes();
    assert_eq!(rig.run("inbound", UPLINK, &answer).outcome, Outcome::TranslatedInbound);
    let _socket = std::net::UdpSocket::bind("0.0.0.0:5000").unwrap();
    let own = Packet::udp(Ends { source: EXTERNAL, ..from_guest1(SERVER) }, 5000, 7, b"question").bytes();
    assert_eq!(rig.run("guard", UPLINK, &own).outcome, Outcome::Clean);
    assert_eq!(rig.run("inbound", UPLINK, &answer).outcome, Outcome::NoFlow);
    let again = rig.run("outbound_port", PORT1, &question().bytes());
    assert_ne!(again.packet().ports(), Some((5000, 7)), "the guest gets another port");
}

/// RFC 5382 REQ-4: the host's kernel resets what a stranger sent to a guest's port; the guest still reaches that stranger from it.
#[test]
fn a_reset_of_the_hosts_kernel_keeps_no_tuple_from_a_guest() {
    let mut rig = Rig::new();
    rig.run("outbound_port", PORT1, &Packet::tcp(from_guest1(SERVER), 5000, 80, 1, 0x02).bytes());
    let ends = Ends { source: EXTERNAL, ..from_guest1(OTHER_SERVER) };
    let reset = Packet::tcp(ends, 5000, 80, 1, 0x14).bytes();
    assert_eq!(rig.run("guard", UPLINK, &reset).outcome, Outcome::Clean);
    let opened =
        rig.run("outbound_port", PORT1, &Packet::tcp(from_guest1(OTHER_SERVER), 5000, 80, 1, 0x02).bytes());
    assert_eq!(opened.packet().ports(), Some((5000, 80)), "the mapping survives the stranger");
}
