//! vmnat between real bridges, real veths and real firewalls. Each scenario runs on both kinds of hook.
//!
//! Every test ends with [`vmnat_tests::lab::Lab::assert_invariants`]: whatever it is about, no guest's source leaves
//! by the uplink, no packet arrives damaged, and the host's own traffic goes on.

/// Makes each scenario a test on tcx and a test on clsact.
macro_rules! on_both_hooks {
    ($($scenario:ident),+ $(,)?) => {
        mod tcx {
            $(#[test] fn $scenario() -> anyhow::Result<()> { super::$scenario(vmnat_tests::lab::vmnat::Hook::Tcx) })+
        }
        mod clsact {
            $(#[test] fn $scenario() -> anyhow::Result<()> { super::$scenario(vmnat_tests::lab::vmnat::Hook::Clsact) })+
        }
    };
}

mod access;
mod churn;
mod commands;
mod config;
mod dhcp;
mod doctor;
mod errors;
mod filtering;
mod firewalls;
mod forwards;
mod hostile;
mod kept;
mod kernel;
mod lab_itself;
mod leases;
mod life;
mod neighbours;
mod next_hop;
mod path;
mod quotas;
mod rest;
mod restart;
mod rfc;
mod room;
mod services;
mod sources;
mod takeover;
mod traffic;
mod uplinks;
