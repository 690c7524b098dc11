//! The programs of the bench, a handful of instructions each.

/// An instruction as it lies in memory of a little-endian machine (`struct bpf_insn` of `linux/bpf.h`).
pub type Instruction = u64;

const _: () = assert!(cfg!(target_endian = "little"), "instructions are written for little-endian machines");

/// Bytes that the generator writes: Ethernet, IPv4, UDP and the payload's first six.
const HEADER: usize = 48;
const WORDS: usize = HEADER / 8;

const LOAD_WORD: u8 = 0x61;
const LOAD_IMMEDIATE: u8 = 0x18;
const STORE: u8 = 0x7b;
const STORE_IMMEDIATE: u8 = 0x7a;
const STORE_IMMEDIATE_WORD: u8 = 0x62;
const MOVE: u8 = 0xbf;
const MOVE_IMMEDIATE: u8 = 0xb7;
const ADD_IMMEDIATE: u8 = 0x07;
const JUMP_IF_GREATER: u8 = 0x2d;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

const XDP_PASS: u32 = 2;
const TC_ACT_SHOT: u32 = 2;
const BPF_FUNC_REDIRECT: u32 = 23;
const BPF_FUNC_REDIRECT_NEIGH: u32 = 152;
const AF_INET: u32 = 2;

/// The frame pointer, r10.
const FRAME: u8 = 10;

/// XDP: writes the frame's header and passes it on. Frames are recycled with whatever became of them on their road,
/// so every one is written anew.
pub fn generator(frame: &[u8]) -> Vec<Instruction> {
    let (words, _) = frame.as_chunks::<8>();
    let skip = 3 * WORDS as u16;
    let mut program = vec![
        // r2 and r3: begin and end of the frame, the first two fields of `struct xdp_md`.
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(LOAD_WORD, 3, 1, 4, 0),
        instruction(MOVE, 4, 2, 0, 0),
        instruction(ADD_IMMEDIATE, 4, 0, 0, HEADER as u32),
        instruction(JUMP_IF_GREATER, 4, 3, skip, 0),
    ];
    for (word, offset) in words.iter().take(WORDS).zip((0..).step_by(8)) {
        let [low, high] = halves(u64::from_le_bytes(*word));
        program.push(instruction(LOAD_IMMEDIATE, 5, 0, 0, low));
        program.push(instruction(0, 0, 0, 0, high));
        program.push(instruction(STORE, 2, 5, offset, 0));
    }
    program.extend(answer(XDP_PASS));
    program
}

/// Classifier: drops everything.
pub fn sink() -> Vec<Instruction> {
    answer(TC_ACT_SHOT).to_vec()
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
