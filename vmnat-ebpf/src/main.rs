//! The programs that the kernel runs; this file names them and nothing else.
//!
//! On any target but BPF this is an empty program, so that `cargo check --workspace` works on the host.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod maps;

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{macros::classifier, programs::TcContext};

    /// tcx ingress of a bridge's port.
    #[classifier]
    pub fn outbound_port(_ctx: TcContext) -> i32 {
        -1
    }

    /// tcx ingress of a bridge.
    #[classifier]
    pub fn outbound_bridge(_ctx: TcContext) -> i32 {
        -1
    }

    /// tcx ingress of an uplink.
    #[classifier]
    pub fn inbound(_ctx: TcContext) -> i32 {
        -1
    }

    /// tcx egress of an uplink.
    #[classifier]
    pub fn guard(_ctx: TcContext) -> i32 {
        -1
    }

    /// Run by user space through `BPF_PROG_TEST_RUN`.
    #[classifier]
    pub fn reaper(_ctx: TcContext) -> i32 {
        0
    }

    /// Run by user space through `BPF_PROG_TEST_RUN`.
    #[classifier]
    pub fn clock(_ctx: TcContext) -> i32 {
        0
    }
}

#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
