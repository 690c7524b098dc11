//! Ports that the host holds or may hand out, and the masquerade pool that is left without them.
//!
//! The pool is disjoint from the host's own ports: that is the only guarantee that translation never takes a reply
//! that was meant for the host. Taken are the local port range, the reserved ports, every port of a TCP socket
//! (also of a connected one: NFS clients bind privileged ports), every bound UDP port, and port forwards.

use std::{fs, ops::RangeInclusive};

use anyhow::{Context, Result};
use vmnat_common::{
    Protocol,
    port_range::{FIRST_UNPRIVILEGED, POOL_WORDS, pool_bit},
};

use crate::sysctl;

/// The ports from which the pool is taken, where nothing else is configured.
pub const DEFAULT_RANGE: RangeInclusive<u16> = FIRST_UNPRIVILEGED..=u16::MAX;

/// Ports that are not the pool's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Ranges for TCP and UDP alike: `ip_local_port_range` and `ip_local_reserved_ports`.
    pub ranges: Vec<RangeInclusive<u16>>,
    /// Ports of sockets.
    pub sockets: Vec<(Protocol, u16)>,
}

/// The masquerade pool, as the `PORT_POOL` map holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// A bit a port, set where it is free: [`pool_bit`].
    pub words: Box<[u64]>,
    /// First port of the range, for [`vmnat_common::settings::Settings::pool_first`].
    pub first: u16,
    /// Last port of the range.
    pub last: u16,
    /// Free TCP ports of the range.
    pub free_tcp: u32,
    /// Free UDP ports of the range.
    pub free_udp: u32,
}

/// Asks the kernel which ports are taken, in the network namespace of the calling thread.
///
/// # Errors
/// When `/proc` does not say.
pub fn taken() -> Result<Taken> {
    let range = sysctl::read("net/ipv4/ip_local_port_range")?;
    let reserved = sysctl::read("net/ipv4/ip_local_reserved_ports")?;
    let mut taken = Taken { ranges: reserved_ports(&reserved), sockets: Vec::new() };
    taken.ranges.extend(local_range(&range));
    for (name, protocol) in
        [("tcp", Protocol::Tcp), ("tcp6", Protocol::Tcp), ("udp", Protocol::Udp), ("udp6", Protocol::Udp)]
    {
        let path = format!("/proc/thread-self/net/{name}");
        match fs::read_to_string(&path) {
            Ok(table) => taken.sockets.extend(socket_ports(&table).map(|port| (protocol, port))),
            // A kernel without IPv6 has no such file.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot read {path}")),
        }
    }
    taken.sockets.sort_unstable();
    taken.sockets.dedup();
    Ok(taken)
}

/// The pool that a range leaves when the host's ports and the forwards' are taken out.
///
/// Privileged ports are in it beside the range: a guest's privileged port is mapped to a privileged one (RFC 4787
/// REQ-3a). Port 0 never is.
#[must_use]
pub fn pool(
    range: &RangeInclusive<u16>,
    taken: &Taken,
    forwards: &[(Protocol, RangeInclusive<u16>)],
) -> Pool {
    let mut words = vec![0_u64; POOL_WORDS as usize].into_boxed_slice();
    mark(&mut words, Protocol::Sctp, 1..=u16::MAX, true);
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        mark(&mut words, protocol, 1..=FIRST_UNPRIVILEGED.saturating_sub(1), true);
        mark(&mut words, protocol, range.clone(), true);
        for ports in &taken.ranges {
            mark(&mut words, protocol, ports.clone(), false);
        }
        mark(&mut words, protocol, 0..=0, false);
    }
    for (protocol, port) in &taken.sockets {
        mark(&mut words, *protocol, *port..=*port, false);
    }
    for (protocol, ports) in forwards {
        mark(&mut words, *protocol, ports.clone(), false);
    }
    let free = |protocol| {
        let ports = range.clone().filter(|port| is_set(&words, protocol, *port)).count();
        u32::try_from(ports).unwrap_or(u32::MAX)
    };
    let (free_tcp, free_udp) = (free(Protocol::Tcp), free(Protocol::Udp));
    Pool { words, first: *range.start(), last: *range.end(), free_tcp, free_udp }
}

impl Pool {
    /// True when the port may be handed out.
    #[must_use]
    pub fn contains(&self, protocol: Protocol, port: u16) -> bool {
        is_set(&self.words, protocol, port)
    }
}

fn is_set(words: &[u64], protocol: Protocol, port: u16) -> bool {
    place(protocol, port).is_some_and(|(index, bit)| words.get(index).is_some_and(|word| word & bit != 0))
}

fn mark(words: &mut [u64], protocol: Protocol, ports: RangeInclusive<u16>, free: bool) {
    for (index, bit) in ports.filter_map(|port| place(protocol, port)) {
        if let Some(word) = words.get_mut(index) {
            *word = if free { *word | bit } else { *word & !bit };
        }
    }
}

fn place(protocol: Protocol, port: u16) -> Option<(usize, u64)> {
    let (word, bit) = pool_bit(protocol, port)?;
    Some((usize::try_from(word).ok()?, bit))
}

/// `ip_local_port_range`: two numbers.
fn local_range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.split_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(first)), Some(Ok(last))) => Some(first..=last),
        _ => None,
    }
}

/// `ip_local_reserved_ports`: numbers and ranges between commas.
fn reserved_ports(text: &str) -> Vec<RangeInclusive<u16>> {
    let ranges = text.trim().split(',').filter_map(|item| {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    });
    ranges.collect()
}

/// The local ports in a table of sockets: `sl local_address rem_address st …`, port in hexadecimal after the colon.
fn socket_ports(table: &str) -> impl Iterator<Item = u16> {
    table.lines().skip(1).filter_map(|line| {
        let (_, port) = line.split_whitespace().nth(1)?.rsplit_once(':')?;
        u16::from_str_radix(port, 16).ok()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:0035 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 13 1 0
   1: 0202000A:0385 0102000A:0801 01 00000000:00000000 00:00000000 00000000     0        0 14 1 0
";
    const UDP6: &str = "\
  sl  local_address                         remote_address                        st tx_queue
  99: 00000000000000000000000000000000:14E9 00000000000000000000000000000000:0000 07 00000000:00000000
";

    #[test]
    fn ports_of_sockets_are_read() {
        assert_eq!(socket_ports(TCP).collect::<Vec<_>>(), [53, 901]);
        assert_eq!(socket_ports(UDP6).collect::<Vec<_>>(), [5353]);
        assert_eq!(socket_ports("").count(), 0);
    }

    #[test]
    fn ranges_are_read() {
        assert_eq!(local_range("32768\t60999\n"), Some(32_768..=60_999));
        assert_eq!(local_range(""), None);
        assert_eq!(reserved_ports("8080,9148-9150,\n"), [8080..=8080, 9148..=9150]);
        assert_eq!(reserved_ports("\n"), []);
    }

    #[test]
    fn the_pool_is_what_nobody_else_has() {
        let taken = Taken {
            ranges: vec![32_768..=60_999, 8080..=8080],
            sockets: vec![(Protocol::Tcp, 22), (Protocol::Tcp, 5000)],
        };
        let pool = pool(&DEFAULT_RANGE, &taken, &[(Protocol::Udp, 7000..=7009)]);
        for (protocol, port, free) in [
            (Protocol::Tcp, 0, false),
            (Protocol::Tcp, 22, false),
            (Protocol::Udp, 22, true),
            (Protocol::Tcp, 5000, false),
            (Protocol::Udp, 5000, true),
            (Protocol::Udp, 7000, false),
            (Protocol::Udp, 7009, false),
            (Protocol::Tcp, 7009, true),
            (Protocol::Udp, 8080, false),
            (Protocol::Tcp, 32_767, true),
            (Protocol::Tcp, 32_768, false),
            (Protocol::Tcp, 65_535, true),
        ] {
            assert_eq!(pool.contains(protocol, port), free, "{protocol} {port}");
        }
        let range = 65_536 - 1024 - (61_000 - 32_768) - 1;
        assert_eq!((pool.free_tcp, pool.free_udp), (range - 1, range - 10));
        assert_eq!((pool.first, pool.last), (1024, 65_535));
    }

    #[test]
    fn the_kernel_says_which_ports_are_taken() {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let socket = std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        let taken = taken().unwrap();
        assert!(taken.sockets.contains(&(Protocol::Tcp, listener.local_addr().unwrap().port())));
        assert!(taken.sockets.contains(&(Protocol::Udp, socket.local_addr().unwrap().port())));
        assert!(!taken.ranges.is_empty());
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in ".{0,80}") {
            let _ = (local_range(&text), reserved_ports(&text), socket_ports(&text).count());
        }

        #[test]
        fn no_taken_port_is_in_the_pool(first in 1024u16..30_000, span in 1u16..30_000, taken in any::<u16>(), forward in any::<u16>()) {
            let held = Taken { ranges: Vec::new(), sockets: vec![(Protocol::Tcp, taken)] };
            let range = first..=first.saturating_add(span);
            let pool = pool(&range, &held, &[(Protocol::Udp, forward..=forward)]);
            prop_assert!(!pool.contains(Protocol::Tcp, taken));
            prop_assert!(!pool.contains(Protocol::Udp, forward));
            prop_assert_eq!(pool.free_tcp, u32::from(span).saturating_add(u32::from(!range.contains(&taken))));
        }
    }
}
