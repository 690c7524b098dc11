//! A host of its own for the packages: a distribution's system with its kernel and with systemd as process 1, in QEMU.

mod console;
mod image;
pub mod machine;
pub mod made;

pub use self::{machine::Machine, made::Packages};
