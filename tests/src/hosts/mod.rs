//! Hosts that cut their guests off: the real firewalls and managers of networks, each in a throw-away machine of the lab.
//!
//! A [`stage::Stage`] is a lab whose VM host is a machine with a distribution's files ([`machine::Machine`]); what is below
//! [`software`] starts there as an administrator would start it; [`checks`] tell what guests, the world and the host can do;
//! [`talk`] goes on while the host is changed under its guests; [`variant`] plays one situation without vmnat and then with it, [`churn`] one
//! that changes under [`traffic`] either time, and [`matrix`] is the table of them all.

pub mod checks;
pub mod churn;
mod groups;
mod libraries;
pub mod machine;
pub mod matrix;
pub mod software;
pub mod stage;
pub mod talk;
pub mod traffic;
pub mod variant;

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};

/// Tells where the trees lie, a folder for each.
const FOLDER: &str = "VMNAT_HOSTS_DIR";

/// A distribution whose packages a machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tree {
    /// Debian 12: libvirt 9.0, Docker 20.10, firewalld 1.3, ufw 0.36, networkd 252.
    Bookworm,
    /// Debian 13: libvirt 11.3, Docker 26.1, firewalld 2.3, ufw 0.36, networkd 257.
    Trixie,
}

impl Tree {
    /// The distribution's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }

    /// The folder of its files.
    ///
    /// # Errors
    ///
    /// When it is not there; the message says how to get it.
    pub fn folder(self) -> Result<PathBuf> {
        let all = env::var_os(FOLDER)
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/hosts"), PathBuf::from);
        let folder = all.join(self.name());
        ensure!(
            folder.join("usr/sbin/dockerd").exists(),
            "no files of {} in {}: `./dev test hosts` makes them, or name another folder in {FOLDER}",
            self.name(),
            folder.display()
        );
        Ok(folder)
    }
}
