//! The pinned toolchain's parts. `./dev` and rustup's proxies see to the toolchain itself.

use anyhow::{Context as _, Result};

use crate::command::{self, cargo, program};

/// A rustup component, and how it shows that it is there.
struct Component {
    name: &'static str,
    why: &'static str,
    is_there: fn() -> bool,
}

const COMPONENTS: [Component; 3] = [
    Component { name: "rust-src", why: "core is built for the BPF target", is_there: has_source },
    Component { name: "clippy", why: "lints", is_there: || answers("clippy") },
    Component { name: "rustfmt", why: "format", is_there: || answers("fmt") },
];

/// Adds the components that are missing.
pub fn ensure() -> Result<()> {
    for Component { name, why, is_there } in COMPONENTS {
        if !is_there() {
            println!("installing {name} for the pinned toolchain ({why}) ...");
            let mut rustup = program("rustup", ["component", "add", name]);
            command::run(rustup.current_dir(crate::project::root()))
                .with_context(|| format!("cannot add {name} to the toolchain of rust-toolchain.toml"))?;
        }
    }
    Ok(())
}

fn has_source() -> bool {
    let mut rustc = program("rustc", ["--print", "sysroot"]);
    let sysroot = command::output(rustc.current_dir(crate::project::root())).unwrap_or_default();
    std::path::Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core").is_dir()
}

fn answers(subcommand: &str) -> bool {
    command::output(&mut cargo([subcommand, "--version"])).is_ok()
}
