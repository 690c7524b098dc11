//! `vmnat guests`: what each guest has taken of what all share.

use std::net::Ipv4Addr;

use anyhow::Result;
use serde::Serialize;

use super::print;
use crate::{
    guests::{self, GuestRow},
    leases::Directory,
    paths::Instance,
    report::{self, Column},
    state::{self, GuestQuotas},
    tables::Tables,
};

/// Show how many flows each guest has, and how many its quotas have refused
///
/// `up --guest-flows`, `--guest-half-open`, `--guest-rate` and `--guest-burst` set the quotas, also while vmnat runs.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A guest in JSON.
#[derive(Serialize)]
struct Row<'a> {
    address: Ipv4Addr,
    name: Option<&'a str>,
    flows: u32,
    half_open: u32,
    refused: u64,
    refused_flows: u32,
    refused_half_open: u32,
    refused_rate: u32,
}

/// Runs the command.
///
/// # Errors
/// When the instance does not run, or the kernel refuses.
pub fn run(instance: &Instance, args: &Args) -> Result<()> {
    let Args { json } = args;
    let state = state::load(instance)?;
    let guests = guests::list(&Tables::open(instance)?, &Directory::of_files(&state))?;
    if *json {
        let rows: Vec<_> = guests.iter().map(row).collect();
        return print::line(&report::json("guests", &rows)?);
    }
    if guests.is_empty() {
        print::line("no guest has opened a flow")?;
    } else {
        print::text(&report::table(&COLUMNS, guests.iter().map(cells)))?;
    }
    print::line(&format!("quota of each: {}", quotas(&state.quotas)))
}

fn row(guest: &GuestRow) -> Row<'_> {
    let GuestRow { address, name, flows, half_open, refused: [by_flows, by_half_open, by_rate] } = guest;
    Row {
        address: *address,
        name: name.as_deref(),
        flows: *flows,
        half_open: *half_open,
        refused: guest.refused_in_all(),
        refused_flows: *by_flows,
        refused_half_open: *by_half_open,
        refused_rate: *by_rate,
    }
}

const COLUMNS: [Column; 5] = [
    Column::Text("ADDRESS"),
    Column::Text("NAME"),
    Column::Number("FLOWS"),
    Column::Number("HALF OPEN"),
    Column::Number("REFUSED"),
];

fn cells(guest: &GuestRow) -> [String; 5] {
    let GuestRow { address, name, flows, half_open, refused: _ } = guest;
    [
        address.to_string(),
        name.clone().unwrap_or_default(),
        report::number((*flows).into()),
        report::number((*half_open).into()),
        report::number(guest.refused_in_all()),
    ]
}

/// The quotas as a clause.
pub(super) fn quotas(quotas: &GuestQuotas) -> String {
    let GuestQuotas { flows, half_open, rate, burst } = *quotas;
    let limit = |limit: u32, what: &str| match limit {
        0 => format!("any number of {what}"),
        _ => format!("{} {what}", report::number(limit.into())),
    };
    let rate = match rate {
        0 => limit(0, "new ones a second"),
        _ => format!("{}, {} at once", limit(rate, "new ones a second"), report::number(burst.into())),
    };
    format!("{}, {}, {rate}", limit(flows, "flows"), limit(half_open, "half-open ones"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_summed_and_named() {
        let guest = GuestRow {
            address: [192, 168, 122, 10].into(),
            name: Some("web".into()),
            flows: 16_384,
            half_open: 2,
            refused: [1000, 200, 34],
        };
        assert_eq!(cells(&guest), ["192.168.122.10", "web", "16,384", "2", "1,234"].map(str::to_owned));
        let json = serde_json::to_string(&row(&guest)).unwrap();
        assert!(
            json.contains(r#""refused":1234,"refused_flows":1000,"refused_half_open":200,"refused_rate":34"#)
        );
    }

    #[test]
    fn no_limit_is_said() {
        let usual = "16,384 flows, 1,024 half-open ones, 1,000 new ones a second, 5,000 at once";
        assert_eq!(quotas(&GuestQuotas::default()), usual);
        let none = GuestQuotas { flows: 0, half_open: 0, rate: 0, burst: 5 };
        let text = "any number of flows, any number of half-open ones, any number of new ones a second";
        assert_eq!(quotas(&none), text);
    }
}
