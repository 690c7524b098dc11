//! See `vmnat_user::fuzzing::conntrack_entry`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vmnat_user::fuzzing::conntrack_entry(bytes));
