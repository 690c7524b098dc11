//! The invariants, watched from outside vmnat: at the router, in the end hosts, and in the kernel's log.

use std::{
    fmt::Write as _,
    fs::{File, OpenOptions},
    io::{ErrorKind, Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
};

use anyhow::{Context, Result, ensure};

use super::{
    frame::{Address, Tap},
    namespace::Namespace,
};

/// Catches every IPv4 frame on the router's side of the uplink whose source is not the external address.
#[derive(Debug)]
pub struct LeakWatch {
    strangers: Tap,
}

impl LeakWatch {
    /// Watches `interface` in `router`, where only `external` may be a source.
    ///
    /// # Errors
    ///
    /// When the interface does not exist.
    pub fn new(router: &Namespace, interface: &str, external: Address) -> Result<Self> {
        Ok(Self { strangers: Tap::open_filtered(router, interface, &filter(external))? })
    }

    /// Forgets what it has caught, where a test has leaked on purpose.
    ///
    /// # Errors
    ///
    /// Never on a live socket.
    pub fn forget(&self) -> Result<()> {
        drop(self.strangers.drain());
        self.strangers.overflow().map(drop)
    }

    /// Asserts that nothing was caught.
    ///
    /// # Errors
    ///
    /// When something was; the message shows the first of it.
    pub fn assert_none(&self) -> Result<()> {
        let caught = self.strangers.drain();
        let mut shown = String::new();
        for frame in caught.iter().take(5) {
            let head = frame.get(..frame.len().min(46)).unwrap_or_default();
            let address = |at: usize| frame.get(at..at + 4).map_or_else(String::new, |a| format!("{a:?}"));
            write!(shown, "\n  {} -> {}: {head:02x?}", address(26), address(30))?;
        }
        ensure!(caught.is_empty(), "{} frames left the uplink with a foreign source:{shown}", caught.len());
        Ok(())
    }
}

/// Classic BPF: neither outgoing nor from `external`, and IPv4, or with a VLAN tag.
fn filter(external: Address) -> [libc::sock_filter; 10] {
    // Offsets of ancillary data, from linux/filter.h: SKF_AD_OFF plus PROTOCOL, PKTTYPE and VLAN_TAG_PRESENT; and SKF_NET_OFF
    // plus that of the source in an IPv4 header, which serves links without Ethernet too.
    const PROTOCOL: u32 = (-0x1000_i32).cast_unsigned();
    const PACKET_TYPE: u32 = (-0x1000_i32 + 4).cast_unsigned();
    const VLAN_PRESENT: u32 = (-0x1000_i32 + 48).cast_unsigned();
    const SOURCE: u32 = (-0x0010_0000_i32 + 12).cast_unsigned();
    let load = |code: u16, at: u32| libc::sock_filter { code, jt: 0, jf: 0, k: at };
    let jump_equal = |k: u32, jt: u8, jf: u8| libc::sock_filter { code: 0x15, jt, jf, k };
    let (word, byte) = (0x20, 0x30);
    [
        load(byte, PACKET_TYPE),
        jump_equal(u32::from(libc::PACKET_OUTGOING), 7, 0),
        load(byte, VLAN_PRESENT),
        jump_equal(0, 0, 4),
        load(word, PROTOCOL),
        jump_equal(0x0800, 0, 3),
        load(word, SOURCE),
        jump_equal(u32::from_be_bytes(external), 1, 0),
        libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0xffff },
        libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 },
    ]
}

/// Counts what a namespace's own connection tracking calls invalid.
///
/// # Errors
///
/// When nftables is missing.
pub fn watch_invalid(namespace: &Namespace) -> Result<()> {
    namespace.nft(
        "table ip watch {
           counter invalid { }
           chain in { type filter hook input priority 0; ct state invalid counter name invalid; }
         }",
    )
}

/// Packets that connection tracking has called invalid since [`watch_invalid`].
///
/// # Errors
///
/// When nothing watches.
pub fn invalid_packets(namespace: &Namespace) -> Result<u64> {
    counter(namespace, "ip", "watch", "invalid")
}

/// The packets of a named nftables counter.
///
/// # Errors
///
/// When there is no such counter.
pub fn counter(namespace: &Namespace, family: &str, table: &str, name: &str) -> Result<u64> {
    let listing = namespace.exec(&["nft", "-j", "list", "counter", family, table, name])?;
    let listing: serde_json::Value = serde_json::from_str(&listing)?;
    let objects = listing["nftables"].as_array().context("nft's JSON has no list")?;
    let packets = objects.iter().find_map(|object| object["counter"]["packets"].as_u64());
    packets.with_context(|| format!("no counter {name} in {listing}"))
}

/// The rows of `/proc/net/snmp` that count wrong checksums, those above zero.
#[must_use]
pub fn damaged_packets(namespace: &Namespace) -> Vec<String> {
    let table = namespace.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp")).unwrap_or_default();
    let lines: Vec<&str> = table.lines().collect();
    let pairs = lines.chunks(2).filter_map(|pair| Some((*pair.first()?, *pair.get(1)?)));
    let fields = pairs.flat_map(|(names, values)| {
        names.split(' ').zip(values.split(' ')).map(move |(name, value)| (names, name, value))
    });
    fields
        .filter(|(_, name, value)| *name == "InCsumErrors" && *value != "0")
        .map(|(row, name, value)| {
            format!("{} {}{name} {value}", namespace.name(), row.split(' ').next().unwrap_or_default())
        })
        .collect()
}

/// The kernel's log from a moment on.
#[derive(Debug)]
pub struct KernelLog {
    log: File,
}

impl KernelLog {
    /// Reads on from here.
    ///
    /// # Errors
    ///
    /// When the log may not be read.
    pub fn from_here() -> Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NONBLOCK);
        let mut log = options.open("/dev/kmsg").context("the kernel's log")?;
        log.seek(SeekFrom::End(0)).context("the kernel's log")?;
        Ok(Self { log })
    }

    /// Asserts that the kernel has not complained.
    ///
    /// # Errors
    ///
    /// When it has; the message holds its lines.
    pub fn assert_calm(&mut self) -> Result<()> {
        let mut record = vec![0; 8192];
        let mut complaints = Vec::new();
        loop {
            match self.log.read(&mut record) {
                Ok(0) => break,
                Ok(length) => {
                    let line = String::from_utf8_lossy(record.get(..length).unwrap_or_default()).into_owned();
                    if ["WARNING:", "BUG:", "Oops", "RIP:", "Call Trace"]
                        .iter()
                        .any(|word| line.contains(word))
                    {
                        complaints.push(line);
                    }
                }
                // EPIPE: records were overwritten before they were read; the next read goes on.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(_) => break,
            }
        }
        ensure!(complaints.is_empty(), "the kernel complains:\n{}", complaints.join("\n"));
        Ok(())
    }
}
