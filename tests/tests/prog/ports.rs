//! What a changed port depends on (RFC 7857 section 9): the internal endpoint and the host's secret, and nothing that a remote
//! could choose or see.

use vmnat_common::Outcome;
use vmnat_tests::lab::frame::Packet;

use super::rig::{OTHER_SERVER, PORT1, PORT2, Rig, SERVER, from_guest1, from_guest2};

const PROGRAM: &str = "outbound_port";

/// What guest 1 gets for 100 ports that guest 2 has, in this order, towards this remote, under this secret.
fn changed(secret: [u32; 2], ports: impl Iterator<Item = u16>, to: [u8; 4], to_port: u16) -> Vec<(u16, u16)> {
    let mut rig = Rig::new();
    rig.settings(|settings| settings.secret = secret);
    let mut port = |program_port, packet: Packet| {
        let ran = rig.run(PROGRAM, program_port, &packet.bytes());
        assert_eq!(ran.outcome, Outcome::TranslatedOutbound);
        ran.packet().ports().unwrap().0
    };
    let mut pairs: Vec<_> = ports
        .map(|wanted| {
            port(PORT2, Packet::udp(from_guest2(SERVER), wanted, 7, b""));
            (wanted, port(PORT1, Packet::udp(from_guest1(to), wanted, to_port, b"")))
        })
        .collect();
    pairs.sort_unstable();
    pairs
}

fn in_common(one: &[(u16, u16)], other: &[(u16, u16)]) -> usize {
    one.iter().filter(|pair| other.contains(pair)).count()
}

#[test]
fn neither_destination_nor_order_is_an_input() {
    let secret = [0x1234_5678, 0x9abc_def0];
    let wanted = 20_000..20_100;
    let first = changed(secret, wanted.clone(), SERVER, 7);
    assert!(first.iter().all(|(wanted, got)| wanted != got), "no port was changed");
    // Two endpoints may hash to one port; the second of them then gets a random one.
    let elsewhere = changed(secret, wanted.clone(), OTHER_SERVER, 53);
    assert!(in_common(&first, &elsewhere) >= 97, "another destination, other ports: {first:?} {elsewhere:?}");
    let backwards = changed(secret, wanted.rev(), SERVER, 7);
    assert!(in_common(&first, &backwards) >= 97, "another order, other ports: {first:?} {backwards:?}");
}

#[test]
fn another_secret_gives_other_ports() {
    let first = changed([0x1234_5678, 0x9abc_def0], 20_000..20_100, SERVER, 7);
    for secret in [[0x1234_5679, 0x9abc_def0], [0x1234_5678, 0x9abc_def1], [0, 0]] {
        let other = changed(secret, 20_000..20_100, SERVER, 7);
        assert!(in_common(&first, &other) <= 3, "{secret:x?}: {first:?} {other:?}");
    }
}
