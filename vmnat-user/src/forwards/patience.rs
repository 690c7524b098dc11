//! What a port forward of a file may wait for, where one of the command line is refused.

use crate::{error::Error, facts::Facts, plan, state::State};

/// What is waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Patience {
    /// Leases.
    leases: bool,
    /// Networks of guests: a bridge is not there, or has no network.
    networks: bool,
    /// An uplink: none is named, and there is no default route to follow.
    uplinks: bool,
}

impl Patience {
    /// What of all that may still come.
    pub(super) fn of(state: &State, facts: &Facts) -> Self {
        let has_network = |name: &str| {
            facts.link(name).is_some_and(|link| !plan::networks(state, facts, &[link]).is_empty())
        };
        Self {
            leases: true,
            networks: !state.bridges.iter().all(|bridge| has_network(&bridge.name)),
            uplinks: state.uplinks.is_empty() && plan::uplinks(state, facts).is_empty(),
        }
    }

    /// Makes a warning of an error that may mend itself.
    ///
    /// # Errors
    /// Any other.
    pub(super) fn bear(self, result: Result<(), Error>) -> Result<Option<String>, Error> {
        match result {
            Ok(()) => Ok(None),
            Err(error @ Error::NoLease { .. }) if self.leases => Ok(Some(error.to_string())),
            Err(error @ Error::NotAGuest { .. }) if self.networks => Ok(Some(error.to_string())),
            Err(error @ Error::NoUplink { .. }) if self.uplinks => Ok(Some(error.to_string())),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        facts::{AddressFact, LinkFact},
        state::{Bridge, HookMode},
    };

    #[test]
    fn only_what_may_come_is_waited_for() {
        let no_guest = || Err(Error::NotAGuest { guest: [10, 0, 0, 2].into() });
        let no_lease = || Err(Error::NoLease { target: "web".into(), hint: String::new() });
        let mut state = State::new(HookMode::Tcx);
        state.bridges.push(Bridge::new("virbr0"));
        let mut facts = Facts::default();
        let early = Patience::of(&state, &facts);
        assert!(early.bear(no_guest()).unwrap().is_some() && early.bear(no_lease()).unwrap().is_some());
        facts.links =
            vec![LinkFact { index: 2, name: "virbr0".into(), is_bridge: true, ..LinkFact::default() }];
        let address = vmnat_common::Address::new([192, 168, 122, 1]);
        facts.addresses = vec![AddressFact { index: 2, address, prefix: 24, secondary: false }];
        let late = Patience::of(&state, &facts);
        assert!(late.bear(no_guest()).is_err() && late.bear(no_lease()).unwrap().is_some());
        assert!(Patience::default().bear(no_lease()).is_err());
        assert!(late.bear(Err(Error::NoDefaultRoute)).is_err());
    }
}
