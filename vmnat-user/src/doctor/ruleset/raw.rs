//! What the kernel says about its rules, before it is understood; also as one run of bytes, which a bug report can
//! carry and a test can read back.

use std::{fs, io, mem::size_of, net::UdpSocket, os::fd::AsRawFd as _};

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::legacy;
use crate::netlink::{Messages, dump};

/// Answers of `nf_tables`: `NFNL_SUBSYS_NFTABLES` with `NFT_MSG_NEWCHAIN` and the like.
pub(super) const CHAIN: u16 = 0x0a03;
pub(super) const RULE: u16 = 0x0a06;
pub(super) const SET: u16 = 0x0a09;
pub(super) const ELEMENTS: u16 = 0x0a0c;

/// A table of `ip_tables`: not a message of netlink's, and beside all of its numbers.
pub(super) const LEGACY: u16 = 0xff00;

/// `NFT_MSG_GETCHAIN` and the like.
const GET_CHAINS: u16 = 0x0a04;
const GET_RULES: u16 = 0x0a07;
const GET_SETS: u16 = 0x0a0a;
const GET_ELEMENTS: u16 = 0x0a0d;

/// `IPT_SO_GET_INFO`, `IPT_SO_GET_ENTRIES`.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;

/// Bytes of `struct ipt_getinfo`: name, valid hooks, five entries, five underflows, number and size.
const INFO: usize = 84;

/// Bytes of `struct ipt_get_entries` before the entries.
const ENTRIES: usize = 40;

/// The largest table that is asked for.
const LARGEST: usize = 64 << 20;

/// Rules as the kernel told them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Raw(Vec<u8>);

/// What could not be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Which rules.
    pub what: &'static str,
    /// Why not.
    pub why: String,
    /// A privilege is missing.
    pub is_denied: bool,
}

impl Trouble {
    fn new(what: &'static str, error: &io::Error) -> Self {
        let is_denied = error.kind() == io::ErrorKind::PermissionDenied;
        Self { what, why: error.to_string(), is_denied }
    }
}

impl Raw {
    /// Asks the kernel, in the network namespace of the calling thread.
    #[must_use]
    pub fn read() -> (Self, Vec<Trouble>) {
        let (mut raw, mut troubles) = (Self::default(), Vec::new());
        if let Err(error) = raw.read_nft() {
            let is_absent =
                matches!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT | libc::EINVAL | libc::EOPNOTSUPP));
            if !is_absent {
                troubles.push(Trouble::new("the rules of nf_tables", &error));
            }
        }
        if let Err(error) = raw.read_legacy() {
            troubles.push(Trouble::new("the rules of iptables-legacy", &error));
        }
        (raw, troubles)
    }

    /// A run of bytes that [`Raw::bytes`] made; any other bytes hold what makes sense of them.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    /// All of it as bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn messages(&self) -> impl Iterator<Item = (u16, &[u8])> {
        Messages(&self.0).map(|message| (message.kind, message.body))
    }

    fn push(&mut self, kind: u16, body: &[u8]) {
        let length = body.len().saturating_add(16);
        self.0.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend([0; 10]);
        self.0.extend(body);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn read_nft(&mut self) -> io::Result<()> {
        const ANY: [u8; 4] = [0; 4];
        for kind in [GET_CHAINS, GET_RULES] {
            dump(NETLINK_NETFILTER, kind, &ANY, |message| self.push(message.kind, message.body))?;
        }
        let mut sets = Vec::new();
        dump(NETLINK_NETFILTER, GET_SETS, &ANY, |message| {
            self.push(message.kind, message.body);
            sets.push(message.body.to_vec());
        })?;
        for set in sets {
            // Its family, table and name are the head of the request. It may be gone by now.
            if let Some(request) = super::decode::elements_request(&set) {
                let _ = dump(NETLINK_NETFILTER, GET_ELEMENTS, &request, |message| {
                    self.push(message.kind, message.body);
                });
            }
        }
        Ok(())
    }

    fn read_legacy(&mut self) -> io::Result<()> {
        let names = match fs::read_to_string("/proc/thread-self/net/ip_tables_names") {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        for table in names.lines().filter(|name| !name.is_empty()) {
            let (info, entries) = table_of(table)?;
            self.push(LEGACY, &legacy::packed(table, &info, &entries));
        }
        Ok(())
    }
}

/// Hooks and entries of a table that exists.
fn table_of(table: &str) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).or_else(|_| UdpSocket::bind(("127.0.0.1", 0)))?;
    let mut info = vec![0; INFO];
    name_into(&mut info, table);
    ask(&socket, GET_INFO, &mut info)?;
    let size =
        crate::netlink::array(&info, INFO.saturating_sub(size_of::<u32>())).map_or(0, u32::from_ne_bytes);
    let size_in_bytes = usize::try_from(size).unwrap_or(usize::MAX);
    if size_in_bytes > LARGEST {
        return Err(io::Error::other(format!("table {table} is larger than {LARGEST} bytes")));
    }
    let mut entries = vec![0; size_in_bytes.saturating_add(ENTRIES)];
    name_into(&mut entries, table);
    entries.iter_mut().skip(32).zip(size.to_ne_bytes()).for_each(|(place, byte)| *place = byte);
    ask(&socket, GET_ENTRIES, &mut entries)?;
    Ok((info, entries.split_off(ENTRIES)))
}

fn name_into(buffer: &mut [u8], name: &str) {
    buffer.iter_mut().take(31).zip(name.bytes()).for_each(|(place, byte)| *place = byte);
}

fn ask(socket: &UdpSocket, option: libc::c_int, buffer: &mut [u8]) -> io::Result<()> {
    let mut size = libc::socklen_t::try_from(buffer.len()).map_err(io::Error::other)?;
    // SAFETY: the buffer is live and as long as `size` says.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            option,
            buffer.as_mut_ptr().cast(),
            &raw mut size,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
