//! `vmnat nudge`, hidden: what libvirt's hooks run. Never fails, and waits for nobody.

use std::fs;

use crate::{
    agent,
    paths::{Instance, RUN},
};

/// Have every agent look at once (run by libvirt's hooks)
#[derive(Clone, Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
pub fn run(args: &Args) {
    let Args {} = args;
    for entry in fs::read_dir(RUN).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if let Some(instance) = name.to_str().and_then(|name| name.parse::<Instance>().ok()) {
            agent::nudge(&instance);
        }
    }
}
