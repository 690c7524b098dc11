//! Access lists: the rules as people write them, what they come to for each bridge, and which live flows they forbid.

mod compile;
mod flush;
mod rule;

pub use self::{
    compile::{Compiled, compile},
    flush::forbidden,
    rule::{Direction, Rule, RuleSpec, Verb},
};
