//! Medians and their spread.

use serde_json::{Value, json};

/// Figures of one thing over the rounds of a run.
#[derive(Clone, Debug, Default)]
pub struct Series(pub Vec<f64>);

impl Series {
    /// The middle figure.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The figure that this share of all figures does not exceed, interpolated; not a number for an empty series.
    pub fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
        let position = share * last as f64;
        let below = position.floor();
        let at = |index: f64| sorted.get(index as usize).copied().unwrap_or(f64::NAN);
        at(below) + (at(position.ceil()) - at(below)) * (position - below)
    }

    /// What comes of this series and another one, round by round.
    pub fn with(&self, other: &Self, combine: impl Fn(f64, f64) -> f64) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(own, others)| combine(*own, *others)).collect())
    }

    /// Median and quartiles, with this many decimals.
    pub fn written(&self, decimals: usize) -> String {
        let [low, middle, high] = [0.25, 0.5, 0.75].map(|share| self.quantile(share));
        format!("{middle:.decimals$} ({low:.decimals$}–{high:.decimals$})")
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        json!({
            "median": self.median(),
            "quartiles": [self.quantile(0.25), self.quantile(0.75)],
            "rounds": self.0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(series: &Series, share: f64) -> String {
        format!("{:.3}", series.quantile(share))
    }

    #[test]
    fn quantiles_are_between_the_figures_around_them_in_any_order() {
        let series = Series(vec![40.0, 10.0, 30.0, 20.0]);
        let shares = [0.0, 0.25, 0.5, 0.75, 1.0];
        assert_eq!(
            shares.map(|share| written(&series, share)),
            ["10.000", "17.500", "25.000", "32.500", "40.000"]
        );
        assert_eq!(series.written(1), "25.0 (17.5–32.5)");
    }

    #[test]
    fn percentiles_of_many_figures_are_near_the_end() {
        let series = Series((0..=1_000).rev().map(f64::from).collect());
        assert_eq!(
            [0.5, 0.99, 0.999].map(|share| written(&series, share)),
            ["500.000", "990.000", "999.000"]
        );
    }

    #[test]
    fn one_figure_is_every_quantile_and_none_is_no_number() {
        assert_eq!(written(&Series(vec![7.0]), 0.99), "7.000");
        assert!(Series::default().median().is_nan());
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let (own, others) = (Series(vec![1.0, 9.0, 4.0]), Series(vec![2.0, 3.0, 4.0]));
        let ratios = own.with(&others, |own, others| own / others);
        assert_eq!(ratios.written(2), "1.00 (0.75–2.00)");
        assert_eq!(ratios.0.len(), 3);
    }
}
