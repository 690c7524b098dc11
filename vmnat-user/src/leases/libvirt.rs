//! The status file that libvirt's lease helper keeps for each bridge: an array of objects, or nothing at all.

use std::net::Ipv4Addr;

use serde::Deserialize;

use super::{LeaseFact, Source, mac};

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Row {
    ip_address: String,
    #[serde(default)]
    mac_address: Option<String>,
    #[serde(default)]
    hostname: Option<String>,
    #[serde(default)]
    expiry_time: Option<u64>,
}

/// Reads the file's text; rows of IPv6 are left out.
///
/// # Errors
/// When it is not such a file, for example half of one.
pub(crate) fn read(text: &str) -> Result<Vec<LeaseFact>, serde_json::Error> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let rows: Vec<Row> = serde_json::from_str(text)?;
    Ok(rows.into_iter().filter_map(lease).collect())
}

fn lease(row: Row) -> Option<LeaseFact> {
    let Row { ip_address, mac_address, hostname, expiry_time } = row;
    let address: Ipv4Addr = ip_address.parse().ok()?;
    let expires = expiry_time.filter(|time| *time != 0).unwrap_or(u64::MAX);
    let name = hostname.filter(|name| !name.is_empty() && name != "*");
    let mac = mac_address.as_deref().and_then(mac);
    Some(LeaseFact { mac, name, expires, ..LeaseFact::of(Source::Libvirt, address) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_and_an_empty_file_has_none() {
        let text = r#"[
          {"ip-address": "192.168.122.10", "mac-address": "52:54:00:12:34:56", "hostname": "web",
           "client-id": "ff:56:50:4d:98", "expiry-time": 1700000000},
          {"ip-address": "192.168.122.11", "mac-address": "52:54:00:12:34:57", "expiry-time": 1700000001},
          {"ip-address": "fd00::11", "iaid": "1", "expiry-time": 1700000001}
        ]"#;
        let leases = read(text).unwrap();
        assert_eq!(leases.len(), 2);
        assert_eq!((leases[0].name.as_deref(), leases[0].expires), (Some("web"), 1_700_000_000));
        assert_eq!((leases[1].name.as_deref(), leases[1].mac), (None, mac("52:54:00:12:34:57")));
        assert_eq!(read("\n").unwrap(), []);
        assert!(read("[{").is_err());
    }
}
