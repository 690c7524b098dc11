//! Leases of systemd-networkd's DHCP server.
//!
//! Version 256 and later keep a file a bridge. All versions answer on the system's bus (`org.freedesktop.network1.DHCPServer`,
//! property `Leases`), and 252 nowhere else; that is asked through systemd's own `busctl`, which is wherever networkd is, so
//! no bus has to be spoken here. The bus knows no names, and the file of some versions no MACs: together they are complete.
//! Where there is no bus, or no answer within a second, there are no leases of it.

use std::{
    collections::HashMap,
    fs,
    net::Ipv4Addr,
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use nix::time::{ClockId, clock_gettime};
use serde::Deserialize;
use tracing::debug;
use vmnat_common::Mac;

use super::{LeaseFact, Source};
use crate::forwards::now;

/// Where networkd says what it does with each interface.
const LINKS: &str = "/run/systemd/netif/links";

/// An answer of the bus serves so long.
const FRESH: Duration = Duration::from_secs(1);

/// `AF_INET`.
const IPV4: u32 = 2;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Kept {
    #[serde(default)]
    leases: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    address: [u8; 4],
    #[serde(default)]
    client_id: Vec<u8>,
    #[serde(default)]
    hostname: Option<String>,
    #[serde(default)]
    hardware_address: Vec<u8>,
    #[serde(default, rename = "ExpirationRealtimeUSec")]
    expires: Option<u64>,
}

/// Reads the text of a file that networkd keeps.
///
/// # Errors
/// When it is not such a file, for example half of one.
pub(crate) fn read(text: &str) -> Result<Vec<LeaseFact>, serde_json::Error> {
    let Kept { leases } = serde_json::from_str(text)?;
    let lease = |row: Row| LeaseFact {
        mac: mac_of(&row.hardware_address, &row.client_id),
        name: row.hostname.filter(|name| !name.is_empty()),
        expires: row.expires.map_or(u64::MAX, |end| (end / MICROSECONDS).max(1)),
        ..LeaseFact::of(Source::Networkd, row.address.into())
    };
    Ok(leases.into_iter().map(lease).collect())
}

const MICROSECONDS: u64 = 1_000_000;

/// The MAC, from the field of the hardware's address (which may be padded with zeros), or from a client identifier of type 1, which
/// is the MAC where the client sent no other.
fn mac_of(hardware: &[u8], client: &[u8]) -> Option<Mac> {
    let bytes = hardware.first_chunk::<6>().filter(|bytes| **bytes != [0; 6]);
    let client = || match client {
        [1, rest @ ..] if rest.len() == 6 => rest.first_chunk::<6>(),
        _ => None,
    };
    bytes.or_else(client).map(|bytes| Mac::new(*bytes))
}

/// One lease on the bus: family, client identifier, address, gateway, hardware address, end.
type Answered = (u32, Vec<u8>, Vec<u8>, Vec<u8>, Vec<u8>, u64);

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    data: Vec<Answered>,
}

/// Reads what `busctl` says; ends are microseconds of `CLOCK_BOOTTIME`, which is `boot` seconds while the wall's clock is `unix`.
///
/// # Errors
/// When it is no such answer.
pub(crate) fn read_answer(text: &str, boot: u64, unix: u64) -> Result<Vec<LeaseFact>, serde_json::Error> {
    let Answer { data } = serde_json::from_str(text)?;
    let lease = |(family, client, address, _, hardware, end): Answered| {
        let address = Ipv4Addr::from(*address.first_chunk::<4>().filter(|_| family == IPV4)?);
        // What never ends is the largest number there, too.
        let expires = match end {
            u64::MAX => u64::MAX,
            end => unix.saturating_add(end / MICROSECONDS).saturating_sub(boot).max(1),
        };
        Some(LeaseFact {
            mac: mac_of(&hardware, &client),
            expires,
            ..LeaseFact::of(Source::Networkd, address)
        })
    };
    Ok(data.into_iter().filter_map(lease).collect())
}

/// True where networkd looks after the interface.
pub(super) fn manages(index: u32) -> bool {
    let text = fs::read_to_string(format!("{LINKS}/{index}")).unwrap_or_default();
    text.lines().any(|line| matches!(line, "ADMIN_STATE=configured" | "ADMIN_STATE=configuring"))
}

/// What was answered when, by interface.
type Answers = HashMap<u32, (Instant, Vec<LeaseFact>)>;

static ANSWERS: Mutex<Option<Answers>> = Mutex::new(None);

/// Asks the bus for the leases at an interface.
pub(super) fn ask(index: u32) -> Vec<LeaseFact> {
    let mut answers = ANSWERS.lock().unwrap_or_else(PoisonError::into_inner);
    let answers = answers.get_or_insert_default();
    if let Some((_, leases)) = answers.get(&index).filter(|(at, _)| at.elapsed() < FRESH) {
        return leases.clone();
    }
    let leases = asked(index).unwrap_or_else(|why| {
        debug!("systemd-networkd tells no leases of interface {index}: {why}");
        Vec::new()
    });
    answers.insert(index, (Instant::now(), leases.clone()));
    leases
}

fn asked(index: u32) -> Result<Vec<LeaseFact>, String> {
    let mut command = Command::new("busctl");
    command.args(["--system", "--json=short", "--timeout=1", "--auto-start=no", "get-property"]);
    command.args([
        "org.freedesktop.network1",
        &object(index),
        "org.freedesktop.network1.DHCPServer",
        "Leases",
    ]);
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("busctl: {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    let boot = clock_gettime(ClockId::CLOCK_BOOTTIME).map_err(|error| error.to_string())?.tv_sec();
    let text = String::from_utf8_lossy(&output.stdout);
    read_answer(&text, u64::try_from(boot).unwrap_or(0), now()).map_err(|error| error.to_string())
}

/// The bus's path of an interface: of its number, the first digit is escaped, as a name must not begin with one.
fn object(index: u32) -> String {
    let digits = index.to_string();
    let (first, rest) = digits.split_at_checked(1).unwrap_or(("", ""));
    format!("/org/freedesktop/network1/link/_3{first}{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As version 257 writes it.
    const KEPT: &str = r#"{"BootID":"1f30bb80c6e44398b996d9a02058f980","Address":[10,10,0,1],"PrefixLength":24,"Leases":[
        {"ClientId":[255,1,2,3,4,0,2,0,0,171,17],"Address":[10,10,0,48],"Hostname":"db","HardwareAddressType":1,
         "HardwareAddressLength":6,"HardwareAddress":[82,84,0,0,0,17,0,0,0,0,0,0,0,0,0,0],"ExpirationUSec":16042152561,
         "ExpirationRealtimeUSec":1795272205082946},
        {"ClientId":[1,82,84,0,0,0,16],"Address":[10,10,0,21],"ExpirationUSec":16042074637,
         "ExpirationRealtimeUSec":1795272205005022}]}"#;

    /// As version 252 answers.
    const ANSWER: &str = r#"{"type":"a(uayayayayt)","data":[[2,[1,82,84,0,0,0,16],[10,10,0,21],[0,0,0,0],[82,84,0,0,0,16,0,0,0,0,0,0,0,0,0,0],15949891703],
        [2,[255,1,2],[10,10,0,48],[0,0,0,0],[82,84,0,0,0,17,0,0,0,0,0,0,0,0,0,0],18446744073709551615],
        [10,[],[253],[],[],1]]}"#;

    #[test]
    fn the_file_of_newer_versions_is_read() {
        let leases = read(KEPT).unwrap();
        let found: Vec<_> =
            leases.iter().map(|lease| (lease.address.octets()[3], lease.name.as_deref())).collect();
        assert_eq!(found, [(48, Some("db")), (21, None)]);
        let macs: Vec<_> = leases.iter().map(|lease| lease.mac.unwrap().bytes()[5]).collect();
        assert_eq!(macs, [17, 16], "the second is the client identifier's");
        assert_eq!(leases[0].expires, 1_795_272_205);
        assert!(read(&KEPT[..200]).is_err());
    }

    #[test]
    fn the_answer_of_the_bus_is_read() {
        let leases = read_answer(ANSWER, 15_000, 1_000_000).unwrap();
        let found: Vec<_> = leases.iter().map(|lease| (lease.address.octets()[3], lease.expires)).collect();
        assert_eq!(found, [(21, 1_000_949), (48, u64::MAX)]);
        assert_eq!(leases[1].mac.unwrap().bytes(), [82, 84, 0, 0, 0, 17]);
        assert!(read_answer("{", 0, 0).is_err());
    }

    #[test]
    fn an_interface_has_its_path() {
        assert_eq!(object(2), "/org/freedesktop/network1/link/_32");
        assert_eq!(object(142), "/org/freedesktop/network1/link/_3142");
    }
}
