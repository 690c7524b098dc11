//! The reaper's letter: the keys that user space nominates for removal, as bytes of a `BPF_PROG_TEST_RUN` frame.
//!
//! The frame begins with an Ethernet header of zeros (the kernel wants one), in whose last two bytes stand the
//! mode and the number of keys; then the keys follow. The answer is the same frame with a [`Verdict`] in each
//! key's `reserved` field; the return value is the number of flows (or mappings) removed.

/// Most keys a frame carries.
pub const BATCH: usize = 64;

/// Bytes before the first key.
pub const HEADER: usize = 16;

/// Offset of the mode byte.
pub const MODE_OFFSET: usize = 14;

/// Offset of the count byte.
pub const COUNT_OFFSET: usize = 15;

/// What the reaper is asked.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Remove the flows among these keys that have outlived their timeout (keys are guest-side flow keys), and
    /// uplink-side keys that have no guest-side half.
    Expire = 0,
    /// Remove these flows whatever their age.
    Remove = 1,
    /// Remove these mappings, where they hold no flow and have rested; keys are [`crate::mapping::MappingKey`]s
    /// of internal ends, each in the first bytes of its slot.
    Mapping = 2,
}

impl Mode {
    /// The mode of a byte.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Expire),
            1 => Some(Self::Remove),
            2 => Some(Self::Mapping),
            _ => None,
        }
    }
}

/// What became of a key; stored in [`crate::flow::FlowKey::reserved`].
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was removed.
    Removed = 1,
    /// It is alive.
    Kept = 2,
    /// There was no such key.
    Absent = 3,
}
