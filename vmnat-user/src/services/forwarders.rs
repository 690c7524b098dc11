//! Whom the relay asks: who was named with `--dns`, or the server at the gateway and then the host's resolvers.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
};

use super::DNS;

/// Where the host's resolvers are (`resolv.conf(5)`).
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Resolvers that are asked for one question, and those that the C library takes from the file.
const MOST: usize = 3;

/// Whom the relay at `gateway` asks, in this order. A server at the gateway is found to be none at once: the kernel refuses.
/// The file is read each time, so that its changes need no telling.
pub(super) fn to_ask(gateway: Ipv4Addr, named: &[SocketAddrV4]) -> Vec<SocketAddr> {
    if !named.is_empty() {
        return named.iter().copied().map(SocketAddr::from).collect();
    }
    let own = SocketAddr::from((gateway, DNS));
    let host = resolvers().into_iter().filter(|resolver| *resolver != own);
    [own].into_iter().chain(host).collect()
}

/// The host's resolvers.
pub(super) fn resolvers() -> Vec<SocketAddr> {
    read(&fs::read_to_string(RESOLV_CONF).unwrap_or_default())
}

/// The resolvers that a `resolv.conf` names; the host itself where it names none.
fn read(text: &str) -> Vec<SocketAddr> {
    let address = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let word = words.next().filter(|word| *word == "nameserver").and(words.next())?;
        // A link-local resolver's interface (fe80::1%eth0) is of no use to IPv4's guests.
        word.parse::<IpAddr>().ok().filter(|address| !address.is_unspecified())
    };
    let mut found: Vec<SocketAddr> =
        text.lines().filter_map(address).map(|address| (address, DNS).into()).take(MOST).collect();
    if found.is_empty() {
        found.push((Ipv4Addr::LOCALHOST, DNS).into());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_as_the_c_library_does() {
        let text = "# nameserver 1.1.1.1\nsearch example.org\nnameserver 127.0.0.53\n nameserver\t9.9.9.9 # a\n\
                    nameserver fe80::1%eth0\nnameserver 2620:fe::fe\nnameserver 8.8.8.8\noptions edns0\n";
        let found: Vec<String> = read(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["127.0.0.53:53", "9.9.9.9:53", "[2620:fe::fe]:53"]);
        assert_eq!(read("search example.org\n"), ["127.0.0.1:53".parse().unwrap()]);
    }

    #[test]
    fn who_is_named_is_asked_alone_and_the_gateway_once() {
        let gateway = Ipv4Addr::new(192, 168, 122, 1);
        let named = ["9.9.9.9:53".parse().unwrap()];
        assert_eq!(to_ask(gateway, &named), [SocketAddr::from(([9, 9, 9, 9], 53))]);
        let asked = to_ask(gateway, &[]);
        let own: SocketAddr = (gateway, 53).into();
        assert_eq!(asked.first(), Some(&own));
        assert_eq!(asked.iter().filter(|asked| **asked == own).count(), 1);
    }
}
