//! The flow table, as user space reads and fills it. How it is laid out and why: [`vmnat_common::flow_table`].
//!
//! The groups' words are this process's memory, and of the entries a window is where it looks at many, or changes one: a
//! table of a million flows shall not be counted as this process's. Keys are compared and words exchanged as the programs do it.

mod window;

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::atomic::{AtomicU64, Ordering, fence},
};

use anyhow::{Context as _, Result};
use bytemuck::Zeroable as _;
use vmnat_common::{
    flow::FlowKey,
    flow_table::{
        Entry, FREE, GROUP, Hash, LINE, Line, NO_KEY, ONE_PAST, PROBES, RESERVED, Way, byte_of, is_passed,
        lowest, may_pass, place, slots_with, vacancy, with_byte,
    },
    session::{Carry, Session, Traffic},
};

use self::window::Window;
use crate::{
    dataplane::map,
    paths::Instance,
    rawbpf::{self, MapShape},
    tables::Table,
};

/// Lines of groups that are read at a time: some 3,600 slots.
const BATCH: u32 = 64;

/// What came of an attempt to reserve a slot of a group.
enum Reserved {
    Slot(u32),
    /// The group is full, and one entry more goes past it.
    Passed,
    Refused,
}

/// The flow table of any layout whose entries begin with a [`FlowKey`]; of this version's where sessions go in and out.
#[derive(Debug)]
pub struct FlowTable {
    slot: Values,
    groups: u32,
    /// All of the groups' lines.
    lines: Window,
    /// Upper halves of counters, by slot; none of layouts that keep the counters whole.
    carry: Option<OwnedFd>,
}

/// The values of its larger map.
#[derive(Debug)]
struct Values {
    fd: OwnedFd,
    /// Bytes of a value.
    size: usize,
    /// Bytes from one value to the next.
    stride: usize,
    /// All of them, where many are written.
    whole: Option<Window>,
}

/// A value, or more of them.
enum Reach<'a> {
    Part(Window),
    Whole(&'a Window, usize),
}

impl FlowTable {
    /// Opens the table of an instance.
    ///
    /// # Errors
    /// As [`Table::open`].
    pub fn open(instance: &Instance) -> Result<Self> {
        let slot = Table::<u32, Entry>::open(instance, map::FLOW)?;
        let group = Table::<u32, Line>::open(instance, map::FLOW_GROUP)?;
        let carry = Table::<u32, Carry>::open(instance, map::FLOW_CARRY)?.into_fd();
        let shape = rawbpf::map_shape(slot.fd().as_fd()).context("ask for the shape of the flow table")?;
        let lines = rawbpf::map_shape(group.fd().as_fd()).context("ask for the shape of the flow table")?;
        Self::over((slot.into_fd(), shape), &(group.into_fd(), lines), Some(carry))
            .context("map the flow table")
    }

    /// The table in two maps of these shapes, and the upper halves of its counters.
    ///
    /// # Errors
    /// What `mmap` answers.
    pub fn over(
        slot: (OwnedFd, MapShape),
        group: &(OwnedFd, MapShape),
        carry: Option<OwnedFd>,
    ) -> io::Result<Self> {
        let groups = slot.1.max_entries / GROUP;
        let (group, lines) = (group.0.as_fd(), index(group.1.max_entries));
        let lines = Window::open(group, 0, lines.saturating_mul(size_of::<Line>()))?;
        Ok(Self { slot: Values::of(slot)?, groups, lines, carry })
    }

    /// The map of its slots.
    #[must_use]
    pub const fn fd(&self) -> &OwnedFd {
        &self.slot.fd
    }

    /// Gives the table a secret, unless it has one or entries that were put in without.
    ///
    /// # Errors
    /// Where no random numbers are to be had.
    pub fn seed(&self) -> io::Result<()> {
        if self.secret()? != [0, 0] || self.batches().next().transpose()?.is_some() {
            return Ok(());
        }
        for offset in [0, 8] {
            let mut bytes = [0_u8; 8];
            // SAFETY: the buffer is as long as is said.
            let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
            if usize::try_from(got) != Ok(bytes.len()) {
                return Err(io::Error::last_os_error());
            }
            self.lines.word(offset)?.store(u64::from_ne_bytes(bytes), Ordering::SeqCst);
        }
        Ok(())
    }

    /// The session of a key.
    ///
    /// # Errors
    /// What the kernel answers; a missing key is `None`.
    pub fn get(&self, key: &FlowKey) -> io::Result<Option<Session>> {
        match self.find(key, None)? {
            Some(at) => self.session_at(at, key),
            None => Ok(None),
        }
    }

    /// What went in the direction of a session that was read under this key.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn traffic(&self, key: &FlowKey, session: &Session) -> io::Result<Traffic> {
        if session.carries()
            && let Some(at) = self.find(key, None)?
            && let Some((session, carry)) = self.with_carry(at, key)?
        {
            return Ok(session.traffic(carry));
        }
        Ok(session.traffic(Carry::default()))
    }

    /// The key's session in this slot, and what its counters carried then; none where it is another's.
    fn with_carry(&self, at: u32, key: &FlowKey) -> io::Result<Option<(Session, Carry)>> {
        let mut before = self.session_at(at, key)?;
        while let Some(session) = before {
            let carry = self.carry_at(at)?;
            let after = self.session_at(at, key)?;
            // Once in four gigabytes the lower halves begin anew meanwhile.
            if after.is_some_and(|now| now.packets >= session.packets && now.bytes >= session.bytes) {
                return Ok(Some((session, carry)));
            }
            before = after;
        }
        Ok(None)
    }

    /// Stores a session where there is none; false when there is. Its counters are its own: what another table carries of them is not
    /// taken along.
    ///
    /// # Errors
    /// What the kernel answers; `E2BIG` where the table is full.
    pub fn insert(&self, key: &FlowKey, session: &Session) -> io::Result<bool> {
        let session = Session { tcp_seen: session.tcp_seen & !Session::CARRIES, ..*session };
        self.insert_bytes(key, bytemuck::bytes_of(&session))
    }

    /// Stores many sessions; those whose keys are there stay as they are.
    ///
    /// # Errors
    /// As [`FlowTable::insert`]; some of them may be stored then.
    pub fn insert_all<'a>(
        &mut self,
        entries: impl IntoIterator<Item = (&'a FlowKey, &'a Session)>,
    ) -> io::Result<()> {
        self.bring_near()?;
        let inserted = entries.into_iter().try_for_each(|(key, session)| self.insert(key, session).map(drop));
        self.slot.whole = None;
        inserted
    }

    /// Stores a session of this table's layout where there is none; false when there is. What its counters carry may follow it.
    ///
    /// # Errors
    /// As [`FlowTable::insert`], and `InvalidInput` where it is longer than the table's.
    pub fn insert_bytes(&self, key: &FlowKey, session: &[u8]) -> io::Result<bool> {
        if self.find(key, None)?.is_some() {
            return Ok(false);
        }
        let mut value = [bytemuck::bytes_of(key), session].concat();
        let carry = value.split_off(self.slot.size.min(value.len()));
        if value.len() != self.slot.size || ![0, size_of::<Carry>()].contains(&carry.len()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // Where the session does not carry, what lies there is of no meaning and may stay.
        let carries = value.get(size_of::<FlowKey>()..).and_then(own).is_none_or(|session| session.carries());
        let carry = bytemuck::try_pod_read_unaligned::<Carry>(&carry).ok().filter(|_| carries);
        let hash = self.hash(key)?;
        loop {
            let Some(at) = self.reserve(hash)? else {
                return Err(io::Error::from_raw_os_error(libc::E2BIG));
            };
            let written = self.slot.reach(at, 1).and_then(|slot| fill(&slot, &value));
            if let Err(error) = written.and_then(|()| self.set_carry(at, carry)) {
                self.replace(at, RESERVED, FREE)?;
                self.step_back(hash, at / GROUP)?;
                return Err(error);
            }
            self.replace(at, RESERVED, hash.fingerprint())?;
            fence(Ordering::SeqCst);
            // Who has removed it before has found it inserted.
            if self.find(key, Some(at))?.is_none() || !self.take_out(key, hash, at)? {
                return Ok(true);
            }
            // Both may have taken their own back.
            if self.find(key, None)?.is_some() {
                return Ok(false);
            }
        }
    }

    /// The session in a slot, if that is the key's.
    fn session_at(&self, at: u32, key: &FlowKey) -> io::Result<Option<Session>> {
        let mut entry = Entry::zeroed();
        self.slot.copy(at, bytemuck::bytes_of_mut(&mut entry))?;
        Ok((entry.key == *key).then_some(entry.session))
    }

    fn carry_at(&self, at: u32) -> io::Result<Carry> {
        let Some(carry) = &self.carry else { return Ok(Carry::default()) };
        Ok(rawbpf::lookup(carry.as_fd(), &at)?.unwrap_or_default())
    }

    fn set_carry(&self, at: u32, carry: Option<Carry>) -> io::Result<()> {
        match (&self.carry, carry) {
            (Some(map), Some(carry)) => rawbpf::update(map.as_fd(), &at, &carry, rawbpf::ANY),
            _ => Ok(()),
        }
    }

    /// Changes the byte of a slot that is in nobody else's hands.
    fn replace(&self, at: u32, from: u8, to: u8) -> io::Result<()> {
        let change = u64::from(from ^ to) << (at % GROUP).saturating_mul(8);
        self.word(at / GROUP)?.fetch_xor(change, Ordering::SeqCst);
        Ok(())
    }

    /// Removes a key; false when there was none.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn remove(&self, key: &FlowKey) -> io::Result<bool> {
        let Some(at) = self.find(key, None)? else { return Ok(false) };
        self.take_out(key, self.hash(key)?, at)
    }

    /// Every entry, a batch at a time. Entries that come or go meanwhile may be missed or seen twice.
    #[must_use]
    pub const fn batches(&self) -> Batches<'_> {
        Batches { table: self, group: 0 }
    }

    /// Every entry.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn entries(&self) -> io::Result<Vec<(FlowKey, Session)>> {
        let mut all = Vec::new();
        for batch in self.batches() {
            all.extend(batch?);
        }
        Ok(all)
    }

    /// Every entry, its session as bytes, with what its counters carry.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn entries_as_bytes(&self) -> io::Result<Vec<(FlowKey, Vec<u8>)>> {
        let mut all = Vec::new();
        let mut group = 0;
        while group < self.groups {
            let mut batch = Vec::new();
            self.read(group, |at, key, session| batch.push((at, key, session.to_vec())))?;
            for (at, key, mut session) in batch {
                let read = own(&session);
                if read.is_some_and(|session| session.carries()) {
                    let Some((now, carry)) = self.with_carry(at, &key)? else { continue };
                    session = [bytemuck::bytes_of(&now), bytemuck::bytes_of(&carry)].concat();
                } else if self.carry.is_some() {
                    // Of a session of another length, nobody here knows whether it carries.
                    let carry = if read.is_none() { self.carry_at(at)? } else { Carry::default() };
                    session.extend(bytemuck::bytes_of(&carry));
                }
                all.push((key, session));
            }
            group = group.saturating_add(BATCH * LINE);
        }
        Ok(all)
    }

    /// Shows this process the whole table: many entries are written then without a system call each.
    ///
    /// # Errors
    /// What `mmap` answers.
    pub fn bring_near(&mut self) -> io::Result<()> {
        let length = index(self.groups.saturating_mul(GROUP)).saturating_mul(self.slot.stride);
        self.slot.whole = Some(Window::open(self.slot.fd.as_fd(), 0, length)?);
        Ok(())
    }

    fn secret(&self) -> io::Result<[u64; 2]> {
        Ok([self.lines.word(0)?.load(Ordering::Relaxed), self.lines.word(8)?.load(Ordering::Relaxed)])
    }

    fn hash(&self, key: &FlowKey) -> io::Result<Hash> {
        Ok(Hash::of(bytemuck::cast(*key), self.secret()?))
    }

    /// The word of a group.
    fn word(&self, group: u32) -> io::Result<&AtomicU64> {
        let (line, word) = place(group);
        let number = index(line.saturating_mul(LINE)).saturating_add(word);
        self.lines.word(number.saturating_mul(size_of::<u64>()))
    }

    fn find(&self, key: &FlowKey, except: Option<u32>) -> io::Result<Option<u32>> {
        let hash = self.hash(key)?;
        for way in ways(hash) {
            let group = way.group(self.groups);
            let word = self.word(group)?.load(Ordering::Acquire);
            let mut slots = slots_with(word, hash.fingerprint());
            while slots != 0 {
                let at = group.saturating_mul(GROUP).saturating_add(lowest(slots));
                if Some(at) != except && self.key_at(at)? == *key {
                    return Ok(Some(at));
                }
                slots &= slots.wrapping_sub(1);
            }
            if !is_passed(word) {
                break;
            }
        }
        Ok(None)
    }

    fn key_at(&self, at: u32) -> io::Result<FlowKey> {
        let mut value = vec![0; self.slot.size];
        self.slot.copy(at, &mut value)?;
        let key = value.get(..size_of::<FlowKey>()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(bytemuck::pod_read_unaligned(key))
    }

    /// Reserves a slot. As the programs do, it leaves one pass counted in each group before the first time that the slot's own is met.
    fn reserve(&self, hash: Hash) -> io::Result<Option<u32>> {
        let mut passed: Vec<Way> = Vec::new();
        for way in ways(hash) {
            let group = way.group(self.groups);
            let word = self.word(group)?;
            match reserve_in(word, hash.home()) {
                Reserved::Slot(slot) => {
                    let first = passed.iter().position(|way| way.group(self.groups) == group);
                    for way in passed.drain(first.unwrap_or(passed.len())..) {
                        self.pass_no_more(way)?;
                    }
                    return Ok(Some(group.saturating_mul(GROUP).saturating_add(slot)));
                }
                Reserved::Passed => passed.push(way),
                Reserved::Refused => break,
            }
        }
        for way in passed {
            self.pass_no_more(way)?;
        }
        Ok(None)
    }

    fn take_out(&self, key: &FlowKey, hash: Hash, at: u32) -> io::Result<bool> {
        let slot = at % GROUP;
        if self.key_at(at)? != *key {
            return Ok(false);
        }
        // In this process's hands first: only then nobody can put another entry there whose fingerprint is the same.
        let reserve =
            |seen| (byte_of(seen, slot) == hash.fingerprint()).then(|| with_byte(seen, slot, RESERVED));
        if self.word(at / GROUP)?.fetch_update(Ordering::SeqCst, Ordering::SeqCst, reserve).is_err() {
            return Ok(false);
        }
        let is_its = self.key_at(at).map(|found| found == *key);
        if !matches!(is_its, Ok(true)) {
            self.replace(at, RESERVED, hash.fingerprint())?;
            return is_its;
        }
        self.replace(at, RESERVED, FREE)?;
        self.step_back(hash, at / GROUP)?;
        Ok(true)
    }

    /// Takes one off the count of each group before this one.
    fn step_back(&self, hash: Hash, end: u32) -> io::Result<()> {
        for way in ways(hash).take_while(|way| way.group(self.groups) != end) {
            self.pass_no_more(way)?;
        }
        Ok(())
    }

    /// Takes one off the count of a group, unless somebody has wiped it.
    fn pass_no_more(&self, way: Way) -> io::Result<()> {
        let less = |word| is_passed(word).then(|| word.wrapping_sub(ONE_PAST));
        let _ = self.word(way.group(self.groups))?.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
        Ok(())
    }

    /// Reads the entries of a batch of groups: slot, key and session.
    fn read(&self, group: u32, mut each: impl FnMut(u32, FlowKey, &[u8])) -> io::Result<()> {
        let count = self.groups.saturating_sub(group).min(BATCH * LINE);
        let slots = self.slot.reach(group.saturating_mul(GROUP), count.saturating_mul(GROUP))?;
        let mut value = vec![0; self.slot.size];
        for number in 0..count {
            let word = self.word(group.saturating_add(number))?;
            let seen = word.load(Ordering::Acquire);
            for slot in 0..GROUP {
                let byte = byte_of(seen, slot);
                if byte == FREE || byte == RESERVED {
                    continue;
                }
                let at = number.saturating_mul(GROUP).saturating_add(slot);
                let offset = index(at).saturating_mul(self.slot.stride);
                slots.read(offset, &mut value)?;
                fence(Ordering::Acquire);
                // Who fills the slot takes the key away before, and writes the new one last.
                let mut key = [0; size_of::<FlowKey>()];
                slots.read(offset, &mut key)?;
                let is_still_there = byte_of(word.load(Ordering::Acquire), slot) == byte;
                if let Some(session) = value.strip_prefix(&key[..])
                    && is_still_there
                {
                    let first = group.saturating_mul(GROUP);
                    each(first.saturating_add(at), bytemuck::pod_read_unaligned(&key), session);
                }
            }
        }
        Ok(())
    }
}

/// The entries of a [`FlowTable`], a batch at a time.
#[derive(Debug)]
pub struct Batches<'a> {
    table: &'a FlowTable,
    group: u32,
}

impl Iterator for Batches<'_> {
    type Item = io::Result<Vec<(FlowKey, Session)>>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.group < self.table.groups {
            let mut batch = Vec::new();
            let each = |_, key: FlowKey, session: &[u8]| {
                batch.extend(own(session).map(|session| (key, session)));
            };
            if let Err(error) = self.table.read(self.group, each) {
                self.group = self.table.groups;
                return Some(Err(error));
            }
            self.group = self.group.saturating_add(BATCH * LINE);
            if !batch.is_empty() {
                return Some(Ok(batch));
            }
        }
        None
    }
}

/// The session of this version's layout; none of another one's length.
fn own(session: &[u8]) -> Option<Session> {
    bytemuck::try_pod_read_unaligned(session).ok()
}

impl Values {
    fn of((fd, shape): (OwnedFd, MapShape)) -> io::Result<Self> {
        let size = usize::try_from(shape.value_size).map_err(io::Error::other)?;
        Ok(Self { fd, size, stride: size.next_multiple_of(8), whole: None })
    }

    fn reach(&self, first: u32, count: u32) -> io::Result<Reach<'_>> {
        let offset = index(first).saturating_mul(self.stride);
        if let Some(whole) = &self.whole {
            return Ok(Reach::Whole(whole, offset));
        }
        let length = index(count).saturating_mul(self.stride);
        Window::open(self.fd.as_fd(), offset, length).map(Reach::Part)
    }

    /// Copies one value.
    fn copy(&self, number: u32, bytes: &mut [u8]) -> io::Result<()> {
        match &self.whole {
            Some(whole) => whole.read(index(number).saturating_mul(self.stride), bytes),
            None => rawbpf::lookup_bytes(self.fd.as_fd(), number, self.size, bytes),
        }
    }
}

impl Reach<'_> {
    fn read(&self, offset: usize, bytes: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Part(window) => window.read(offset, bytes),
            Self::Whole(window, start) => window.read(start.saturating_add(offset), bytes),
        }
    }

    fn write(&self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Part(window) => window.write(offset, bytes),
            Self::Whole(window, start) => window.write(start.saturating_add(offset), bytes),
        }
    }
}

/// Writes an entry as the programs do: the former key goes first, the new one comes last.
fn fill(slot: &Reach<'_>, value: &[u8]) -> io::Result<()> {
    let (key, session) = value.split_at_checked(size_of::<FlowKey>()).ok_or(io::ErrorKind::InvalidInput)?;
    slot.write(0, bytemuck::bytes_of(&NO_KEY))?;
    fence(Ordering::SeqCst);
    slot.write(size_of::<FlowKey>(), session)?;
    fence(Ordering::SeqCst);
    slot.write(0, key)
}

fn reserve_in(word: &AtomicU64, home: u32) -> Reserved {
    let mut seen = word.load(Ordering::SeqCst);
    loop {
        let Some(slot) = vacancy(seen, home) else {
            if !may_pass(seen) {
                return Reserved::Refused;
            }
            word.fetch_add(ONE_PAST, Ordering::SeqCst);
            return Reserved::Passed;
        };
        let reserved = with_byte(seen, slot, RESERVED);
        match word.compare_exchange(seen, reserved, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => return Reserved::Slot(slot),
            Err(now) => seen = now,
        }
    }
}

/// The groups that a key may be in.
fn ways(hash: Hash) -> impl Iterator<Item = Way> {
    std::iter::successors(Some(hash.way()), |way| Some(way.next())).take(index(PROBES))
}

/// Widens to an offset.
fn index(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
