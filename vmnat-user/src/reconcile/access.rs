//! Access lists: those of the plan, and the end of the live flows that they forbid.

use anyhow::Result;
use vmnat_common::{
    flow::Side,
    reap::{Mode, Verdict},
};

use crate::{access, plan::Plan, tables::Tables};

/// Makes the lists those of the plan; a line for what has changed.
pub(super) fn settle(tables: &Tables, plan: &Plan) -> Result<Vec<String>> {
    if tables.access()? == plan.access.lists {
        return Ok(Vec::new());
    }
    tables.set_access(&plan.access.lists)?;
    let prefixes = plan.access.lists.len();
    Ok(vec![match prefixes {
        0 => "removed the access lists".to_owned(),
        _ => format!("wrote the access lists: {prefixes} prefixes"),
    }])
}

/// Ends the flows that the lists forbid, by the reaper; tells how many. After the programs know the lists: what is opened meanwhile is
/// judged by them.
pub(super) fn end_forbidden(tables: &Tables, plan: &Plan) -> Result<usize> {
    let mut guests = Vec::new();
    for batch in tables.flows() {
        guests.extend(batch?.into_iter().filter(|(key, _)| key.side == Side::Guest as u8));
    }
    let bridge_of =
        |address: vmnat_common::Address| plan.network_of(address.into()).map(|network| network.bridge);
    let doomed = access::forbidden(&plan.access, &guests, bridge_of);
    let verdicts = tables.reap(Mode::Remove, &doomed)?;
    Ok(verdicts.into_iter().filter(|verdict| *verdict == Verdict::Removed).count())
}
