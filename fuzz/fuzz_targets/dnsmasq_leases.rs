//! See `vmnat_user::fuzzing::dnsmasq_leases`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vmnat_user::fuzzing::dnsmasq_leases(bytes));
