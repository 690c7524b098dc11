//! See `vmnat_user::fuzzing::dhcp_frame`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vmnat_user::fuzzing::dhcp_frame(bytes));
