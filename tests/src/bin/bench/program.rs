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
const MOVE: u8 = 0xbf;
const MOVE_IMMEDIATE: u8 = 0xb7;
const ADD_IMMEDIATE: u8 = 0x07;
const JUMP_IF_GREATER: u8 = 0x2d;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

const XDP_PASS: u32 = 2;
const TC_ACT_SHOT: u32 = 2;
const BPF_FUNC_REDIRECT: u32 = 23;

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
        let [a, b, c, d, e, f, g, h] = *word;
        program.push(instruction(LOAD_IMMEDIATE, 5, 0, 0, u32::from_le_bytes([a, b, c, d])));
        program.push(instruction(0, 0, 0, 0, u32::from_le_bytes([e, f, g, h])));
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

fn answer(code: u32) -> [Instruction; 2] {
    [instruction(MOVE_IMMEDIATE, 0, 0, 0, code), instruction(EXIT, 0, 0, 0, 0)]
}

fn instruction(code: u8, destination: u8, source: u8, offset: u16, immediate: u32) -> Instruction {
    let [o0, o1] = offset.to_le_bytes();
    let [i0, i1, i2, i3] = immediate.to_le_bytes();
    u64::from_le_bytes([code, source << 4 | destination, o0, o1, i0, i1, i2, i3])
}
