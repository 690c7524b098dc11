//! Sequences that have broken connection trackings: old incarnations, lost acknowledgments, resets that do not fit, segments of
//! nobody. Five are those of the kernel's own tests of the same names (tools/testing/selftests/net/netfilter/packetdrill).

use std::{thread, time::Duration};

use anyhow::{Context, Result, ensure};
use vmnat_tests::lab::{
    EXTERNAL, SERVER, SERVER_ECHO, Setup,
    client::Conversation,
    firewall::NFT_DROPS,
    frame::{Packet, Tap},
    guest_address,
};

use super::{
    scene::{OUTSIDE, S1, S2, Scene, expect_frame, from_remote},
    tcp::{ACK, FIN, Line, PSH, RST, SYN, segment},
};

/// What the flow table says of the only conversation by TCP.
fn stage(scene: &Scene) -> Result<String> {
    let rows = scene.lab.rows(&["flows", "--protocol", "tcp"])?;
    ensure!(rows.len() == 1, "{} conversations instead of one: {rows:?}", rows.len());
    Ok(rows[0]["stage"].as_str().unwrap_or_default().to_owned())
}

/// The remote remembers an old incarnation: SYN, its challenge ACK, RST, SYN, SYN/ACK. Where vmnat knows the old one, and where it
/// does not.
#[test]
fn a_challenge_ack_of_an_old_incarnation_passes() -> Result<()> {
    let mut scene = Scene::new()?;
    for (port, is_known) in [(5000, true), (5001, false)] {
        let mut line = Line::new(&scene, 1, port, S1, 80);
        if is_known {
            line.handshake()?;
        }
        let old = line.next;
        line.next = (old.0.wrapping_add(1 << 30), old.1.wrapping_add(1 << 30));
        line.out_at(line.next.0, 0, SYN, &[])?;
        line.inward_at(old.1, old.0, ACK, &[])?;
        line.out_at(old.0, 0, RST, &[])?;
        line.handshake().context("after the reset of the old incarnation")?;
    }
    scene.lab.assert_invariants()
}

/// `conntrack_synack_old`: a SYN/ACK that answers another SYN passes, so that the guest can reset it; the right one, to the
/// retransmitted SYN, passes after it.
#[test]
fn synack_old() -> Result<()> {
    let mut scene = Scene::new()?;
    let mut line = Line::new(&scene, 1, 5000, S1, 80);
    let syn = line.next.0;
    line.out_at(syn, 0, SYN, &[])?;
    line.inward_at(145_824_453, 643_160_523, SYN | ACK, &[])?;
    line.out_at(643_160_523, 0, RST, &[])?;
    line.out_at(syn, 0, SYN, &[])?;
    line.next = (syn.wrapping_add(1), 145_758_918);
    line.inward(SYN | ACK, &[])?;
    line.out(ACK, &[])?;
    line.data_both_ways()?;
    ensure!(stage(&scene)? == "established", "it is {}", stage(&scene)?);
    scene.lab.assert_invariants()
}

/// `conntrack_synack_reuse`: a remote that has forgotten its conversation opens its tuple anew, at a port forward: SYN, the guest's
/// challenge ACK, RST, SYN, SYN/ACK.
#[test]
fn synack_reuse() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.lab.vmnat_ok(&["dnat", "add", &format!("8080:{}:80/tcp", guest_address(1))])?;
    let mut line = Line::new(&scene, 1, 80, S1, 4000);
    line.external = 8080;
    line.inward(SYN, &[])?;
    line.out(SYN | ACK, &[])?;
    line.inward(ACK, &[])?;
    line.inward(PSH | ACK, &[b'x'; 100])?;
    line.out(ACK, &[])?;
    let (guest, remote) = line.next;
    line.inward_at(remote.wrapping_add(1900), 0, SYN, &[])?;
    line.out_at(guest, remote, ACK, &[]).context("the challenge ACK")?;
    line.inward_at(remote, guest, RST | ACK, &[])?;
    line.next = (guest.wrapping_add(1 << 30), remote.wrapping_add(1900));
    line.inward(SYN, &[])?;
    line.out(SYN | ACK, &[])?;
    line.inward(ACK, &[])?;
    line.data_both_ways()?;
    ensure!(line.external == 8080, "answers come from port {}", line.external);
    ensure!(stage(&scene)? == "established", "it is {}", stage(&scene)?);
    scene.lab.assert_invariants()
}

/// `conntrack_ack_loss_stall`: data that was acknowledged long ago comes once more, because the acknowledgment was lost, and gets
/// its acknowledgment again.
#[test]
fn ack_loss_stall() -> Result<()> {
    let mut scene = Scene::new()?;
    let mut line = Line::established(&scene, 1, 5000, S1, 80)?;
    let first = line.next.1;
    for _ in 0..46 {
        line.inward(PSH | ACK, &[b'd'; 1460])?;
        line.out(ACK, &[])?;
    }
    line.inward_at(first, line.next.0, PSH | ACK, &[b'd'; 1460])?;
    line.out(ACK, &[])?;
    line.data_both_ways()?;
    scene.lab.assert_invariants()
}

/// `conntrack_inexact_rst`: the remote has closed, the guest resets with unread data, and a reset of the remote, whose socket is
/// gone and whose number does not fit, passes too.
#[test]
fn inexact_rst() -> Result<()> {
    let mut scene = Scene::new()?;
    let mut line = Line::established(&scene, 1, 5000, S1, 80)?;
    (0..3).try_for_each(|_| line.inward(ACK, &[b'd'; 1000]))?;
    line.out(PSH | ACK, &[b'g'; 1000])?;
    line.inward(FIN | ACK, &[])?;
    line.out(ACK, &[])?;
    ensure!(stage(&scene)? == "half-closed", "after the FIN it is {}", stage(&scene)?);
    line.out(RST | ACK, &[])?;
    ensure!(stage(&scene)? == "reset", "after the reset it is {}", stage(&scene)?);
    line.inward_at(line.next.1.wrapping_sub(1001), 0, RST, &[])?;
    scene.lab.assert_invariants()
}

/// `conntrack_rst_invalid`: resets outside the window, and inside but not exact, are the guest's to judge. They pass, and end
/// nothing: one segment more and the conversation counts as established. The exact one ends it.
#[test]
fn rst_invalid() -> Result<()> {
    let mut scene = Scene::new()?;
    let mut line = Line::established(&scene, 1, 5000, S1, 80)?;
    (0..3).try_for_each(|_| line.inward(ACK, &[b'd'; 1000]))?;
    let (guest, exact) = line.next;
    for sequence in [exact.wrapping_sub(3001), exact.wrapping_add(1_000_000), exact.wrapping_sub(2959)] {
        line.inward_at(sequence, 0, RST, &[])?;
        line.out_at(guest, exact, ACK, &[])?;
        line.inward_at(exact, guest, ACK, &[])?;
        ensure!(stage(&scene)? == "established", "a blind reset has made it {}", stage(&scene)?);
    }
    line.inward_at(exact, guest, RST | ACK, &[])?;
    ensure!(stage(&scene)? == "reset", "after the exact reset it is {}", stage(&scene)?);
    scene.lab.assert_invariants()
}

/// RFC 7857 section 2.2: a reset passes, and so does what comes late after it, both ways.
#[test]
fn segments_pass_after_a_reset() -> Result<()> {
    let mut scene = Scene::new()?;
    let mut line = Line::established(&scene, 1, 5000, S1, 80)?;
    line.inward(RST | ACK, &[])?;
    line.out(ACK, b"sent before the reset came")?;
    line.inward(RST, &[])?;
    line.out(RST | ACK, &[])?;
    line.inward(ACK, b"overtaken by the reset")?;
    scene.lab.assert_invariants()
}

/// RFC 5961, with real stacks at both ends: 1. a conversation; 2. somebody who knows the tuple, and no numbers, forges a reset far
/// outside the window, a SYN and a SYN/ACK, thrice each, in the server's name; 3. a megabyte goes through all the same.
#[test]
fn a_blind_reset_or_syn_does_not_end_a_conversation() -> Result<()> {
    let mut scene = Scene::new()?;
    let server = vmnat_tests::lab::octets(SERVER)?;
    let mut conversation = Conversation::open_from(scene.lab.guest(1)?, 31_700, SERVER_ECHO)?;
    let external = conversation.seen_as.port();
    conversation.exchange(1000)?;
    let guest = Tap::open(scene.lab.guest(1)?, "eth0")?;
    conversation.exchange(1000)?;
    let last = expect_frame(&guest, "segment of the server", |frame| frame[26..30] == server)?;
    let number = u32::from_be_bytes(last[38..42].try_into()?);
    for _ in 0..3 {
        for flags in [RST, RST | ACK, SYN, SYN | ACK] {
            let body = segment([7000, external], number.wrapping_add(500_000_000), 1, flags, &[]);
            let forged = Packet::new(from_remote(server), 6, body, Some(16));
            scene.router.send(&forged.bytes())?;
            expect_frame(&guest, "forged segment", |frame| frame[26..30] == server && frame[47] == flags)?;
        }
    }
    conversation.exchange(1_000_000)?;
    conversation.close()?;
    scene.lab.assert_sound_but_for_invalid_packets()
}

/// RFC 5382 REQ-4, under a host that drops what it does not know: 1. a remote's SYN to a free port of the external address; for six
/// seconds nothing answers; 2. the guest then opens that very tuple, and it works; 3. at another port the guest's own SYN crosses
/// the remote's, whose retransmission makes a simultaneous open.
///
/// On a host that lets everything in, the host's own TCP answers on the host's own address: vmnat passes it what is nobody's.
#[test]
fn an_unsolicited_syn_is_met_with_silence() -> Result<()> {
    let mut scene = Scene::with(Setup::default(), &[])?;
    scene.lab.host.nft(NFT_DROPS)?;
    let syn = |port: u16| Packet::tcp(from_remote(S1), 80, port, 0x9000_0000, SYN).bytes();
    drop(scene.router.drain());
    scene.router.send(&syn(5000))?;
    let answers = scene
        .router
        .collect(Duration::from_millis(6200), |packet| packet.source == OUTSIDE && packet.destination == S1);
    ensure!(answers.is_empty(), "{EXTERNAL} answers {answers:?}");
    let mut line = Line::established(&scene, 1, 5000, S1, 80)?;
    ensure!(line.external == 5000, "the stranger's SYN has moved the guest to {}", line.external);
    line.out(FIN | ACK, &[])?;

    scene.none_arrives("an unsolicited SYN", &[syn(5001)])?;
    let mut line = Line::new(&scene, 1, 5001, S1, 80);
    line.out(SYN, &[])?;
    line.inward(SYN, &[]).context("the stranger's SYN once more, after the guest's")?;
    line.out_at(line.next.0.wrapping_sub(1), line.next.1, SYN | ACK, &[])?;
    line.inward_at(line.next.1.wrapping_sub(1), line.next.0, SYN | ACK, &[])?;
    line.data_both_ways()?;
    thread::sleep(Duration::from_millis(100));
    scene.none_arrives("a SYN of another", &[Packet::tcp(from_remote(S2), 80, 5001, 1, SYN).bytes()])?;
    scene.lab.assert_invariants()
}
