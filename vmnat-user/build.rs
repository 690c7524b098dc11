//! Builds the kernel half and leaves its object in `OUT_DIR` for [`include_bytes`].

use anyhow::Result;
use aya_build::{Package, Toolchain};

/// The toolchain of `rust-toolchain.toml`: bpf-linker's LLVM must read this compiler's bitcode.
const TOOLCHAIN: &str = "1.95.0";

fn main() -> Result<()> {
    // `build-std`, for a target that ships no core, is an unstable flag; and the inner cargo's progress would
    // come out as a warning a line.
    // SAFETY: no other thread of this process reads or writes the environment.
    unsafe {
        std::env::set_var("RUSTC_BOOTSTRAP", "1");
        std::env::set_var("CARGO_TERM_QUIET", "true");
    }
    let root_dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../vmnat-ebpf");
    println!("cargo:rerun-if-changed={}", concat!(env!("CARGO_MANIFEST_DIR"), "/../vmnat-common"));
    let package = Package { name: "vmnat-ebpf", root_dir, ..Package::default() };
    aya_build::build_ebpf([package], Toolchain::Custom(TOOLCHAIN))
}
