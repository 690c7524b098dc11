//! XDP: frames of many flows. A flow's number becomes the guest's port and the remote's address, with every checksum
//! right.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use super::{
    ADD, ADD_IMMEDIATE, AND_IMMEDIATE, BPF_FUNC_GET_PRANDOM_U32, BPF_PSEUDO_MAP_VALUE, CALL, Instruction,
    LOAD, LOAD_IMMEDIATE, MOVE, MULTIPLY_IMMEDIATE, SHIFT_RIGHT_IMMEDIATE, STORE, STORE_HALF, STORE_WORD,
    TO_BIG_ENDIAN, XOR_IMMEDIATE, guarded, header, instruction,
};

/// Where the IPv4 header's checksum and addresses are, and the ports and the checksum of UDP.
const IP_CHECKSUM: usize = 24;
const IP_SOURCE: usize = 26;
const IP_DESTINATION: usize = 30;
const SOURCE_PORT: usize = 34;
const DESTINATION_PORT: usize = 36;
const UDP_CHECKSUM: usize = 40;

/// How flows are numbered: `ports` of the guest (a power of two), each towards as many remotes as it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbering {
    /// The guest's first port.
    pub first_port: u16,
    /// How many ports take turns, as a power of two.
    pub port_bits: u8,
    /// The first remote's address.
    pub first_remote: [u8; 4],
}

impl Numbering {
    /// The flow with this port of the guest and this remote.
    pub fn flow(self, port: u16, remote: [u8; 4]) -> Option<u32> {
        let port = u32::from(port).checked_sub(u32::from(self.first_port))?;
        let remote = u32::from_be_bytes(remote).checked_sub(u32::from_be_bytes(self.first_remote))?;
        (port <= self.port_mask()).then(|| (remote << self.port_bits) + port)
    }

    const fn port_mask(self) -> u32 {
        (1 << self.port_bits) - 1
    }
}

/// Which flow the next frame is of.
#[derive(Clone, Copy, Debug)]
pub enum Order<'a> {
    /// One after the other, counted in a map of one number.
    Ascending(BorrowedFd<'a>),
    /// Any of the first so many.
    Random(u32),
}

/// Where in the frame the flow is written.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    remote: usize,
    port: usize,
}

impl Place {
    /// Of what a guest sends.
    pub const OUTBOUND: Self = Self { remote: IP_DESTINATION, port: SOURCE_PORT };
    /// Of what the world sends.
    pub const INBOUND: Self = Self { remote: IP_SOURCE, port: DESTINATION_PORT };
}

/// The generator. What `frame` has in the place and in its checksums does not matter.
pub fn generator(frame: &[u8], place: Place, numbering: Numbering, order: Order<'_>) -> Vec<Instruction> {
    let mut program = vec![instruction(MOVE, 8, 1, 0, 0)];
    program.extend(choose(order));
    program.push(instruction(MOVE, 1, 8, 0, 0));
    let mut body = header(frame);
    // r6 is the flow; r4 becomes the port, r5 the remote, as they lie in memory.
    body.extend([
        instruction(MOVE, 7, 6, 0, 0),
        instruction(AND_IMMEDIATE, 7, 0, 0, numbering.port_mask()),
        instruction(ADD_IMMEDIATE, 7, 0, 0, u32::from(numbering.first_port)),
        instruction(TO_BIG_ENDIAN, 7, 0, 0, 16),
        instruction(STORE_HALF, 2, 7, place.port as u16, 0),
        instruction(SHIFT_RIGHT_IMMEDIATE, 6, 0, 0, u32::from(numbering.port_bits)),
        instruction(ADD_IMMEDIATE, 6, 0, 0, u32::from_be_bytes(numbering.first_remote)),
        instruction(TO_BIG_ENDIAN, 6, 0, 0, 32),
        instruction(STORE_WORD, 2, 6, place.remote as u16, 0),
        // r6: the sum of the remote's halves.
        instruction(MOVE, 4, 6, 0, 0),
        instruction(AND_IMMEDIATE, 6, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT_IMMEDIATE, 4, 0, 0, 16),
        instruction(ADD, 6, 4, 0, 0),
        instruction(MOVE, 4, 6, 0, 0),
    ]);
    body.extend(checksum(ip_sum(frame, place), IP_CHECKSUM));
    body.extend([instruction(MOVE, 4, 6, 0, 0), instruction(ADD, 4, 7, 0, 0)]);
    body.extend(checksum(udp_sum(frame, place), UDP_CHECKSUM));
    program.extend(guarded(body));
    program
}

/// Leaves the number of a flow in r6.
fn choose(order: Order<'_>) -> Vec<Instruction> {
    match order {
        Order::Ascending(counter) => vec![
            instruction(LOAD_IMMEDIATE, 1, BPF_PSEUDO_MAP_VALUE, 0, counter.as_raw_fd().cast_unsigned()),
            instruction(0, 0, 0, 0, 0),
            instruction(LOAD, 6, 1, 0, 0),
            instruction(MOVE, 2, 6, 0, 0),
            instruction(ADD_IMMEDIATE, 2, 0, 0, 1),
            instruction(STORE, 1, 2, 0, 0),
        ],
        // The upper half of the product of 32 random bits and the number of flows.
        Order::Random(flows) => vec![
            instruction(CALL, 0, 0, 0, BPF_FUNC_GET_PRANDOM_U32),
            instruction(MOVE, 6, 0, 0, 0),
            instruction(MULTIPLY_IMMEDIATE, 6, 0, 0, flows),
            instruction(SHIFT_RIGHT_IMMEDIATE, 6, 0, 0, 32),
        ],
    }
}

/// Adds `sum` to r4, folds it, and stores its complement (RFC 1071: any byte order).
fn checksum(sum: u32, at: usize) -> Vec<Instruction> {
    let fold = [
        instruction(MOVE, 5, 4, 0, 0),
        instruction(SHIFT_RIGHT_IMMEDIATE, 5, 0, 0, 16),
        instruction(AND_IMMEDIATE, 4, 0, 0, 0xffff),
        instruction(ADD, 4, 5, 0, 0),
    ];
    let mut program = vec![instruction(ADD_IMMEDIATE, 4, 0, 0, sum)];
    program.extend([fold, fold].concat());
    program.push(instruction(XOR_IMMEDIATE, 4, 0, 0, 0xffff));
    program.push(instruction(STORE_HALF, 2, 4, at as u16, 0));
    program
}

/// The sum of the IPv4 header's halves as they lie in memory, but for its checksum and what is written.
fn ip_sum(frame: &[u8], place: Place) -> u32 {
    sum(frame, 14..34, &[IP_CHECKSUM, place.remote, place.remote + 2])
}

/// The same of what the UDP checksum is about.
fn udp_sum(frame: &[u8], place: Place) -> u32 {
    let addresses = sum(frame, IP_SOURCE..34, &[place.remote, place.remote + 2]);
    let datagram = sum(frame, SOURCE_PORT..frame.len(), &[UDP_CHECKSUM, place.port]);
    let protocol = u32::from(u16::from_le_bytes([0, 17]));
    let length = half(frame, SOURCE_PORT + 4);
    folded(addresses + datagram + protocol + length)
}

fn sum(frame: &[u8], range: std::ops::Range<usize>, without: &[usize]) -> u32 {
    folded(range.step_by(2).filter(|at| !without.contains(at)).map(|at| half(frame, at)).sum())
}

/// A half as it lies in memory; beyond the end there are zeros.
fn half(frame: &[u8], at: usize) -> u32 {
    let byte = |at: usize| frame.get(at).copied().unwrap_or_default();
    u32::from(u16::from_le_bytes([byte(at), byte(at + 1)]))
}

const fn folded(sum: u32) -> u32 {
    let once = (sum & 0xffff) + (sum >> 16);
    (once & 0xffff) + (once >> 16)
}
