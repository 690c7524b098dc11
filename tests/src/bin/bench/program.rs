//! The programs of the bench, a handful of instructions each.

pub mod spread;

use std::os::fd::{AsRawFd as _, BorrowedFd};

/// An instruction as it lies in memory of a little-endian machine (`struct bpf_insn` of `linux/bpf.h`).
pub type Instruction = u64;

const _: () = assert!(cfg!(target_endian = "little"), "instructions are written for little-endian machines");

/// Bytes that the generator writes: Ethernet, IPv4, UDP and the payload's first six.
const HEADER: usize = 48;
const WORDS: usize = HEADER / 8;

/// Where in the frame the IPv4 header's checksum, the source address and the UDP source port are.
const CHECKSUM: u16 = 24;
const SOURCE: u16 = 26;
const SOURCE_PORT: u16 = 34;

const LOAD_WORD: u8 = 0x61;
const LOAD: u8 = 0x79;
const LOAD_IMMEDIATE: u8 = 0x18;
const STORE: u8 = 0x7b;
const STORE_WORD: u8 = 0x63;
const STORE_HALF: u8 = 0x6b;
const STORE_IMMEDIATE: u8 = 0x7a;
const STORE_IMMEDIATE_WORD: u8 = 0x62;
const MOVE: u8 = 0xbf;
const MOVE_IMMEDIATE: u8 = 0xb7;
const ADD: u8 = 0x0f;
const ADD_IMMEDIATE: u8 = 0x07;
const OR_IMMEDIATE: u8 = 0x47;
const AND_IMMEDIATE: u8 = 0x57;
const SHIFT_RIGHT_IMMEDIATE: u8 = 0x77;
const MULTIPLY_IMMEDIATE: u8 = 0x27;
const TO_BIG_ENDIAN: u8 = 0xdc;
const XOR_IMMEDIATE: u8 = 0xa7;
const JUMP_IF_GREATER: u8 = 0x2d;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

const XDP_PASS: u32 = 2;
const TC_ACT_SHOT: u32 = 2;
const BPF_PSEUDO_MAP_FD: u8 = 1;
const BPF_PSEUDO_MAP_VALUE: u8 = 2;
const BPF_FUNC_TAIL_CALL: u32 = 12;
const BPF_FUNC_GET_PRANDOM_U32: u32 = 7;
const BPF_FUNC_REDIRECT: u32 = 23;
const BPF_FUNC_REDIRECT_NEIGH: u32 = 152;
const AF_INET: u32 = 2;

/// The frame pointer, r10.
const FRAME: u8 = 10;

/// XDP: writes the frame's header and passes it on. Frames are recycled with whatever became of them on their road,
/// so every one is written anew.
pub fn generator(frame: &[u8]) -> Vec<Instruction> {
    guarded(header(frame))
}

/// XDP: the same with another source for every frame, from 10.0.0.0/8 and by a port from 1024 on, in 39 random bits.
///
/// The frame's own source must be 10.0.0.0, port 0, and its UDP checksum absent.
pub fn stranger_generator(frame: &[u8]) -> Vec<Instruction> {
    // The helper leaves r6 to r9 alone: r8 keeps the context, r6 and r7 the random bits.
    let mut program = vec![
        instruction(MOVE, 8, 1, 0, 0),
        instruction(CALL, 0, 0, 0, BPF_FUNC_GET_PRANDOM_U32),
        instruction(MOVE, 6, 0, 0, 0),
        instruction(CALL, 0, 0, 0, BPF_FUNC_GET_PRANDOM_U32),
        instruction(MOVE, 7, 0, 0, 0),
        instruction(MOVE, 1, 8, 0, 0),
    ];
    let mut body = header(frame);
    body.extend([
        // As they lie in memory: the address's first byte stays 10, the port's first byte is at least 4.
        instruction(AND_IMMEDIATE, 6, 0, 0, 0xffff_ff00),
        instruction(OR_IMMEDIATE, 6, 0, 0, 10),
        instruction(STORE_WORD, 2, 6, SOURCE, 0),
        instruction(OR_IMMEDIATE, 7, 0, 0, 4),
        instruction(STORE_HALF, 2, 7, SOURCE_PORT, 0),
    ]);
    body.extend(checksum_with(sum_without_source(frame)));
    program.extend(guarded(body));
    program
}

/// Writes the IPv4 header's checksum, where `sum` is of all but the source, which is in r6 (RFC 1071: any byte order).
fn checksum_with(sum: u32) -> Vec<Instruction> {
    let fold = [
        instruction(MOVE, 5, 4, 0, 0),
        instruction(SHIFT_RIGHT_IMMEDIATE, 5, 0, 0, 16),
        instruction(AND_IMMEDIATE, 4, 0, 0, 0xffff),
        instruction(ADD, 4, 5, 0, 0),
    ];
    let mut program = vec![
        instruction(MOVE, 4, 6, 0, 0),
        instruction(AND_IMMEDIATE, 4, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT_IMMEDIATE, 6, 0, 0, 16),
        instruction(ADD, 4, 6, 0, 0),
        instruction(ADD_IMMEDIATE, 4, 0, 0, sum),
    ];
    program.extend([fold, fold].concat());
    program.push(instruction(XOR_IMMEDIATE, 4, 0, 0, 0xffff));
    program.push(instruction(STORE_HALF, 2, 4, CHECKSUM, 0));
    program
}

/// The sum of the IPv4 header's halves as they lie in memory, but for its checksum and source.
fn sum_without_source(frame: &[u8]) -> u32 {
    let (checksum, source) = (usize::from(CHECKSUM), usize::from(SOURCE));
    let halves = (14..34).step_by(2).filter(|at| ![checksum, source, source + 2].contains(at));
    let half = |at: usize| frame.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default();
    halves.map(|at| u32::from(u16::from_le_bytes(half(at)))).sum()
}

/// What writes the frame's header, to where r2 points.
fn header(frame: &[u8]) -> Vec<Instruction> {
    let (words, _) = frame.as_chunks::<8>();
    let mut program = Vec::new();
    for (word, offset) in words.iter().take(WORDS).zip((0..).step_by(8)) {
        let [low, high] = halves(u64::from_le_bytes(*word));
        program.push(instruction(LOAD_IMMEDIATE, 5, 0, 0, low));
        program.push(instruction(0, 0, 0, 0, high));
        program.push(instruction(STORE, 2, 5, offset, 0));
    }
    program
}

/// Runs `body`, with r2 pointing to the frame, if the frame is long enough; passes it on.
fn guarded(body: Vec<Instruction>) -> Vec<Instruction> {
    let mut program = vec![
        // r2 and r3: begin and end of the frame, the first two fields of `struct xdp_md`.
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(LOAD_WORD, 3, 1, 4, 0),
        instruction(MOVE, 4, 2, 0, 0),
        instruction(ADD_IMMEDIATE, 4, 0, 0, HEADER as u32),
        instruction(JUMP_IF_GREATER, 4, 3, body.len() as u16, 0),
    ];
    program.extend(body);
    program.extend(answer(XDP_PASS));
    program
}

/// Classifier: writes the frame's header and goes on to the one program of an array of programs.
pub fn rewriter(frame: &[u8], programs: BorrowedFd<'_>) -> Vec<Instruction> {
    let body = header(frame);
    let mut program = vec![
        instruction(MOVE, 6, 1, 0, 0),
        // r2 and r3: begin and end of the packet, of `struct __sk_buff`.
        instruction(LOAD_WORD, 2, 1, 76, 0),
        instruction(LOAD_WORD, 3, 1, 80, 0),
        instruction(MOVE, 4, 2, 0, 0),
        instruction(ADD_IMMEDIATE, 4, 0, 0, HEADER as u32),
        instruction(JUMP_IF_GREATER, 4, 3, body.len() as u16, 0),
    ];
    program.extend(body);
    program.extend([
        instruction(MOVE, 1, 6, 0, 0),
        instruction(LOAD_IMMEDIATE, 2, BPF_PSEUDO_MAP_FD, 0, programs.as_raw_fd().cast_unsigned()),
        instruction(0, 0, 0, 0, 0),
        instruction(MOVE_IMMEDIATE, 3, 0, 0, 0),
        instruction(CALL, 0, 0, 0, BPF_FUNC_TAIL_CALL),
    ]);
    program.extend(answer(TC_ACT_SHOT));
    program
}

/// Classifier: drops everything.
pub fn sink() -> Vec<Instruction> {
    answer(TC_ACT_SHOT).to_vec()
}

/// Classifier: drops everything, and counts it in a map of one number. One CPU at a time, so nothing is locked.
pub fn counting_sink(counter: BorrowedFd<'_>) -> Vec<Instruction> {
    let mut program = vec![
        instruction(LOAD_IMMEDIATE, 1, BPF_PSEUDO_MAP_VALUE, 0, counter.as_raw_fd().cast_unsigned()),
        instruction(0, 0, 0, 0, 0),
        instruction(LOAD, 2, 1, 0, 0),
        instruction(ADD_IMMEDIATE, 2, 0, 0, 1),
        instruction(STORE, 1, 2, 0, 0),
    ];
    program.extend(answer(TC_ACT_SHOT));
    program
}

/// Classifier: sends everything out by another interface, as it is.
pub fn redirect(ifindex: u32) -> Vec<Instruction> {
    vec![
        instruction(MOVE_IMMEDIATE, 1, 0, 0, ifindex),
        instruction(MOVE_IMMEDIATE, 2, 0, 0, 0),
        instruction(CALL, 0, 0, 0, BPF_FUNC_REDIRECT),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}

/// Classifier: sends everything out by another interface to a neighbour, whose MAC the kernel writes.
pub fn redirect_to_neighbour(ifindex: u32, neighbour: [u8; 4]) -> Vec<Instruction> {
    // `struct bpf_redir_neigh` of `linux/bpf.h`, 20 bytes below the frame pointer: family, address, zeros.
    const AT: i16 = -24;
    const SIZE: u32 = 20;
    vec![
        instruction(STORE_IMMEDIATE_WORD, FRAME, 0, AT.cast_unsigned(), AF_INET),
        instruction(STORE_IMMEDIATE_WORD, FRAME, 0, (AT + 4).cast_unsigned(), u32::from_le_bytes(neighbour)),
        instruction(STORE_IMMEDIATE, FRAME, 0, (AT + 8).cast_unsigned(), 0),
        instruction(STORE_IMMEDIATE, FRAME, 0, (AT + 16).cast_unsigned(), 0),
        instruction(MOVE_IMMEDIATE, 1, 0, 0, ifindex),
        instruction(MOVE, 2, FRAME, 0, 0),
        instruction(ADD_IMMEDIATE, 2, 0, 0, i32::from(AT).cast_unsigned()),
        instruction(MOVE_IMMEDIATE, 3, 0, 0, SIZE),
        instruction(MOVE_IMMEDIATE, 4, 0, 0, 0),
        instruction(CALL, 0, 0, 0, BPF_FUNC_REDIRECT_NEIGH),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}

fn halves(word: u64) -> [u32; 2] {
    [word as u32, (word >> 32) as u32]
}

fn answer(code: u32) -> [Instruction; 2] {
    [instruction(MOVE_IMMEDIATE, 0, 0, 0, code), instruction(EXIT, 0, 0, 0, 0)]
}

fn instruction(code: u8, destination: u8, source: u8, offset: u16, immediate: u32) -> Instruction {
    let [o0, o1] = offset.to_le_bytes();
    let [i0, i1, i2, i3] = immediate.to_le_bytes();
    u64::from_le_bytes([code, source << 4 | destination, o0, o1, i0, i1, i2, i3])
}
