//! See `vmnat_user::fuzzing::networkd_leases`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vmnat_user::fuzzing::networkd_leases(bytes));
