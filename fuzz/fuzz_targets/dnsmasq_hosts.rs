//! See `vmnat_user::fuzzing::dnsmasq_hosts`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vmnat_user::fuzzing::dnsmasq_hosts(bytes));
