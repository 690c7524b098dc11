//! A ruleset of one's own, as guides for careful administrators have it: `policy drop` on input and forward.

use anyhow::Result;

use crate::hosts::stage::{Network, Stage};

/// Loads the ruleset with what it has for guests: forwarding, masquerade, and ports 80 and 443 to the second guest.
///
/// # Errors
///
/// When nft refuses it.
pub fn load(stage: &Stage) -> Result<()> {
    let network = stage.network()?;
    stage.lab.host.nft(&format!("flush ruleset\n{}{}", nat(network), filter(&guests(network))))
}

/// Loads the ruleset of someone who has not thought of guests yet.
///
/// # Errors
///
/// When nft refuses it.
pub fn load_without_guests(stage: &Stage) -> Result<()> {
    stage.lab.host.nft(&format!("flush ruleset\n{}", filter(&Rules::default())))
}

/// The rules for guests in the chains of the filter.
#[derive(Debug, Default)]
struct Rules {
    input: String,
    forward: String,
}

fn guests(network: Network) -> Rules {
    let (bridge, cidr) = (network.bridge, network.cidr());
    Rules {
        input: format!("iifname {bridge} udp dport bootps accept"),
        forward: format!(
            "iifname {bridge} ip saddr {cidr} oifname @wan accept\n    \
             oifname {bridge} ip daddr {cidr} iifname @wan accept"
        ),
    }
}

fn nat(network: Network) -> String {
    let (bridge, cidr, server) = (network.bridge, network.cidr(), network.address(true));
    format!(
        "table inet nat {{
  set wan {{ type ifname; elements = {{ wlan0, wwan0, enp3s0 }}; }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    iifname @wan tcp dport {{ http, https }} dnat ip to {server}
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    iifname {bridge} ip saddr {cidr} oifname @wan masquerade
  }}
}}
"
    )
}

fn filter(Rules { input, forward }: &Rules) -> String {
    format!(
        "table inet filter {{
  set wan {{ type ifname; elements = {{ wlan0, wwan0, enp3s0 }}; }}
  chain input {{
    type filter hook input priority filter; policy drop;
    iifname lo accept
    ct state vmap {{ established: accept, related: accept, invalid: drop }}
    icmp type echo-request accept
    {input}
    reject
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    {forward}
  }}
}}
"
    )
}
