//! `--external`: as which of an uplink's addresses guests are seen.

use std::net::Ipv4Addr;

use anyhow::Result;

use super::Args;
use crate::{
    error::Error,
    facts::{Facts, LinkFact},
    plan,
    state::State,
};

/// An address, and the uplink that has it where it was named; none for the primary ones again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct External {
    uplink: Option<String>,
    address: Option<Ipv4Addr>,
}

/// Reads `[UPLINK=]ADDRESS`, or "primary" in the address's place.
pub(super) fn parse(text: &str) -> Result<External, String> {
    let (uplink, address) = match text.split_once('=') {
        Some((uplink, address)) => (Some(uplink.to_owned()), address),
        None => (None, text),
    };
    if address == "primary" {
        return Ok(External { uplink, address: None });
    }
    let parsed = address.parse().map_err(|_| {
        format!("\"{address}\" is neither an IPv4 address such as 203.0.113.7 nor \"primary\"")
    })?;
    Ok(External { uplink, address: Some(parsed) })
}

/// Adds what was asked for to the state.
pub(super) fn merge(state: &mut State, args: &Args, facts: &Facts) -> Result<()> {
    for External { uplink, address } in &args.externals {
        match (uplink, address) {
            (None, None) => state.externals.clear(),
            (Some(uplink), None) => drop(state.externals.remove(uplink)),
            (_, Some(address)) => {
                let uplink = uplink_of(state, facts, uplink.as_deref(), *address)?;
                state.externals.insert(uplink, *address);
            }
        }
    }
    Ok(())
}

/// The uplink that has the address, and that is the named one where one is.
fn uplink_of(state: &State, facts: &Facts, named: Option<&str>, address: Ipv4Addr) -> Result<String> {
    let uplinks = plan::uplinks(state, facts);
    let is_meant = |link: &&&LinkFact| named.is_none_or(|name| link.name == name);
    let has = |link: &&&LinkFact| facts.addresses_of(link.index).any(|fact| fact.address == address.into());
    if let Some(found) = uplinks.iter().filter(is_meant).find(has) {
        return Ok(found.name.clone());
    }
    let own = |link: &&LinkFact| {
        let addresses: Vec<_> = facts.addresses_of(link.index).map(|fact| fact.address.to_string()).collect();
        let addresses = if addresses.is_empty() { "no address".to_owned() } else { addresses.join(", ") };
        format!("{} has {addresses}", link.name)
    };
    let known: Vec<String> = uplinks.iter().filter(is_meant).map(own).collect();
    let hint = match (named, &known[..]) {
        (Some(name), []) => format!("{name} is no uplink that exists"),
        (None, []) => "there is no uplink".to_owned(),
        _ => known.join("; "),
    };
    Err(Error::NotUplinksAddress { address, hint }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_name_its_uplink() {
        let address = Some([203, 0, 113, 7].into());
        assert_eq!(parse("203.0.113.7"), Ok(External { uplink: None, address }));
        assert_eq!(parse("enp3s0=203.0.113.7"), Ok(External { uplink: Some("enp3s0".into()), address }));
        assert_eq!(parse("primary"), Ok(External { uplink: None, address: None }));
        assert_eq!(parse("a=primary"), Ok(External { uplink: Some("a".into()), address: None }));
        assert!(parse("enp3s0").is_err() && parse("enp3s0=").is_err());
    }
}
