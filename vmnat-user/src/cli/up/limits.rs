//! What `up` says about who may call guests, and how much of what all share a guest may take.

use clap::ValueEnum;

use crate::state::{Filtering, State};

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

#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct Limits {
    /// Who may answer to the mapped ports of the bridges that are named, or of all
    /// [default: address-and-port-dependent]
    #[arg(long, value_name = "FILTERING")]
    filtering: Option<FilteringWish>,
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
pub(super) fn merge(state: &mut State, args: &Limits, bridges: &[String]) {
    let Limits { filtering, guest_flows, guest_half_open, guest_rate, guest_burst } = args;
    if let Some(filtering) = filtering {
        let is_meant = |name: &String| bridges.is_empty() || bridges.contains(name);
        for bridge in state.bridges.iter_mut().filter(|bridge| is_meant(&bridge.name)) {
            bridge.filtering = (*filtering).into();
        }
    }
    let quotas = &mut state.quotas;
    quotas.flows = guest_flows.unwrap_or(quotas.flows);
    quotas.half_open = guest_half_open.unwrap_or(quotas.half_open);
    quotas.rate = guest_rate.unwrap_or(quotas.rate);
    quotas.burst = guest_burst.unwrap_or(quotas.burst);
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
        merge(&mut state, &open, &["virbr1".to_owned()]);
        let filtering: Vec<_> = state.bridges.iter().map(|bridge| bridge.filtering).collect();
        assert_eq!(filtering, [Filtering::AddressAndPortDependent, Filtering::EndpointIndependent]);
        assert_eq!(state.quotas, GuestQuotas::default());
        merge(&mut state, &Limits { guest_flows: Some(0), ..Limits::default() }, &[]);
        assert_eq!(state.quotas, GuestQuotas { flows: 0, ..GuestQuotas::default() });
        merge(&mut state, &open, &[]);
        assert!(state.bridges.iter().all(|bridge| bridge.filtering == Filtering::EndpointIndependent));
    }
}
