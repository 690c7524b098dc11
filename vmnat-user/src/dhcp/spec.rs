//! What `up --dhcp` says: by libvirt's network, from a range, or not at all.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use serde::{Deserialize, Serialize};

/// Seconds of a lease where nobody says otherwise.
pub const LEASE: u32 = 3600;

/// Whether guests of a bridge are given addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DhcpWish {
    /// Where a network of libvirt with DHCP has the bridge, and its own server is not heard.
    #[default]
    Auto,
    /// Never.
    None,
    /// From this range, where no other server is heard.
    Range(DhcpRange),
}

/// Addresses to give, the last one included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DhcpRange {
    /// The first address.
    pub first: Ipv4Addr,
    /// The last address.
    pub last: Ipv4Addr,
    /// Seconds of a lease.
    pub lease: u32,
}

impl DhcpRange {
    /// The number of addresses.
    #[must_use]
    pub fn size(&self) -> u32 {
        u32::from(self.last).saturating_sub(self.first.into()).saturating_add(1)
    }

    /// True when the address is one of them.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&address)
    }
}

impl fmt::Display for DhcpRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// As it is read.
impl fmt::Display for DhcpWish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::None => f.write_str("none"),
            Self::Range(range) if range.lease == LEASE => write!(f, "{range}"),
            Self::Range(range) => write!(f, "{range},lease={}", range.lease),
        }
    }
}

impl FromStr for DhcpWish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => return Ok(Self::Auto),
            "none" => return Ok(Self::None),
            _ => {}
        }
        let wrong = || {
            format!(
                "\"{text}\" is no range such as 10.10.0.100-10.10.0.200 or 10.10.0.100-10.10.0.200,lease=12h, nor \"auto\" nor \"none\""
            )
        };
        let (range, lease) = match text.split_once(',') {
            None => (text, LEASE),
            Some((range, option)) => {
                let span = option.strip_prefix("lease=").and_then(seconds).ok_or_else(wrong)?;
                (range, span)
            }
        };
        let (first, last) = range.split_once('-').ok_or_else(wrong)?;
        match (first.parse(), last.parse()) {
            (Ok(first), Ok(last)) if first <= last => Ok(Self::Range(DhcpRange { first, last, lease })),
            _ => Err(wrong()),
        }
    }
}

/// Reads `90`, `90s`, `30m`, `12h` or `7d`; a lease has a minute at least, as clients renew at half of it.
fn seconds(text: &str) -> Option<u32> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(end)?;
    let unit = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    number.parse::<u32>().ok()?.checked_mul(unit).filter(|seconds| *seconds >= 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_auto_none_or_a_range_with_its_lease() {
        let read = |text: &str| text.parse::<DhcpWish>();
        assert_eq!(read("auto"), Ok(DhcpWish::Auto));
        assert_eq!(read("none"), Ok(DhcpWish::None));
        let range = |lease| {
            DhcpWish::Range(DhcpRange { first: [10, 0, 0, 5].into(), last: [10, 0, 0, 9].into(), lease })
        };
        assert_eq!(read("10.0.0.5-10.0.0.9"), Ok(range(3600)));
        assert_eq!(read("10.0.0.5-10.0.0.9,lease=12h"), Ok(range(43_200)));
        assert_eq!(read("10.0.0.5-10.0.0.9,lease=90"), Ok(range(90)));
        for wish in [DhcpWish::Auto, DhcpWish::None, range(3600), range(90)] {
            assert_eq!(read(&wish.to_string()), Ok(wish));
        }
        for text in
            ["", "10.0.0.9-10.0.0.5", "10.0.0.5", "10.0.0.5-10.0.0.9,lease=5", "10.0.0.5-10.0.0.9,x=1", "a-b"]
        {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
