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

#[cfg(test)]
mod tests {
    use super::*;

    fn is_met(ratio: f64, bound: Bound) -> bool {
        Goal { what: String::new(), ratio, bound }.is_met()
    }

    #[test]
    fn a_bound_is_kept_from_its_good_side_and_on_it() {
        let most = [0.29, 0.30, 0.301].map(|ratio| is_met(ratio, Bound::AtMost(0.30)));
        let least = [1.051, 1.05, 1.04].map(|ratio| is_met(ratio, Bound::AtLeast(1.05)));
        assert_eq!([most, least], [[true, true, false]; 2]);
    }

    #[test]
    fn a_ratio_that_is_no_number_keeps_no_bound() {
        assert!(!is_met(f64::NAN, Bound::AtMost(1.0)));
        assert!(!is_met(f64::NAN, Bound::AtLeast(1.0)));
    }

    #[test]
    fn a_row_says_bound_figure_and_verdict() {
        let goal = Goal { what: "cost".to_owned(), ratio: 0.3004, bound: Bound::AtMost(0.30) };
        assert_eq!(goal.cells(), ["cost", "≤ 0.30", "0.300", "MISSED"]);
    }
}
