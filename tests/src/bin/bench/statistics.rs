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
