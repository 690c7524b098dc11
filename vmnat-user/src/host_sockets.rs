//! The host's own servers: which sockets wait for callers at which port, and whose they are.
//!
//! Only listening TCP sockets and unconnected UDP sockets count: a connected one keeps its own tuple in the kernel half.

use std::{collections::BTreeMap, fmt, fs, net::Ipv4Addr};

use anyhow::{Context as _, Result};
use vmnat_common::Protocol;

use crate::forwards::Ports;

/// `TCP_LISTEN` of TCP's table.
const LISTENING: &str = "0A";

/// `TCP_CLOSE`, which UDP's table has for a socket that is not connected.
const UNCONNECTED: &str = "07";

/// A socket that waits for callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// The address that it is bound to; 0.0.0.0 for all of them.
    pub at: Ipv4Addr,
    /// Its inode.
    pub inode: u64,
}

/// The sockets that wait for callers, by protocol and port.
#[derive(Clone, Debug, Default)]
pub struct Sockets {
    by_port: BTreeMap<(Protocol, u16), Vec<Socket>>,
}

impl Sockets {
    /// The first socket that has one of these ports, at one of these addresses or at all of them.
    #[must_use]
    pub fn find(&self, protocol: Protocol, ports: Ports, addresses: &[Ipv4Addr]) -> Option<(u16, Socket)> {
        let range = (protocol, ports.first())..=(protocol, ports.last());
        self.by_port.range(range).find_map(|((_, port), sockets)| {
            let meets = |socket: &&Socket| socket.at.is_unspecified() || addresses.contains(&socket.at);
            Some((*port, *sockets.iter().find(meets)?))
        })
    }

    /// Every socket with its protocol and port, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (Protocol, u16, &Socket)> {
        self.by_port
            .iter()
            .flat_map(|((protocol, port), sockets)| sockets.iter().map(|socket| (*protocol, *port, socket)))
    }

    fn read(&mut self, protocol: Protocol, table: &str) {
        for (port, socket) in table.lines().skip(1).filter_map(|line| row(protocol, line)) {
            self.by_port.entry((protocol, port)).or_default().push(socket);
        }
    }
}

/// Lists the sockets of the calling thread's network namespace.
///
/// # Errors
/// When `/proc` does not say.
pub fn sockets() -> Result<Sockets> {
    let mut sockets = Sockets::default();
    for (name, protocol) in
        [("tcp", Protocol::Tcp), ("tcp6", Protocol::Tcp), ("udp", Protocol::Udp), ("udp6", Protocol::Udp)]
    {
        let path = format!("/proc/thread-self/net/{name}");
        match fs::read_to_string(&path) {
            Ok(table) => sockets.read(protocol, &table),
            // A kernel without IPv6 has no such file.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot read {path}")),
        }
    }
    Ok(sockets)
}

/// A row: `sl local_address rem_address st tx:rx tr:tm retrnsmt uid timeout inode …`.
pub(crate) fn row(protocol: Protocol, line: &str) -> Option<(u16, Socket)> {
    let mut words = line.split_whitespace();
    let (address, port) = words.nth(1)?.split_once(':')?;
    let waits = if protocol == Protocol::Tcp { LISTENING } else { UNCONNECTED };
    if words.nth(1)? != waits {
        return None;
    }
    let inode = words.nth(5)?.parse().ok()?;
    Some((u16::from_str_radix(port, 16).ok()?, Socket { at: local(address)?, inode }))
}

/// The address in words of the host's byte order; none for one that is IPv6 alone.
fn local(text: &str) -> Option<Ipv4Addr> {
    let word = |from: usize| {
        let digits = text.get(from..from.checked_add(8)?)?;
        u32::from_str_radix(digits, 16).ok()
    };
    let address = match text.len() {
        8 => word(0)?,
        32 => match (word(0)?, word(8)?, word(16)?, word(24)?) {
            (0, 0, 0, 0) => 0,
            // `::ffff:a.b.c.d`
            (0, 0, mapped, address) if mapped == u32::from_ne_bytes([0, 0, 0xff, 0xff]) => address,
            _ => return None,
        },
        _ => return None,
    };
    Some(Ipv4Addr::from(address.to_ne_bytes()))
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, process {}", self.name, self.pid)
    }
}

/// The process that has a socket open; none where it cannot be seen, for example in another PID namespace.
#[must_use]
pub fn holder(inode: u64) -> Option<Process> {
    let wanted = format!("socket:[{inode}]");
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(descriptors) = fs::read_dir(entry.path().join("fd")) else { continue };
        let holds = |link: std::path::PathBuf| link.as_os_str() == wanted.as_str();
        if descriptors.flatten().filter_map(|fd| fs::read_link(fd.path()).ok()).any(holds) {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            return Some(Process { pid, name: name.trim().to_owned() });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:0035 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 13 1 0
   1: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 14 1 0
   2: 0202000A:0050 0102000A:0801 01 00000000:00000000 00:00000000 00000000     0        0 15 1 0
";
    const UDP6: &str = "\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
  99: 00000000000000000000000000000000:14E9 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 21 2 0
  98: 0000000000000000FFFF00000202000A:14EA 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 22 2 0
  97: 000080FE000000000000000001000000:14EB 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 23 2 0
";

    #[test]
    #[cfg(target_endian = "little")]
    fn only_what_waits_for_callers_at_the_forwards_addresses_counts() {
        let mut sockets = Sockets::default();
        sockets.read(Protocol::Tcp, TCP);
        sockets.read(Protocol::Udp, UDP6);
        let find = |protocol, first, last, address: [u8; 4]| {
            let found = sockets.find(protocol, Ports::new(first, last).unwrap(), &[address.into()]);
            found.map(|(port, socket)| (port, socket.inode))
        };
        assert_eq!(find(Protocol::Tcp, 53, 53, [10, 0, 2, 2]), None);
        assert_eq!(find(Protocol::Tcp, 53, 53, [127, 0, 0, 1]), Some((53, 13)));
        assert_eq!(find(Protocol::Tcp, 50, 90, [10, 0, 2, 2]), Some((80, 14)));
        assert_eq!(find(Protocol::Udp, 5353, 5353, [10, 0, 2, 2]), Some((5353, 21)));
        assert_eq!(find(Protocol::Udp, 5354, 5355, [10, 0, 2, 2]), Some((5354, 22)));
        assert_eq!(find(Protocol::Udp, 5354, 5355, [10, 0, 2, 3]), None);
    }

    #[test]
    fn the_holder_of_a_socket_is_found() {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let sockets = sockets().unwrap();
        let (_, socket) =
            sockets.find(Protocol::Tcp, Ports::new(port, port).unwrap(), &[Ipv4Addr::LOCALHOST]).unwrap();
        assert_eq!(holder(socket.inode).map(|process| process.pid), Some(std::process::id()));
        assert_eq!(holder(u64::MAX), None);
    }
}
