//! The flow table itself: what the programs and user space put in is found and goes, whatever its groups hold, and nothing is left behind.

use std::{
    collections::HashSet,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
};

use bytemuck::Zeroable as _;
use vmnat_common::{
    Address, Endpoint, Outcome, Port, Protocol,
    flow::FlowKey,
    flow_table::{GROUP, LINE, Line, groups_for, is_passed},
    reap::Mode,
    session::Session,
};
use vmnat_tests::lab::frame::Packet;
use vmnat_user::{
    dataplane::map,
    flow_table::FlowTable,
    paths::Instance,
    tables::{Table, Tables},
};

use super::rig::{FLOWS, PORT1, Rig, SERVER, from_guest1};

/// Entries for which a table of [`FLOWS`] is made.
const ENTRIES: u32 = 2 * FLOWS;

fn key(number: u32) -> FlowKey {
    let [low, high, ..] = number.to_le_bytes();
    let port = Port::new(u16::from_le_bytes([low, high]));
    let guest = Endpoint::new(Address::new([10, 9, low, high]), port);
    FlowKey::guest(Protocol::Udp, guest, Endpoint::new(Address::new([198, 18, 0, 1]), Port::new(7)))
}

fn session(number: u32) -> Session {
    Session { bytes: number, ..Session::zeroed() }
}

fn words() -> Vec<u64> {
    let lines = Table::<u32, Line>::open(&Instance::default(), map::FLOW_GROUP).unwrap();
    let groups = groups_for(ENTRIES);
    let numbers = 1..=groups.div_ceil(LINE);
    let words = numbers.flat_map(|number| lines.get(&number).unwrap().unwrap().words);
    words.take(groups as usize).collect()
}

/// No entry, no reservation and no count is left.
fn assert_nothing_is_left(table: &FlowTable) {
    assert_eq!(table.entries().unwrap().len(), 0);
    let left: Vec<_> = words().into_iter().filter(|word| *word != 0).collect();
    assert!(left.is_empty(), "{left:x?}");
}

/// 1. as many entries as the table is for, and all are found; 2. half as many again until some are refused: those are not found, all
///    others are; 3. all go, and nothing is left. The seed is another with each run.
#[test]
fn a_table_holds_what_it_is_for_and_refuses_what_it_cannot_hold() {
    let rig = Rig::new();
    let table = &rig.tables.flow;
    let put = |number| match table.insert(&key(number), &session(number)) {
        Ok(is_new) => is_new,
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(libc::E2BIG));
            false
        }
    };
    let found = |number| {
        let found = table.get(&key(number)).unwrap();
        assert!(found.is_none_or(|found| found.bytes == number), "{number} is another's");
        found.is_some()
    };
    for number in 0..ENTRIES {
        assert!(put(number), "{number} is refused");
        assert!(!put(number), "{number} is there twice");
    }
    assert!((0..ENTRIES).all(found));
    assert!(words().into_iter().any(is_passed), "no entry is beyond its first group: too few to try that");
    let most = groups_for(ENTRIES) * GROUP;
    let fits: Vec<bool> = (ENTRIES..2 * most).map(put).collect();
    assert!(fits.contains(&false) && fits.contains(&true));
    for (number, fits) in (ENTRIES..2 * most).zip(&fits) {
        assert_eq!(found(number), *fits, "{number}");
    }
    let held = table.entries().unwrap();
    assert_eq!(held.len(), ENTRIES as usize + fits.iter().filter(|fits| **fits).count());
    assert!(held.len() > most as usize * 9 / 10, "{} of {most}", held.len());
    let mut batches = 0;
    for batch in table.batches() {
        batches += batch.unwrap().len();
    }
    assert_eq!(batches, held.len());
    for (key, _) in held {
        assert!(table.remove(&key).unwrap() && !table.remove(&key).unwrap());
    }
    assert_nothing_is_left(table);
}

/// Entries come and go in a table that is nearly full, by chance, and it always has those that a map in memory has.
#[test]
fn whatever_comes_and_goes_the_table_has_what_a_map_has() {
    let rig = Rig::new();
    let table = &rig.tables.flow;
    let mut model = HashSet::new();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for turn in 0_u32..20_000 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let number = u32::try_from(random >> 33).unwrap() % (3 * FLOWS);
        if random & 1 == 0 {
            match table.insert(&key(number), &session(number)) {
                Ok(is_new) => assert_eq!(is_new, model.insert(number), "turn {turn}"),
                Err(_) => assert!(!model.contains(&number)),
            }
        } else {
            assert_eq!(table.remove(&key(number)).unwrap(), model.remove(&number), "turn {turn}");
        }
    }
    assert!(model.iter().all(|number| table.get(&key(*number)).unwrap().is_some()));
    assert_eq!(table.entries().unwrap().len(), model.len());
    for number in &model {
        assert!(table.remove(&key(*number)).unwrap());
    }
    assert_nothing_is_left(table);
}

/// The programs open flows until the table is full, and the reaper removes them; user space sees the same, and nothing is left.
#[test]
fn programs_and_user_space_agree_to_the_brim() {
    let mut rig = Rig::new();
    let asks = |rig: &mut Rig, number: u16| {
        let packet = Packet::udp(from_guest1(SERVER), 2_000 + number, 7, b"q").bytes();
        rig.run("outbound_port", PORT1, &packet).outcome
    };
    let opened: Vec<bool> =
        (0..2_000).map(|number| asks(&mut rig, number) == Outcome::TranslatedOutbound).collect();
    assert!(opened.contains(&false), "the table never is full");
    assert!(opened.iter().take(FLOWS as usize - 1).all(|opened| *opened));
    for (number, opened) in (0..).zip(&opened) {
        if *opened {
            assert_eq!(asks(&mut rig, number), Outcome::TranslatedOutbound, "{number}");
        }
    }
    let entries = rig.tables.flow.entries().unwrap();
    assert_eq!(entries.len(), 2 * opened.iter().filter(|opened| **opened).count());
    for (key, session) in &entries {
        assert_eq!(rig.tables.flow.get(key).unwrap().map(|found| found.last_seen), Some(session.last_seen));
    }
    let guests: Vec<_> = entries.iter().map(|(key, _)| *key).filter(|key| key.side == 0).collect();
    rig.tables.reap(Mode::Remove, &guests).unwrap();
    assert_nothing_is_left(&rig.tables.flow);
}

/// Two threads of user space and a program insert and remove the same few keys at once: never are there two entries of one key, an
/// insertion that succeeded is removed by exactly one, and nothing is left.
#[test]
fn those_who_insert_one_key_at_once_leave_one_entry() {
    let rig = Rig::new();
    let tables = [(); 2].map(|()| Tables::open(&Instance::default()).unwrap());
    let (inserted, removed) = (AtomicU32::new(0), AtomicU32::new(0));
    let is_over = AtomicBool::new(false);
    let count = |counter: &AtomicU32, done: bool| counter.fetch_add(done.into(), Ordering::Relaxed);
    // Enough beside them that groups are full.
    for number in 10_000..10_000 + ENTRIES {
        rig.tables.flow.insert(&key(number), &session(number)).unwrap();
    }
    thread::scope(|scope| {
        for tables in &tables {
            scope.spawn(|| {
                for turn in 0..60_000_u32 {
                    let number = turn.wrapping_mul(2_654_435_761) >> 30;
                    count(&inserted, tables.flow.insert(&key(number), &session(number)).unwrap());
                    count(&removed, tables.flow.remove(&key(number)).unwrap());
                }
                is_over.store(true, Ordering::Relaxed);
            });
        }
        while !is_over.load(Ordering::Relaxed) {
            let entries = rig.tables.flow.entries().unwrap();
            let mut numbers: Vec<u32> = entries.iter().map(|(_, session)| session.bytes).collect();
            numbers.retain(|number| *number < 10_000);
            assert!(numbers.len() <= 16, "{numbers:?}");
        }
    });
    assert!(inserted.load(Ordering::Relaxed) > 1_000);
    assert_eq!(inserted.load(Ordering::Relaxed), removed.load(Ordering::Relaxed));
    for number in 10_000..10_000 + ENTRIES {
        assert!(rig.tables.flow.remove(&key(number)).unwrap());
    }
    assert_nothing_is_left(&rig.tables.flow);
}
