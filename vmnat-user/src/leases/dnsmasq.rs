//! The leases of a plain dnsmasq: lines of `expiry mac address name client-id`.

use super::{LeaseFact, Source, mac};

/// Reads the file's text; lines of another form (IPv6, `duid`) are left out.
pub(crate) fn read(text: &str) -> Vec<LeaseFact> {
    text.lines().filter_map(lease).collect()
}

fn lease(line: &str) -> Option<LeaseFact> {
    let mut words = line.split_whitespace();
    let expires = words.next()?.parse().ok()?;
    // The MAC of hardware that is no Ethernet has its type in front: `06-52:54:…`.
    let mac = words.next().map(mac)?;
    let address = words.next()?.parse().ok()?;
    let name = words.next().filter(|name| *name != "*").map(str::to_owned);
    let expires = if expires == 0 { u64::MAX } else { expires };
    Some(LeaseFact { mac, name, expires, ..LeaseFact::of(Source::Dnsmasq, address) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_read() {
        let text = "1700000000 52:54:00:12:34:56 192.168.122.10 web 01:52:54:00:12:34:56\n\
                    0 52:54:00:12:34:57 192.168.122.11 * *\n\
                    duid 00:01:00:01:2c\n\
                    1700000000 1234 fd00::10 six 00:01\n\
                    nonsense\n";
        let leases = read(text);
        assert_eq!(leases.len(), 2);
        assert_eq!((leases[0].name.as_deref(), leases[0].expires), (Some("web"), 1_700_000_000));
        assert_eq!((leases[1].name.as_deref(), leases[1].expires), (None, u64::MAX));
        assert_eq!(leases[1].mac, mac("52:54:00:12:34:57"));
    }
}
