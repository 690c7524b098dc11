//! Port forwards: what people ask for, who owns which port, and where the wish is kept.

mod admission;
mod claims;
mod count;
mod external;
mod life;
mod parse;
mod patience;
mod spec;
pub mod store;

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

pub use self::{
    admission::{Admission, Admitted, Request, Verdict},
    claims::{Claimed, Claims},
    count::{Count, counts, end_flows},
    external::External,
    life::{Expiry, Resolved, boot_now, drop_expired, now, refresh, remaining},
    parse::FORM,
    spec::{ForwardSpec, Ports, Protocols, Target},
};

/// A port forward as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// What leads where.
    pub spec: ForwardSpec,
    /// Only these sources may use it, in order; everyone where there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<Ipv4Net>,
    /// It is bound to this uplink's addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<String>,
    /// What the operator says about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Second since 1970 from which it is no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// It ends with the instance.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub runtime_only: bool,
    /// The file of the configuration that says it; none for the command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

impl Wish {
    /// A forward without any option.
    #[must_use]
    pub const fn plain(spec: ForwardSpec) -> Self {
        Self {
            spec,
            from: Vec::new(),
            uplink: None,
            comment: None,
            expires: None,
            runtime_only: false,
            file: None,
        }
    }

    /// True for what is kept over `down` in the instance's own file; what files of the configuration say is in those.
    #[must_use]
    pub const fn is_kept(&self) -> bool {
        !self.runtime_only && self.file.is_none()
    }

    /// True when both differ in the time of their end and in who asks at most.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        let Self { spec, from, uplink, comment, expires, runtime_only, file: _ } = self;
        *spec == other.spec
            && *from == other.from
            && *uplink == other.uplink
            && *comment == other.comment
            && expires.is_some() == other.expires.is_some()
            && *runtime_only == other.runtime_only
    }
}

/// A port forward with the number that it keeps for life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortForward {
    /// The number.
    pub id: u32,
    /// What was asked for.
    #[serde(flatten)]
    pub wish: Wish,
}

/// Reads a source: a network, or an address alone.
///
/// # Errors
/// For anything else.
pub fn read_source(text: &str) -> Result<Ipv4Net, String> {
    let network = text.parse::<Ipv4Net>().or_else(|_| text.parse::<Ipv4Addr>().map(Ipv4Net::from));
    let network =
        network.map_err(|_| format!("\"{text}\" is no source such as 192.0.2.0/24 or 192.0.2.7"))?;
    Ok(network.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_no_more_than_was_asked_for() {
        let mut forward = PortForward { id: 3, wish: Wish::plain("80:web:80".parse().unwrap()) };
        assert_eq!(serde_json::to_string(&forward).unwrap(), r#"{"id":3,"spec":"80:web:80/tcp"}"#);
        forward.wish.from = vec!["192.0.2.0/24".parse().unwrap()];
        forward.wish.runtime_only = true;
        let text = serde_json::to_string(&forward).unwrap();
        assert_eq!(serde_json::from_str::<PortForward>(&text).unwrap(), forward);
    }

    #[test]
    fn sources_are_networks_or_single_addresses() {
        for (text, network) in
            [("192.0.2.9/24", "192.0.2.0/24"), ("192.0.2.9", "192.0.2.9/32"), ("0.0.0.0/0", "0.0.0.0/0")]
        {
            assert_eq!(read_source(text).unwrap().to_string(), network);
        }
        for text in ["", "192.0.2", "192.0.2.0/33", "web"] {
            assert!(read_source(text).is_err(), "{text}");
        }
    }
}
