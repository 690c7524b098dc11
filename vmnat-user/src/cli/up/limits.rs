//! What `up` says about who may call guests, and how much of what all share a guest may take.

use anyhow::Result;
use clap::ValueEnum;

use crate::{
    error::Error,
    host_ports::Pool,
    reconcile::settings,
    state::{Filtering, PoolRange, State},
};

/// The most flows that a table can be made for.
const MOST: i64 = 16_777_216;

/// `--filtering`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum FilteringWish {
    /// Only remotes that the guest has sent to reach it
    AddressAndPortDependent,
    /// Anyone who knows a mapped port reaches the guest; for games and WebRTC
    EndpointIndependent,
}

impl From<FilteringWish> for Filtering {
    fn from(wish: FilteringWish) -> Self {
        match wish {
            FilteringWish::AddressAndPortDependent => Self::AddressAndPortDependent,
            FilteringWish::EndpointIndependent => Self::EndpointIndependent,
        }
    }
}

/// `--strict-leases`, with or without a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum StrictWish {
    /// Guests may use the addresses alone that a DHCP server, or `vmnat leases bind`, has given to them
    On,
    /// Guests may use whatever address of their network nobody else holds
    Off,
}

#[derive(Clone, Debug, Default, PartialEq, clap::Args)]
pub(super) struct Limits {
    /// Who may answer to the mapped ports of the bridges that are named, or of all
    /// [default: address-and-port-dependent]
    #[arg(long, value_name = "FILTERING")]
    filtering: Option<FilteringWish>,
    /// Bind each guest of the bridges that are named, or of all, to its lease: what it sends from an address that no DHCP server,
    /// and no `vmnat leases bind`, has given to its MAC at its port is dropped [default: off]
    #[arg(long, value_name = "ON|OFF", num_args = 0..=1, require_equals = true, default_missing_value = "on")]
    strict_leases: Option<StrictWish>,
    /// External ports from which guests get theirs, without those that the host may use itself
    /// [default: 1024-65535]
    #[arg(long, value_name = "FIRST-LAST")]
    pool: Option<PoolRange>,
    /// Flows that one guest may have [default: 16384; 0: no limit]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(0..=MOST), help_heading = GUESTS)]
    guest_flows: Option<u32>,
    /// Half-open TCP flows that one guest may have [default: 1024; 0: no limit]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(0..=MOST), help_heading = GUESTS)]
    guest_half_open: Option<u32>,
    /// New flows a second that one guest may open, on average [default: 1000; 0: no limit]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(0..=MOST), help_heading = GUESTS)]
    guest_rate: Option<u32>,
    /// New flows that one guest may open at once after a rest [default: 5000]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=MOST), help_heading = GUESTS)]
    guest_burst: Option<u32>,
}

const GUESTS: &str = "What one guest may take";

/// Adds what was asked for to the state; `bridges` are those that were named.
///
/// # Errors
/// When the host leaves nothing of the pool.
pub(super) fn merge(state: &mut State, args: &Limits, bridges: &[String]) -> Result<()> {
    let Limits { filtering, strict_leases, pool, guest_flows, guest_half_open, guest_rate, guest_burst } =
        args;
    let is_meant = |name: &String| bridges.is_empty() || bridges.contains(name);
    for bridge in state.bridges.iter_mut().filter(|bridge| is_meant(&bridge.name)) {
        bridge.filtering = filtering.map_or(bridge.filtering, Filtering::from);
        bridge.strict_leases = strict_leases.map_or(bridge.strict_leases, |wish| wish == StrictWish::On);
    }
    let quotas = &mut state.quotas;
    quotas.flows = guest_flows.unwrap_or(quotas.flows);
    quotas.half_open = guest_half_open.unwrap_or(quotas.half_open);
    quotas.rate = guest_rate.unwrap_or(quotas.rate);
    quotas.burst = guest_burst.unwrap_or(quotas.burst);
    if let Some(pool) = pool {
        state.pool = *pool;
        refuse_empty(*pool, &settings::pool(state)?)?;
    }
    Ok(())
}

fn refuse_empty(range: PoolRange, pool: &Pool) -> Result<(), Error> {
    if pool.free_tcp > 0 && pool.free_udp > 0 {
        return Ok(());
    }
    let what = format!("every port of the pool {range}");
    let holder = "the host (`sysctl net.ipv4.ip_local_port_range`, its sockets) and port forwards".to_owned();
    let hint = ": name a range beside the host's".to_owned();
    Err(Error::Taken { what, holder, hint })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Bridge, GuestQuotas, HookMode};

    #[test]
    fn what_is_not_named_stays() {
        let mut state = State::new(HookMode::Tcx);
        state.bridges = vec![Bridge::new("virbr0"), Bridge::new("virbr1")];
        let open = Limits { filtering: Some(FilteringWish::EndpointIndependent), ..Limits::default() };
        merge(&mut state, &open, &["virbr1".to_owned()]).unwrap();
        let filtering: Vec<_> = state.bridges.iter().map(|bridge| bridge.filtering).collect();
        assert_eq!(filtering, [Filtering::AddressAndPortDependent, Filtering::EndpointIndependent]);
        assert_eq!(state.quotas, GuestQuotas::default());
        merge(&mut state, &Limits { guest_flows: Some(0), ..Limits::default() }, &[]).unwrap();
        assert_eq!(state.quotas, GuestQuotas { flows: 0, ..GuestQuotas::default() });
        let strict = Limits { strict_leases: Some(StrictWish::On), ..Limits::default() };
        merge(&mut state, &strict, &["virbr0".to_owned()]).unwrap();
        let strict: Vec<_> = state.bridges.iter().map(|bridge| bridge.strict_leases).collect();
        assert_eq!(strict, [true, false]);
        merge(&mut state, &open, &[]).unwrap();
        assert!(state.bridges.iter().all(|bridge| bridge.filtering == Filtering::EndpointIndependent));
    }

    #[test]
    fn a_pool_of_which_nothing_is_left_is_refused() {
        let range = "40000-50000".parse().unwrap();
        let pool = |free| Pool { words: Box::default(), first: 0, last: 0, free_tcp: free, free_udp: 7 };
        assert!(refuse_empty(range, &pool(1)).is_ok());
        assert!(refuse_empty(range, &pool(0)).unwrap_err().to_string().contains("40000-50000"));
    }
}
