//! Raw `bpf(2)`: load a few instructions, put them at an interface's ingress, send live frames.

use std::{
    io, mem,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_map_type, bpf_prog_info, bpf_prog_type};
use vmnat_user::rawbpf;

use crate::program::Instruction;

/// `BPF_F_TEST_XDP_LIVE_FRAMES` of `linux/bpf.h`.
const LIVE_FRAMES: u32 = 1 << 1;

/// Frames that enter the kernel together, as many as a driver's poll takes (`NAPI_POLL_WEIGHT`).
const BATCH: u32 = 64;

/// `struct xdp_md` of `linux/bpf.h`, which `aya_obj` leaves out: where a run's frame is, and whence it comes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct XdpContext {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

/// What a program is run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Frames before the kernel has made packets of them.
    Xdp,
    /// Packets at an interface's ingress.
    Classifier,
}

/// Loads a program.
pub fn load(kind: Kind, instructions: &[Instruction]) -> Result<OwnedFd> {
    let program_type = match kind {
        Kind::Xdp => bpf_prog_type::BPF_PROG_TYPE_XDP,
        Kind::Classifier => bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS,
    };
    let license = c"Dual MIT/GPL";
    let mut attr = empty_attr();
    attr.__bindgen_anon_3.prog_type = program_type as u32;
    attr.__bindgen_anon_3.insn_cnt = u32::try_from(instructions.len())?;
    attr.__bindgen_anon_3.insns = instructions.as_ptr() as u64;
    attr.__bindgen_anon_3.license = license.as_ptr() as u64;
    // SAFETY: the instructions are as many as stated, the licence is terminated, and both live through the call.
    unsafe { open(bpf_cmd::BPF_PROG_LOAD, &mut attr) }.with_context(|| format!("loading a {kind:?} program"))
}

/// A map of one number, for a program to count in.
pub fn counter() -> Result<OwnedFd> {
    let mut attr = empty_attr();
    attr.__bindgen_anon_1.map_type = bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
    attr.__bindgen_anon_1.key_size = u32::try_from(size_of::<u32>())?;
    attr.__bindgen_anon_1.value_size = u32::try_from(size_of::<u64>())?;
    attr.__bindgen_anon_1.max_entries = 1;
    // SAFETY: the attribute holds no pointer.
    unsafe { open(bpf_cmd::BPF_MAP_CREATE, &mut attr) }.context("making a map")
}

/// An array of one program, for a tail call to it.
pub fn tail_call(program: BorrowedFd<'_>) -> Result<OwnedFd> {
    let mut attr = empty_attr();
    attr.__bindgen_anon_1.map_type = bpf_map_type::BPF_MAP_TYPE_PROG_ARRAY as u32;
    attr.__bindgen_anon_1.key_size = u32::try_from(size_of::<u32>())?;
    attr.__bindgen_anon_1.value_size = u32::try_from(size_of::<u32>())?;
    attr.__bindgen_anon_1.max_entries = 1;
    // SAFETY: the attribute holds no pointer.
    let map = unsafe { open(bpf_cmd::BPF_MAP_CREATE, &mut attr) }.context("making an array of programs")?;
    rawbpf::update(map.as_fd(), &0_u32, &descriptor(program), rawbpf::ANY)
        .context("filling an array of programs")?;
    Ok(map)
}

/// How large a program is.
#[derive(Clone, Copy, Debug)]
pub struct ProgramInfo {
    /// Instructions that the verifier walked.
    pub verified: u32,
    /// Instructions as the kernel translated them.
    pub translated: u32,
    /// Bytes of machine code.
    pub jited_bytes: u32,
}

/// Asks the kernel how large a program is.
pub fn program_info(program: BorrowedFd<'_>) -> Result<ProgramInfo> {
    // SAFETY: a plain C structure, for which zero (no buffers) is a value.
    let mut info: bpf_prog_info = unsafe { mem::zeroed() };
    let mut attr = empty_attr();
    attr.info.bpf_fd = descriptor(program);
    attr.info.info_len = u32::try_from(size_of::<bpf_prog_info>())?;
    attr.info.info = (&raw mut info) as u64;
    // SAFETY: the structure is live and as large as stated.
    unsafe { call(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr) }.context("asking what a program is like")?;
    Ok(ProgramInfo {
        verified: info.verified_insns,
        translated: info.xlated_prog_len / 8,
        jited_bytes: info.jited_prog_len,
    })
}

/// Runs a classifier again and again on one packet, as if it had come in by the interface; nanoseconds of a run.
pub fn run(program: BorrowedFd<'_>, ifindex: u32, frame: &[u8], repeat: u32) -> Result<u32> {
    // `struct __sk_buff` of `linux/bpf.h`, which `ifindex` is a part of.
    const IFINDEX: usize = 40;
    let mut context = [0_u8; 192];
    context[IFINDEX..IFINDEX + 4].copy_from_slice(&ifindex.to_ne_bytes());
    let mut attr = empty_attr();
    attr.test.prog_fd = descriptor(program);
    attr.test.data_in = frame.as_ptr() as u64;
    attr.test.data_size_in = u32::try_from(frame.len())?;
    attr.test.ctx_in = context.as_ptr() as u64;
    attr.test.ctx_size_in = u32::try_from(context.len())?;
    attr.test.repeat = repeat;
    // SAFETY: frame and context are live and as large as stated.
    unsafe { call(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr) }.context("running a program")?;
    // SAFETY: the kernel has written the duration, an integer.
    Ok(unsafe { attr.test.duration })
}

/// Puts a classifier at an interface's ingress, of the caller's network namespace, for as long as the link lives.
pub fn attach_ingress(program: BorrowedFd<'_>, ifindex: u32) -> Result<OwnedFd> {
    let mut attr = empty_attr();
    attr.link_create.__bindgen_anon_1.prog_fd = descriptor(program);
    attr.link_create.__bindgen_anon_2.target_ifindex = ifindex;
    attr.link_create.attach_type = bpf_attach_type::BPF_TCX_INGRESS as u32;
    // SAFETY: the attribute holds no pointer.
    unsafe { open(bpf_cmd::BPF_LINK_CREATE, &mut attr) }.context("attaching by tcx, which needs Linux 6.6")
}

/// Puts an XDP program at an interface of the caller's network namespace, in its driver, for as long as the link lives. The kernel then
/// calls it directly, and has nothing to patch and to wait for when live frames are sent through it.
pub fn attach_driver(program: BorrowedFd<'_>, ifindex: u32) -> Result<OwnedFd> {
    /// `XDP_FLAGS_DRV_MODE` of `linux/if_link.h`.
    const DRIVER: u32 = 1 << 2;
    let mut attr = empty_attr();
    attr.link_create.__bindgen_anon_1.prog_fd = descriptor(program);
    attr.link_create.__bindgen_anon_2.target_ifindex = ifindex;
    attr.link_create.attach_type = bpf_attach_type::BPF_XDP as u32;
    attr.link_create.flags = DRIVER;
    // SAFETY: the attribute holds no pointer.
    unsafe { open(bpf_cmd::BPF_LINK_CREATE, &mut attr) }.context("attaching an XDP program to a driver")
}

/// Sends `packets` frames through an XDP program into the receive path of an interface of the caller's network
/// namespace; returns the nanoseconds that each took until all its work was done.
pub fn send_live(program: BorrowedFd<'_>, ifindex: u32, frame: &[u8], packets: u32) -> Result<u32> {
    let length = u32::try_from(frame.len())?;
    let context = XdpContext { data_end: length, ingress_ifindex: ifindex, ..XdpContext::default() };
    let mut attr = empty_attr();
    attr.test.prog_fd = descriptor(program);
    attr.test.data_in = frame.as_ptr() as u64;
    attr.test.data_size_in = length;
    attr.test.ctx_in = (&raw const context) as u64;
    attr.test.ctx_size_in = u32::try_from(size_of::<XdpContext>())?;
    attr.test.repeat = packets;
    attr.test.flags = LIVE_FRAMES;
    attr.test.batch_size = BATCH;
    // SAFETY: frame and context are live and as large as stated.
    unsafe { call(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr) }.context("sending live frames")?;
    // SAFETY: the kernel has written the duration, an integer.
    Ok(unsafe { attr.test.duration })
}

fn empty_attr() -> bpf_attr {
    // SAFETY: a union of plain C structures, for which zero is a value; the kernel wants unused bytes to be zero.
    unsafe { mem::zeroed() }
}

fn descriptor(fd: BorrowedFd<'_>) -> u32 {
    fd.as_fd().as_raw_fd().cast_unsigned()
}

/// # Safety
/// As [`call`], and the command must return a descriptor.
unsafe fn open(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    // SAFETY: the caller's.
    let fd = unsafe { call(command, attr) }?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// # Safety
/// Every pointer that `command` reads from `attr` must be to live memory of the size that `attr` states.
unsafe fn call(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: the attribute is live and as large as stated; what it points to is the caller's contract.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
