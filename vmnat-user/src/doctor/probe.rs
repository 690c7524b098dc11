//! The synthetic guest of `--probe`.
