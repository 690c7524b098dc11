//! Desired state: what the operator's files say, how it joins what the command line says, and how it becomes true.
//!
//! Every option is declared once, in `keys.rs`: its name, its sentence, how it is read and written. All else follows from
//! that: messages with places, who owns what, differences in words, the sample, the manual, and `config show`.
//!
//! An instance has two layers. The files' layer is what the last `apply` took over, kept in [`FileLayer`]; all else in
//! the state is the command line's. `apply` changes the first and leaves the second alone, and a command refuses to
//! change what the files own.

pub mod apply;
mod describe;
mod fault;
mod files;
mod key;
mod keys;
mod layer;
mod manual;
mod read;
mod renew;
mod write;

#[cfg(any(test, fuzzing))]
pub use self::layer::made_of;
pub use self::{
    describe::{Difference, difference, statements},
    fault::{Fault, Faults, Place, SourceText},
    files::{Source, again, find, folder, read},
    key::{Scalar, Statement},
    keys::copy_wish,
    layer::{FileLayer, refuse_foreign},
    manual::manual,
    read::{Config, Rule, parse},
    renew::{ask_for_anything, asked_for, renew, renew_kept},
    write::{effective, sample},
};
