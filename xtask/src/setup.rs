//! `setup`: installs what is missing, naming each thing and why, and looks whether the kernel can do the lab.
//!
//! Quick when nothing is missing: every thing is looked for by the file or command that is needed, so that a
//! machine that got it another way is left alone.

pub mod cargo_fuzz;
pub mod dnsmasq;
pub mod guest_kernel;
pub mod guest_root;
pub mod host_kernels;
pub mod hosts;
mod kernel;
mod linker;
pub mod packagers;
mod packages;
pub mod stun;
mod toolchain;
pub mod wireguard;

use anyhow::{Result, ensure};
use clap::Parser;

/// Installs whatever is missing for building, the tests and the demo
#[derive(Parser)]
pub struct Args {
    /// Only what building and the unit tests need
    #[arg(long)]
    build_only: bool,
}

/// How much is needed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Building, checks and unit tests.
    Build,
    /// The lab as well: namespaces, firewalls, a guest; needs root.
    Lab,
    /// And the hosts that `./dev test` plays.
    Tests,
    /// Every host of the hosts tier too.
    Hosts,
    /// Every distribution that the packages tier boots too.
    Packages,
}

/// Sets up and says that all is there.
pub fn run(args: &Args) -> Result<()> {
    ensure(if args.build_only { Scope::Build } else { Scope::Tests })?;
    println!("All is there.");
    Ok(())
}

/// Installs what is missing for `scope`; prints nothing when nothing is.
pub fn ensure(scope: Scope) -> Result<()> {
    if scope != Scope::Build {
        ensure!(kernel::is_root()?, "the lab needs root (namespaces, BPF programs): run it with sudo");
        kernel::ensure_bare()?;
    }
    packages::ensure(packages::BUILD)?;
    toolchain::ensure()?;
    linker::ensure()?;
    if scope != Scope::Build {
        packages::ensure(packages::LAB)?;
        kernel::ensure_lab()?;
        guest_kernel::ensure()?;
        guest_root::ensure()?;
        stun::ensure()?;
        wireguard::ensure()?;
        dnsmasq::ensure()?;
        match scope {
            Scope::Build | Scope::Lab => {}
            Scope::Tests => hosts::ensure(&[hosts::BOOKWORM])?,
            Scope::Hosts | Scope::Packages => hosts::ensure(&[hosts::BOOKWORM, hosts::TRIXIE])?,
        }
        match scope {
            Scope::Build | Scope::Lab | Scope::Hosts => {}
            Scope::Tests => packagers::ensure().and_then(|()| host_kernels::ensure(&["bookworm"]))?,
            Scope::Packages => {
                packagers::ensure().and_then(|()| host_kernels::ensure(&["bookworm", "trixie"]))?;
            }
        }
    }
    Ok(())
}
