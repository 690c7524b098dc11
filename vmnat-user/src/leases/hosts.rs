//! Static hosts, as libvirt writes them for its dnsmasq (`dhcp-hostsfile`): lines of comma-separated words, of which some are
//! MACs, one is the address and one the name.

use std::net::Ipv4Addr;

use super::{LeaseFact, Source, mac};

/// Reads the file's text; lines without an IPv4 address, and those of guests that are to be ignored, are left out.
pub(crate) fn read(text: &str) -> Vec<LeaseFact> {
    text.lines().flat_map(host).collect()
}

/// One fact a MAC; one without a MAC where the line has none.
fn host(line: &str) -> Vec<LeaseFact> {
    let line = line.split('#').next().unwrap_or_default();
    let words: Vec<&str> = line.split(',').map(str::trim).filter(|word| !word.is_empty()).collect();
    let address: Option<Ipv4Addr> = words.iter().find_map(|word| word.parse().ok());
    let (Some(address), false) = (address, words.contains(&"ignore")) else { return Vec::new() };
    let name = words.iter().find(|word| is_name(word)).map(|name| (*name).to_owned());
    let fact = LeaseFact { name, ..LeaseFact::of(Source::LibvirtHosts, address) };
    let macs: Vec<_> = words.iter().filter_map(|word| mac(word)).collect();
    if macs.is_empty() {
        return vec![fact];
    }
    macs.into_iter().map(|mac| LeaseFact { mac: Some(mac), ..fact.clone() }).collect()
}

/// Neither an address, nor a MAC, nor an option (`id:`, `set:`, `[fd00::1]`), nor a time.
fn is_name(word: &str) -> bool {
    let is_time = word == "infinite"
        || word.trim_end_matches(['s', 'm', 'h', 'd', 'w']).bytes().all(|byte| byte.is_ascii_digit());
    !is_time
        && word.parse::<Ipv4Addr>().is_err()
        && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_as_dnsmasq_reads_them() {
        let text = "52:54:00:00:00:10,192.168.122.10,web\n\
                    52:54:00:00:00:11,52:54:00:00:00:12,set:lab,db.example.org,192.168.122.11,12h # two cards\n\
                    id:01:02,192.168.122.12,45m\n\
                    52:54:00:00:00:13,ignore,192.168.122.13\n\
                    52:54:00:00:00:14,name-only\n\
                    52:54:00:00:00:15,[fd00::15]\n\n";
        let facts = read(text);
        let found: Vec<_> =
            facts.iter().map(|fact| (fact.address.octets()[3], fact.mac, fact.name.as_deref())).collect();
        assert_eq!(
            found,
            [
                (10, mac("52:54:00:00:00:10"), Some("web")),
                (11, mac("52:54:00:00:00:11"), Some("db.example.org")),
                (11, mac("52:54:00:00:00:12"), Some("db.example.org")),
                (12, None, None),
            ]
        );
        assert!(facts.iter().all(|fact| fact.expires == u64::MAX && fact.source == Source::LibvirtHosts));
    }
}
