//! Counters beyond four gigabytes: an entry holds the lower halves, and the upper ones lie beside the table.

use vmnat_common::{
    Outcome,
    flow::{FlowKey, Side},
    reap::Mode,
    session::{Session, Traffic},
    tcp_state::Seen,
};
use vmnat_tests::lab::frame::Packet;
use vmnat_user::flows::{self, Filter, Flow};

use super::rig::{EXTERNAL, GUEST1, PORT1, PORT2, Rig, SERVER, UPLINK, from_guest1, from_guest2, from_world};

const HALF: u64 = 1 << 32;
const ACK: u8 = 0x10;

fn traffic(packets: u64, bytes: u64) -> Traffic {
    Traffic { packets, bytes }
}

/// The sessions whose keys have this side.
fn sessions(rig: &Rig, side: Side) -> Vec<(FlowKey, Session)> {
    let entries = rig.tables.flow.entries().unwrap();
    entries.into_iter().filter(|(key, _)| key.side == side as u8).collect()
}

/// Gives every session these counters, as if so much had passed.
fn pretend(rig: &Rig, Traffic { packets, bytes }: Traffic) {
    let (carry, [packets, bytes]) = Traffic { packets, bytes }.split();
    for (key, session) in rig.tables.flow.entries().unwrap() {
        let carries = if carry.packets == 0 && carry.bytes == 0 { 0 } else { Session::CARRIES };
        let tcp_seen = session.tcp_seen & !Session::CARRIES | carries;
        let session = Session { packets, bytes, tcp_seen, ..session };
        assert!(rig.tables.flow.remove(&key).unwrap());
        let value = [bytemuck::bytes_of(&session), bytemuck::bytes_of(&carry)].concat();
        assert!(rig.tables.flow.insert_bytes(&key, &value).unwrap());
    }
}

fn only_flow(rig: &Rig) -> Flow {
    let mut all = Vec::new();
    let each = |flow| {
        all.push(flow);
        Ok(true)
    };
    flows::each(&rig.tables, &Filter::default(), each).unwrap();
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

/// A segment of 40 bytes.
fn out_with(rig: &mut Rig, flags: u8) {
    let packet = Packet::tcp(from_guest1(SERVER), 5000, 80, 1, flags).bytes();
    assert_eq!(rig.run("outbound_port", PORT1, &packet).outcome, Outcome::TranslatedOutbound);
}

fn out(rig: &mut Rig) {
    out_with(rig, ACK);
}

fn back(rig: &mut Rig) {
    let packet = Packet::tcp(from_world(SERVER), 80, 5000, 1, ACK).bytes();
    assert_eq!(rig.run("inbound", UPLINK, &packet).outcome, Outcome::TranslatedInbound);
}

#[test]
fn counters_go_on_over_half_their_width_each_way() {
    let mut rig = Rig::new();
    out(&mut rig);
    back(&mut rig);
    for before in [
        traffic(7, HALF - 1),
        traffic(HALF - 1, 7),
        traffic(HALF - 1, HALF - 40),
        traffic(3 * HALF - 1, 0x1234_5678 * HALF - 1),
        traffic(5, 9),
    ] {
        pretend(&rig, before);
        let flow = only_flow(&rig);
        assert_eq!((flow.outbound, flow.inbound), (before, before));
        for number in 1..=3 {
            out(&mut rig);
            back(&mut rig);
            let flow = only_flow(&rig);
            let after = traffic(before.packets + number, before.bytes + number * 40);
            assert_eq!((flow.outbound, flow.inbound), (after, after));
            // The bit beside them is no bit of TCP's.
            assert_eq!(flow.stage, "established");
        }
    }
    let seen = sessions(&rig, Side::Guest)[0].1.tcp_seen;
    assert_eq!(seen & !Session::CARRIES, Seen::ACK);
}

/// As when a table is made anew, with another size or by another version.
#[test]
fn counters_are_copied_whole() {
    let mut rig = Rig::new();
    out(&mut rig);
    back(&mut rig);
    for before in [traffic(3, 5 * HALF + 4), traffic(3 * HALF + 9, 7), traffic(1, 2)] {
        pretend(&rig, before);
        let copies = rig.tables.flow.entries_as_bytes().unwrap();
        assert_eq!(copies.len(), 2);
        pretend(&rig, traffic(11 * HALF, 13 * HALF));
        for (key, session) in &copies {
            assert!(rig.tables.flow.remove(key).unwrap());
            assert!(rig.tables.flow.insert_bytes(key, session).unwrap());
        }
        let flow = only_flow(&rig);
        assert_eq!((flow.outbound, flow.inbound), (before, before));
    }
}

/// A slot that had a carry is used anew: its next flow begins at nothing.
#[test]
fn what_was_carried_is_not_the_next_flows() {
    let mut rig = Rig::new();
    out(&mut rig);
    pretend(&rig, traffic(9 * HALF - 1, 9 * HALF - 1));
    out(&mut rig);
    let keys: Vec<_> = sessions(&rig, Side::Guest).into_iter().map(|(key, _)| key).collect();
    rig.tables.reap(Mode::Remove, &keys).unwrap();
    out(&mut rig);
    assert_eq!(only_flow(&rig).outbound, traffic(1, 40));
    // Once that one has a carry of its own, nothing of the former's is in it.
    let (key, session) = sessions(&rig, Side::Guest)[0];
    assert!(rig.tables.flow.remove(&key).unwrap());
    assert!(rig.tables.flow.insert(&key, &Session { bytes: u32::MAX, ..session }).unwrap());
    out(&mut rig);
    assert_eq!(only_flow(&rig).outbound, traffic(2, HALF + 39));
}

/// A segment that opens a closed conversation again takes no carry away.
#[test]
fn a_conversation_that_begins_anew_keeps_its_counts() {
    let mut rig = Rig::new();
    out(&mut rig);
    pretend(&rig, traffic(HALF, HALF));
    for flags in [0x11, 0x02] {
        out_with(&mut rig, flags);
    }
    let flow = only_flow(&rig);
    assert_eq!((flow.stage, flow.outbound), ("half-open", traffic(HALF + 2, HALF + 80)));
}

/// A port forward's account has all that went through a conversation, also where it turned round on the host.
#[test]
fn accounts_of_port_forwards_have_both_halves() {
    for turns in [false, true] {
        let mut rig = Rig::new();
        let id = rig.forward(17, 8080, GUEST1, 80);
        let call = |rig: &mut Rig| {
            let (ends, program, interface) = if turns {
                (from_guest2(EXTERNAL), "outbound_port", PORT2)
            } else {
                (from_world(SERVER), "inbound", UPLINK)
            };
            let called = rig.run(program, interface, &Packet::udp(ends, 5000, 8080, &[0; 72]).bytes());
            assert_eq!(called.packet().destination, GUEST1);
            let packet = called.packet();
            let answer = Packet::udp(from_guest1(packet.source), 80, packet.ports().unwrap().0, &[0; 172]);
            let answered = rig.run("outbound_port", PORT1, &answer.bytes());
            assert_eq!(answered.packet().source, EXTERNAL);
        };
        call(&mut rig);
        pretend(&rig, traffic(2 * HALF - 1, 3 * HALF - 1));
        call(&mut rig);
        let live = vmnat_user::forwards::counts(&rig.tables).unwrap()[&id];
        let (inbound, outbound) = (traffic(2 * HALF, 3 * HALF + 99), traffic(2 * HALF, 3 * HALF + 199));
        assert_eq!((live.inbound, live.outbound), (inbound, outbound), "turns: {turns}");
        let is_receivers = |key: &FlowKey| key.source.octets() == GUEST1;
        let keys = sessions(&rig, Side::Guest).into_iter().map(|(key, _)| key);
        let keys: Vec<_> = keys.filter(is_receivers).collect();
        rig.tables.reap(Mode::Remove, &keys).unwrap();
        let ended = rig.tables.forward_count.get(&id).unwrap().unwrap();
        assert_eq!(
            (traffic(ended.packets_in, ended.bytes_in), traffic(ended.packets_out, ended.bytes_out)),
            (inbound, outbound)
        );
    }
}
