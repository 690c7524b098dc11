//! Rebuilds the object when the linker changes: it takes part in the result, and cargo does not know it.

fn main() {
    if let Ok(linker) = which::which("bpf-linker") {
        println!("cargo:rerun-if-changed={}", linker.display());
    }
}
