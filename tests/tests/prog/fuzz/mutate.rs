//! Changes frames by chance, with an eye on where their fields are.

use vmnat_tests::fuzz::Random;

use crate::rig::{EXTERNAL, GATEWAY, GUEST1, GUEST2, OTHER_SERVER, SERVER};

/// The kernel takes no frame that is shorter than an IPv4 header, or than one of IPv6.
const SHORTEST: usize = 34;
const SHORTEST_IPV6: usize = 54;
/// The kernel takes what fits a page.
const LONGEST: usize = 3000;

/// Where single bytes decide: the IPv4 header, a transport header behind it, and one quoted in an ICMP error.
const FIELDS: [usize; 30] = [
    14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 34, 35, 36, 37, 38, 39, 40, 41, 42, 46, 47, 48, 50, 51,
    62, 63, 65, 70,
];

/// Where addresses are: of the header, and of a quote.
const ADDRESSES: [usize; 4] = [26, 30, 54, 58];
/// Where ports are: of the transport header, of a query, and of a quote.
const PORTS: [usize; 5] = [34, 36, 38, 62, 64];

const KNOWN_ADDRESSES: [[u8; 4]; 18] = [
    GUEST1,
    GUEST2,
    GATEWAY,
    EXTERNAL,
    SERVER,
    OTHER_SERVER,
    [192, 168, 123, 1],
    [192, 168, 123, 9],
    [192, 0, 0, 8],
    [127, 0, 0, 1],
    [0, 0, 0, 0],
    [255, 255, 255, 255],
    [224, 0, 0, 1],
    [169, 254, 1, 1],
    [198, 18, 0, 1],
    [203, 0, 113, 1],
    [10, 9, 0, 1],
    [240, 0, 0, 1],
];
const KNOWN_PORTS: [u16; 12] = [0, 7, 22, 53, 80, 5000, 6001, 6002, 8080, 9003, 1023, 65_535];

/// A frame and how many bytes a segment has that it will be cut into (0 for none).
pub struct Mutant {
    pub frame: Vec<u8>,
    pub gso_size: u32,
}

/// One of `seeds`, changed; `others` lend their ends to be spliced on.
pub fn mutant(random: &mut Random, seeds: &[Vec<u8>], others: &[Vec<u8>]) -> Mutant {
    let mut frame = random.one_of(seeds).clone();
    for _ in 0..random.below(5) {
        change(random, &mut frame, others);
    }
    let gso_size = if random.once_in(16) { u32::try_from(1 + random.below(1800)).unwrap() } else { 0 };
    let shortest = if frame.get(12..14) == Some(&[0x86, 0xdd]) { SHORTEST_IPV6 } else { SHORTEST };
    frame.resize(frame.len().clamp(shortest, LONGEST), 0);
    Mutant { frame, gso_size }
}

fn change(random: &mut Random, frame: &mut Vec<u8>, others: &[Vec<u8>]) {
    match random.below(16) {
        0..4 => set(frame, *random.one_of(&FIELDS), [random.byte()]),
        4 => {
            let at = random.below(frame.len());
            set(frame, at, [random.byte()]);
        }
        5 => {
            let at = random.below(frame.len());
            let flipped = frame[at] ^ (1 << random.below(8));
            set(frame, at, [flipped]);
        }
        6 | 7 => set(frame, *random.one_of(&ADDRESSES), random.one_of(&KNOWN_ADDRESSES)),
        8 | 9 => {
            let by_chance = u16::try_from(1024 + random.below(60_000)).unwrap();
            let port = if random.once_in(2) { by_chance } else { *random.one_of(&KNOWN_PORTS) };
            set(frame, *random.one_of(&PORTS), port.to_be_bytes());
        }
        10 => frame.truncate(SHORTEST + random.below(frame.len())),
        11 => frame.extend(std::iter::repeat_n(random.byte(), random.below(1200))),
        12 => {
            let other = random.one_of(others);
            let at = 14 + random.below(frame.len().min(other.len()) - 14);
            frame.truncate(at);
            frame.extend(&other[at..]);
        }
        13 => lengths(random, frame),
        14 => flags(random, frame),
        _ => stations(random, frame),
    }
}

fn set(frame: &mut [u8], at: usize, bytes: impl AsRef<[u8]>) {
    let bytes = bytes.as_ref();
    if let Some(place) = frame.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// Lengths about the true ones.
fn lengths(random: &mut Random, frame: &mut [u8]) {
    let true_length = u16::try_from(frame.len() - 14).unwrap_or(u16::MAX);
    let length =
        *random.one_of(&[0, 19, 20, 24, 28, 60, true_length - 1, true_length + 1, true_length, u16::MAX]);
    set(frame, *random.one_of(&[16, 16, 38, 44]), length.to_be_bytes());
}

/// Flags and offset of fragments, and of TCP.
fn flags(random: &mut Random, frame: &mut [u8]) {
    if random.once_in(2) {
        set(
            frame,
            20,
            random
                .one_of(&[0_u16, 0x2000, 0x2001, 0x0001, 0x0032, 0x1fff, 0x4000, 0x8000, 0x6000])
                .to_be_bytes(),
        );
    } else {
        set(frame, 46, [random.byte(), random.byte()]);
    }
}

/// MAC addresses, and what kind of frame it is.
fn stations(random: &mut Random, frame: &mut [u8]) {
    if random.once_in(3) {
        set(
            frame,
            12,
            random.one_of(&[[0x08, 0x06], [0x86, 0xdd], [0x81, 0x00], [0x08, 0x00], [0x88, 0xa8]]),
        );
    } else {
        let macs = [
            crate::rig::GUEST1_MAC,
            crate::rig::GUEST2_MAC,
            crate::rig::BRIDGE_MAC,
            [0xff; 6],
            [1, 0, 0x5e, 0, 0, 1],
        ];
        set(frame, 6 * random.below(2), random.one_of(&macs));
    }
}
