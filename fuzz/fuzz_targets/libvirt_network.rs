//! See `vmnat_user::fuzzing::libvirt_network`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vmnat_user::fuzzing::libvirt_network(bytes));
