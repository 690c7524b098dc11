//! What a run must show.

use crate::report::table;

/// A bound on a ratio.
#[derive(Clone, Debug)]
pub struct Goal {
    /// What is compared with what.
    pub what: String,
    /// The median of the ratios, round by round.
    pub ratio: f64,
    /// The bound.
    pub bound: Bound,
}

/// Which side of the bound is good.
#[derive(Clone, Copy, Debug)]
pub enum Bound {
    /// Costs.
    AtMost(f64),
    /// Gains.
    AtLeast(f64),
}

impl Goal {
    /// True when the ratio keeps its bound; a ratio that is no number keeps none.
    pub fn is_met(&self) -> bool {
        match self.bound {
            Bound::AtMost(most) => self.ratio <= most,
            Bound::AtLeast(least) => self.ratio >= least,
        }
    }

    /// Bound, figure, verdict.
    pub fn cells(&self) -> [String; 4] {
        let bound = match self.bound {
            Bound::AtMost(most) => format!("≤ {most:.2}"),
            Bound::AtLeast(least) => format!("≥ {least:.2}"),
        };
        let verdict = if self.is_met() { "met" } else { "MISSED" };
        [self.what.clone(), bound, format!("{:.3}", self.ratio), verdict.to_owned()]
    }
}

/// Every goal with its bound, what was measured, and whether it is met.
pub fn table_of(goals: &[Goal], heading: &str) -> String {
    let rows: Vec<_> = goals.iter().map(Goal::cells).collect();
    table(&[heading, "bound", "measured", ""], &rows)
}
