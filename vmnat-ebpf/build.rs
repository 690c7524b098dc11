//! Says how the object is linked, and rebuilds it when the linker changes: it takes part in the result, and cargo does not
//! know it.

fn main() {
    if let Ok(linker) = which::which("bpf-linker") {
        println!("cargo:rerun-if-changed={}", linker.display());
    }
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("bpf") {
        // By default bpf-linker asks LLVM to keep loads and stores of a copy in order, and LLVM then expands no `memset`
        // and no `memmove` at all: six bytes of a MAC became a call of a byte-wise loop, on the packet's road.
        println!("cargo:rustc-link-arg-bins=--disable-expand-memcpy-in-order");
    }
}
