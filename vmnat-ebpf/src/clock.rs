//! The kernel's clocks, for user space: `CONFIG_HZ` is not to be had otherwise without trust in files.

use aya_ebpf::{helpers::generated::bpf_ktime_get_ns, programs::TcContext};

use crate::settings;

/// Offset of the jiffies in the frame.
const JIFFIES: usize = 16;

/// Offset of the monotonic nanoseconds.
const KTIME: usize = 24;

/// Writes jiffies and monotonic nanoseconds into the frame; returns 1 when the frame had room, 0 else.
#[inline(always)]
pub fn tell(ctx: &TcContext) -> i32 {
    // SAFETY: the helper takes nothing.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let written = ctx.store(JIFFIES, &settings::jiffies(), 0).and_then(|()| ctx.store(KTIME, &now_ns, 0));
    i32::from(written.is_ok())
}
