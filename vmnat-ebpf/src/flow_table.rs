//! The flow table's programs' side: found, inserted, removed. How it is laid out and why: [`vmnat_common::flow_table`].

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd, atomic_xor};

use vmnat_common::{
    flow::FlowKey,
    flow_table::{
        Entry, FREE, GROUP, Hash, NO_KEY, ONE_PAST, PROBES, RESERVED, Way, byte_of, is_passed, lowest,
        may_pass, place, slots_with, vacancy, with_byte,
    },
    session::{Carry, Session, Traffic},
};

use crate::{
    maps::{FLOW, FLOW_CARRY, FLOW_GROUP, FLOW_GROUPS, SEARCH},
    session,
};

/// The slot where there is no such key.
const NOWHERE: u32 = u32::MAX;

/// Turns of a search: one for each group, and one for each slot there whose fingerprint is the key's. Of others' slots one in 254 has it.
const TURNS: u32 = 2 * PROBES;

/// Exchanges of a word that are tried before a removal gives up: each that fails was overtaken by one that did not.
const EXCHANGES: u32 = 32;

/// In a word of candidates: some entry went past their group.
const PASSED: u64 = 1 << 63;

/// Searches that one CPU has in hand at most: where a kernel lets packets in while user space runs the reaper, one more.
pub const PLACES: u32 = 2;

/// Answers of insertions and removals; no slots' numbers.
const DONE: u32 = u32::MAX - 1;
const ELSEWHERE: u32 = u32::MAX - 2;
const EXISTS: u32 = u32::MAX - 3;
const FULL: u32 = u32::MAX - 4;
const ABSENT: u32 = u32::MAX - 5;

/// Why nothing was inserted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The key is there.
    Exists,
    /// There is no room.
    Full,
}

/// The entry of a key.
#[inline(always)]
pub fn find(key: &FlowKey) -> Option<&'static mut Entry> {
    let [one, other] = words(key);
    own(flow_seek(one, other), [one, other])
}

/// The same for the packet's own flow: without a call where it is in the first of its groups, as nearly all are.
#[inline(always)]
pub fn find_at_once(key: &FlowKey) -> Option<&'static mut Entry> {
    let [one, other] = words(key);
    let First { hash, group, seen, .. } = First::of(one, other)?;
    // Nothing that leads to this entry comes from the word: the processor guesses that it is here, and asks for both at once.
    if byte_of(seen, hash.home()) == hash.fingerprint()
        && let Some(entry) = own(group * GROUP + hash.home(), [one, other])
    {
        return Some(entry);
    }
    let slots = slots_with(seen, hash.fingerprint());
    if slots == 0 && !is_passed(seen) {
        return None;
    }
    let first = if slots == 0 { NOWHERE } else { group * GROUP + lowest(slots) };
    own(first, [one, other]).or_else(|| find(key))
}

/// The entry in a slot, if that is the key's. Compared where it is used: the slot of a search may be another's by then.
#[inline(always)]
fn own(at: u32, key: [u64; 2]) -> Option<&'static mut Entry> {
    entry(at).filter(|entry| words(&entry.key) == key)
}

/// What went in the direction of a session with this key.
#[inline(always)]
pub fn traffic(key: &FlowKey, session: &Session) -> Traffic {
    let [one, other] = words(key);
    let carry = if session.carries() { FLOW_CARRY.get_ptr_mut(flow_seek(one, other)) } else { None };
    // SAFETY: the kernel keeps an array's element readable for the program's run.
    session.traffic(carry.map_or(Carry::default(), |carry| unsafe { *carry }))
}

/// Adds one to the upper halves of a session's counters that are over; true when that is done, and the session has a carry. Where both places
/// for a search are taken, it is lost.
#[inline(always)]
pub fn carry(key: &FlowKey, session: &Session, is_packet_over: bool, is_byte_over: bool) -> bool {
    let [one, other] = words(key);
    let over = u32::from(is_packet_over) | u32::from(is_byte_over) << 1;
    flow_carry(one, other, over, u32::from(session.carries())) == DONE
}

/// See [`carry`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn flow_carry(one: u64, other: u64, over: u32, carries: u32) -> u32 {
    let Some(carry) = FLOW_CARRY.get_ptr_mut(flow_seek(one, other)) else { return ABSENT };
    // SAFETY: as in `entry`.
    let carry = unsafe { &mut *carry };
    if carries == 0 {
        *carry = Carry::default();
    }
    carry.packets = carry.packets.wrapping_add(over & 1);
    carry.bytes = carry.bytes.wrapping_add(over >> 1);
    DONE
}

/// Inserts the half of a session that stands in the draft, unless the key is there.
#[inline(always)]
pub fn insert(key: &FlowKey) -> Result<(), Refusal> {
    let [one, other] = words(key);
    let mut answer = flow_insert_first(one, other);
    if answer < ABSENT {
        // Inserted there; somebody else may have inserted the same.
        answer = flow_settle(one, other, answer);
    }
    if answer == ELSEWHERE {
        answer = flow_insert(one, other);
    }
    match answer {
        DONE => Ok(()),
        EXISTS => Err(Refusal::Exists),
        _ => Err(Refusal::Full),
    }
}

/// Removes a key's entry; true when this call did it.
#[inline(always)]
pub fn remove(key: &FlowKey) -> bool {
    let [one, other] = words(key);
    match flow_remove_first(one, other) {
        ELSEWHERE => flow_remove(one, other) == DONE,
        answer => answer == DONE,
    }
}

/// The first of a key's groups.
struct First {
    hash: Hash,
    group: u32,
    word: *mut u64,
    /// What stood in the word.
    seen: u64,
}

impl First {
    #[inline(always)]
    fn of(one: u64, other: u64) -> Option<Self> {
        let hash = hash(one, other)?;
        let group = hash.way().group(groups());
        let word = word(group)?;
        Some(Self { hash, group, word, seen: load(word) })
    }
}

/// A search in hand. Not on the stack, where there is no room for it.
#[repr(C)]
pub struct Search {
    key: [u64; 2],
    hash: Hash,
    /// The group in hand.
    way: Way,
    /// Its slots that may have the key, and [`PASSED`].
    candidates: u64,
    /// Not zero while a search has this place.
    is_taken: u64,
    /// A slot that does not count.
    except: u32,
}

/// The slot of a key. A global function, as those below: the verifier walks it once a program, not once a call.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn flow_seek(one: u64, other: u64) -> u32 {
    let Some(First { hash, group, seen, .. }) = First::of(one, other) else { return NOWHERE };
    let slots = slots_with(seen, hash.fingerprint());
    let at = group * GROUP + lowest(slots);
    // Nearly always it is here, or nowhere.
    if slots != 0 && entry(at).is_some_and(|entry| words(&entry.key) == [one, other]) {
        return at;
    }
    if slots & slots.wrapping_sub(1) == 0 && !is_passed(seen) {
        return NOWHERE;
    }
    let Some(place) = begin(one, other) else { return NOWHERE };
    let at = flow_look(place, NOWHERE);
    end(place);
    at
}

/// Brings the slot near where a key will probably be inserted: nobody waits for these loads, and the insertion need not.
#[inline(always)]
pub fn foresee(key: &FlowKey) {
    let [one, other] = words(key);
    flow_foresee(one, other);
}

/// See [`foresee`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn flow_foresee(one: u64, other: u64) -> u32 {
    let Some(First { hash, group, seen, .. }) = First::of(one, other) else { return 0 };
    if let Some(entry) = vacancy(seen, hash.home()).and_then(|slot| entry(group * GROUP + slot)) {
        // SAFETY: the entry is the map's; what is read is not used.
        unsafe { (&raw const entry.key.source).cast::<u32>().read_volatile() };
    }
    0
}

/// Inserts the half of a session that stands in the draft into the first of the key's groups: [`DONE`], or the slot where another look
/// is due, or [`ELSEWHERE`] where that group does not tell, or has no room.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn flow_insert_first(one: u64, other: u64) -> u32 {
    let Some(First { hash, group, word, seen }) = First::of(one, other) else { return ELSEWHERE };
    let Some(slot) = vacancy(seen, hash.home()) else { return ELSEWHERE };
    if is_passed(seen) || slots_with(seen, hash.fingerprint()) != 0 {
        return ELSEWHERE;
    }
    let at = group * GROUP + slot;
    let (Some(entry), Ok(half)) = (entry(at), session::half()) else { return ELSEWHERE };
    if !exchange(word, seen, with_byte(seen, slot, RESERVED)) {
        return ELSEWHERE;
    }
    fill(entry, [one, other], half);
    if !replace(word, slot, RESERVED, hash.fingerprint()) {
        return ELSEWHERE;
    }
    // As in `flow_settle`.
    let seen = with_byte(load(word), slot, FREE);
    if is_passed(seen) || slots_with(seen, hash.fingerprint()) != 0 { at } else { DONE }
}

/// Removes a key's entry from the first of its groups: [`DONE`], [`ABSENT`], or [`ELSEWHERE`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn flow_remove_first(one: u64, other: u64) -> u32 {
    let Some(First { hash, group, word, seen }) = First::of(one, other) else { return ABSENT };
    let slots = slots_with(seen, hash.fingerprint());
    if slots == 0 && !is_passed(seen) {
        return ABSENT;
    }
    let slot = lowest(slots);
    let is_here = slots != 0
        && entry(group * GROUP + slot).is_some_and(|entry| words(&entry.key) == [one, other])
        && free(word, seen, group * GROUP + slot, hash, [one, other]) == Freed::Done;
    if is_here { DONE } else { ELSEWHERE }
}

/// Inserts the half of a session that stands in the draft: [`DONE`], [`EXISTS`] or [`FULL`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn flow_insert(one: u64, other: u64) -> u32 {
    let Some(place) = begin(one, other) else { return FULL };
    let mut answer = if flow_look(place, NOWHERE) == NOWHERE { insert_new(place) } else { EXISTS };
    if answer == ELSEWHERE {
        answer = insert_new(place);
    }
    end(place);
    answer
}

/// Looks once more for a key that was inserted: who has inserted the same meanwhile was published before, or looks after it, so at least
/// one of the two sees the other, and takes its own back. Where both did, [`ELSEWHERE`]: it is to be inserted once more.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn flow_settle(one: u64, other: u64, at: u32) -> u32 {
    let Some(place) = begin(one, other) else { return DONE };
    let answer = settle(place, at);
    end(place);
    answer
}

/// Removes a key's entry: [`DONE`] when this call did it, else [`ABSENT`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn flow_remove(one: u64, other: u64) -> u32 {
    let Some(place) = begin(one, other) else { return ABSENT };
    let at = flow_look(place, NOWHERE);
    let answer = if at == NOWHERE { ABSENT } else { take_out(place, at) };
    end(place);
    answer
}

/// Takes a place for a search; none where both are taken.
#[inline(always)]
fn begin(one: u64, other: u64) -> Option<u32> {
    let hash = hash(one, other)?;
    let place = if take(0) {
        0
    } else if take(1) {
        1
    } else {
        return None;
    };
    let search = search(place)?;
    search.key = [one, other];
    search.hash = hash;
    Some(place)
}

#[inline(always)]
fn take(place: u32) -> bool {
    let Some(search) = search(place) else { return false };
    let flag = &raw mut search.is_taken;
    // SAFETY: the flag lives in the map, and is aligned. Atomic for what interrupts this CPU between look and store.
    unsafe { atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(flag, 0, 1).1 }
}

#[inline(always)]
fn end(place: u32) {
    if let Some(search) = search(place) {
        // SAFETY: as in `take`. Volatile, so that nothing of the search is stored after it.
        unsafe { (&raw mut search.is_taken).write_volatile(0) };
    }
}

#[inline(always)]
fn search(place: u32) -> Option<&'static mut Search> {
    let search = SEARCH.get_ptr_mut(place)?;
    // SAFETY: this CPU's own, and in the hands of one search at a time.
    Some(unsafe { &mut *search })
}

/// The slot of the key in hand, but for one that does not count.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn flow_look(place: u32, except: u32) -> u32 {
    let Some(search) = search(place) else { return NOWHERE };
    search.way = search.hash.way();
    search.except = except;
    search.candidates = candidates(search);
    for _ in 0..TURNS {
        let slots = search.candidates & !PASSED;
        if slots == 0 {
            if search.candidates == 0 {
                return NOWHERE;
            }
            search.way = search.way.next();
            search.candidates = candidates(search);
            continue;
        }
        let at = search.way.group(groups()) * GROUP + lowest(slots);
        if at != search.except && entry(at).is_some_and(|entry| words(&entry.key) == search.key) {
            return at;
        }
        search.candidates &= search.candidates - 1;
    }
    NOWHERE
}

/// The slots of the group in hand that may have the key, and [`PASSED`].
#[inline(always)]
fn candidates(search: &Search) -> u64 {
    let Some(word) = word(search.way.group(groups())).map(load) else { return 0 };
    slots_with(word, search.hash.fingerprint()) | if is_passed(word) { PASSED } else { 0 }
}

#[inline(always)]
fn insert_new(place: u32) -> u32 {
    let at = flow_reserve(place);
    flow_pass_back(place, at);
    if flow_fill(place, at) == DONE { settle(place, at) } else { FULL }
}

/// Whether an entry that was published stands; [`ELSEWHERE`] where it was taken back for one that is gone by now, too.
#[inline(always)]
fn settle(place: u32, at: u32) -> u32 {
    if flow_look(place, at) == NOWHERE {
        return DONE;
    }
    match take_out(place, at) {
        // Who has removed it before has found it inserted.
        ABSENT => DONE,
        DONE if flow_look(place, NOWHERE) == NOWHERE => ELSEWHERE,
        _ => EXISTS,
    }
}

#[inline(always)]
fn take_out(place: u32, at: u32) -> u32 {
    let answer = flow_free(place, at);
    if answer == DONE {
        flow_step_back(place, at);
    }
    answer
}

/// Changes the byte of a slot that is in nobody else's hands; false, and as it was, where somebody has wiped it meanwhile.
#[inline(always)]
fn replace(word: *mut u64, slot: u32, from: u8, to: u8) -> bool {
    let change = u64::from(from ^ to) << (slot * 8);
    // SAFETY: the word lives in the map, and is aligned. The exchange is ordered after the entry's bytes.
    let old = unsafe { atomic_xor::<u64, u64, { AtomicOrdering::SeqCst }>(word, change) };
    if byte_of(old, slot) == from {
        return true;
    }
    // SAFETY: as above.
    unsafe { atomic_xor::<u64, u64, { AtomicOrdering::SeqCst }>(word, change) };
    false
}

/// Frees the slot of an entry with these words, which was seen there; false where it is another's by now. The slot is taken into this
/// CPU's hands first: only then nobody can put another entry there whose fingerprint is the same.
#[inline(always)]
fn free(word: *mut u64, seen: u64, at: u32, hash: Hash, key: [u64; 2]) -> Freed {
    let slot = at % GROUP;
    if !exchange(word, seen, with_byte(seen, slot, RESERVED)) {
        return Freed::Overtaken;
    }
    let is_its = entry(at).is_some_and(|entry| words(&entry.key) == key);
    replace(word, slot, RESERVED, if is_its { FREE } else { hash.fingerprint() });
    if is_its { Freed::Done } else { Freed::Anothers }
}

/// What came of an attempt to free a slot.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Freed {
    Done,
    Anothers,
    /// The word has changed.
    Overtaken,
}

/// Writes an entry so that nobody finds one flow's key with another's session: the former key goes first, the new one comes last. On
/// processors that order stores as x86 does; each store is one, and in this order, as they are volatile.
#[inline(always)]
fn fill(entry: &mut Entry, key: [u64; 2], half: &Session) {
    const WORDS: usize = size_of::<Session>() / size_of::<u64>();
    let (to, from) = ((&raw mut entry.session).cast::<u64>(), (&raw const *half).cast::<u64>());
    let at = (&raw mut entry.key).cast::<u64>();
    // SAFETY: a key is two words and a session a number of them, all aligned; both lie in maps' values.
    unsafe {
        at.write_volatile(NO_KEY[0]);
        at.add(1).write_volatile(NO_KEY[1]);
        for word in 0..WORDS {
            to.add(word).write_volatile(from.add(word).read());
        }
        at.write_volatile(key[0]);
        at.add(1).write_volatile(key[1]);
    }
}

/// Fills a slot that was reserved, and lets everybody see it: [`DONE`], or [`FULL`] where there is none.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn flow_fill(place: u32, at: u32) -> u32 {
    let (Some(entry), Some(word), Some(search)) = (entry(at), word(at / GROUP), search(place)) else {
        return FULL;
    };
    let Ok(half) = session::half() else { return FULL };
    fill(entry, search.key, half);
    if replace(word, at % GROUP, RESERVED, search.hash.fingerprint()) { DONE } else { FULL }
}

/// Reserves a slot for the key in hand.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn flow_reserve(place: u32) -> u32 {
    let Some(search) = search(place) else { return NOWHERE };
    search.way = search.hash.way();
    for _ in 0..PROBES {
        let group = search.way.group(groups());
        let Some(word) = word(group) else { return NOWHERE };
        let seen = load(word);
        if let Some(slot) = vacancy(seen, search.hash.home()) {
            if exchange(word, seen, with_byte(seen, slot, RESERVED)) {
                return group * GROUP + slot;
            }
            continue;
        }
        if !may_pass(seen) {
            break;
        }
        pass(word);
        search.way = search.way.next();
    }
    NOWHERE
}

/// After a search for a free slot: takes one off the counts that nobody will, which are all where there was none, and else those from
/// the first time on that the slot's own group was passed.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn flow_pass_back(place: u32, at: u32) -> u32 {
    let Some(search) = search(place) else { return 0 };
    let mut way = search.hash.way();
    let mut is_behind = at == NOWHERE;
    for _ in 0..PROBES {
        if way == search.way {
            return 0;
        }
        let passed = way.group(groups());
        is_behind |= passed == at / GROUP;
        if is_behind && let Some(word) = word(passed) {
            pass_no_more(word);
        }
        way = way.next();
    }
    0
}

/// Takes the entry of the key in hand out of its slot: [`DONE`] when this call did it, [`ABSENT`] when it was not there, [`ELSEWHERE`] when
/// others changed the group all the time.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn flow_free(place: u32, at: u32) -> u32 {
    let (Some(search), Some(word)) = (search(place), word(at / GROUP)) else { return ABSENT };
    for _ in 0..EXCHANGES {
        let seen = load(word);
        let is_there = byte_of(seen, at % GROUP) == search.hash.fingerprint()
            && entry(at).is_some_and(|entry| words(&entry.key) == search.key);
        if !is_there {
            return ABSENT;
        }
        match free(word, seen, at, search.hash, search.key) {
            Freed::Done => return DONE,
            Freed::Anothers => return ABSENT,
            Freed::Overtaken => {}
        }
    }
    ELSEWHERE
}

/// Takes one off the count of each group before that of this slot.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn flow_step_back(place: u32, at: u32) -> u32 {
    let Some(search) = search(place) else { return 0 };
    search.way = search.hash.way();
    for _ in 0..PROBES {
        let group = search.way.group(groups());
        if group == at / GROUP {
            return 0;
        }
        if let Some(word) = word(group) {
            pass_no_more(word);
        }
        search.way = search.way.next();
    }
    0
}

#[inline(always)]
fn hash(one: u64, other: u64) -> Option<Hash> {
    Some(Hash::of([one, other], secret()?))
}

/// The table's secret.
#[inline(always)]
fn secret() -> Option<[u64; 2]> {
    let head = FLOW_GROUP.get(0)?;
    Some([head.words[0], head.words[1]])
}

/// How many groups there are.
#[inline(always)]
fn groups() -> u32 {
    // SAFETY: it lives as long as the program. Volatile, because the loader writes it and the compiler does not know.
    unsafe { (&raw const FLOW_GROUPS).read_volatile() }
}

/// The word of a group.
#[inline(always)]
fn word(group: u32) -> Option<*mut u64> {
    let (line, word) = place(group);
    let line = FLOW_GROUP.get_ptr_mut(line)?;
    // SAFETY: the word lies inside the line, whose words are aligned.
    Some(unsafe { (&raw mut (*line).words).cast::<u64>().add(word) })
}

/// The entry in a slot.
#[inline(always)]
fn entry(at: u32) -> Option<&'static mut Entry> {
    let entry = FLOW.get_ptr_mut(at)?;
    // SAFETY: the kernel keeps an array's element readable and writable for the program's run. Two CPUs on one may lose a count to
    // each other, or find another flow there than they looked for: who searches compares the key.
    Some(unsafe { &mut *entry })
}

#[inline(always)]
fn words(key: &FlowKey) -> [u64; 2] {
    bytemuck::cast(*key)
}

#[inline(always)]
fn load(word: *mut u64) -> u64 {
    // SAFETY: the word lies in the map; a load of eight aligned bytes is one load.
    unsafe { word.read_volatile() }
}

/// Replaces a word that is as it was seen.
#[inline(always)]
pub fn exchange(word: *mut u64, seen: u64, new: u64) -> bool {
    // SAFETY: as in `load`.
    unsafe { atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(word, seen, new).1 }
}

#[inline(always)]
fn pass(word: *mut u64) {
    // SAFETY: as in `load`.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(word, ONE_PAST) };
}

/// Takes one off the count of a group, unless somebody has wiped it.
#[inline(always)]
fn pass_no_more(word: *mut u64) {
    if is_passed(load(word)) {
        // SAFETY: as in `load`.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(word, ONE_PAST.wrapping_neg()) };
    }
}
